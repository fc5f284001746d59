"""Feedback without weight sharing: every step is a network of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

import torchcbl as cbl
from torchcbl.adapters import build_adapters
from torchcbl.backbone.site import Site
from torchcbl.lab.arms.base import Arm, Shape, standard_backbone
from torchcbl.lab.arms.loops import SITES
from torchcbl.lab.arms.seeds import derive_seed, example_of, seeded
from torchcbl.lab.networks import StandardCNN
from torchcbl.lab.recipe import Recipe


class Untied(nn.Module):
    """T + 1 copies of a backbone, each told by the context what the one before it answered.

        y_0 = F_0(x),   z_t = g_t(y_t),   h_{t+1} = alpha h_t + (1 - alpha) psi_{t+1}(h, z_t),   y_{t+1} = head_{t+1}(h)

    Args:
        copies: F_0..F_T, of one form.
        example: Samples (B, C, H, W), for the shapes of the hidden states.
        adapter: Name of the adapters.
        sites: Blocks whose output is refined.
        context_dim: D, the size of z.
        alpha: Weight of the old state, of the copy before.
    """

    def __init__(
        self,
        copies: list[StandardCNN],
        example: Tensor,
        adapter: str,
        sites: tuple[str, ...],
        context_dim: int,
        alpha: float,
    ) -> None:
        super().__init__()
        self.copies, self.alpha = nn.ModuleList(copies), alpha
        size, _, height, breadth = example.shape
        shapes = [(size, width, height >> i, breadth >> i) for i, width in enumerate(copies[0].widths, start=1)]
        places = [Site(name, shape, 1) for name, shape in zip(SITES, shapes, strict=True) if name in sites]
        self.contexts = nn.ModuleList(nn.Linear(copies[0].fc2.out_features, context_dim) for _ in copies[1:])
        self.adapters = nn.ModuleList(
            nn.ModuleDict(
                {p.name: psi for p, psi in zip(places, build_adapters(adapter, places, context_dim), strict=True)}
            )
            for _ in copies[1:]
        )

    @property
    def backbone(self) -> nn.Module:
        """F_0, which `standard` is too."""
        return self.copies[0]

    def forward(self, x: Tensor) -> Tensor:
        """Compute y_T (B, K)."""
        return self.refine(x).output

    def refine(self, x: Tensor, *, steps: int | None = None) -> cbl.Refinement:
        """Compute y_0..y_T.

        Args:
            x: Samples (B, C, H, W).
            steps: T, at most one less than there are copies; None for all.
        """
        old: dict[str, Tensor] = {}
        outputs = [self._run(0, x, None, old)]
        for step in range(1, len(self.copies) if steps is None else steps + 1):
            outputs.append(self._run(step, x, self.contexts[step - 1](outputs[-1]), old))
        return cbl.Refinement(outputs)

    def _run(self, step: int, x: Tensor, z: Tensor | None, old: dict[str, Tensor]) -> Tensor:
        """Run one copy; `old` holds the hidden states of the one before, and then this one's."""
        h, backbone, adapters = x, self.copies[step], self.adapters[step - 1] if step else nn.ModuleDict()
        assert isinstance(backbone, StandardCNN)
        assert isinstance(adapters, nn.ModuleDict)
        for site in SITES:
            h = backbone.get_submodule(site)(h)
            if site in adapters:
                refined = adapters[site](h, z)
                h = refined if self.alpha == 0 else self.alpha * old[site] + (1 - self.alpha) * refined
            old[site] = h
        return backbone.head(h)


@dataclass(frozen=True)
class UntiedArm(Arm):
    """The method unrolled into T + 1 networks that share no weight.

    Holds equal: data, loss on every step, adapters, context, depth of the unrolled computation. It has T + 1 times the
    parameters, and recomputes what lies below the lowest site. Isolates: iteration, the use of the same weights again.

    Args:
        weights: lambda_tau of the loss (Eq. 9), where the recipe names none.
    """

    weights: str = "uniform"

    def build(self, recipe: Recipe, shape: Shape, num_classes: int, seed: int) -> nn.Module:
        """See `Arm.build`.

        Raises:
            ValueError: The recipe's schedule is another than "repropagate".
        """
        if recipe.schedule != "repropagate":
            raise ValueError(
                f"arm 'untied' unrolls schedule 'repropagate' alone, got '{recipe.schedule}': leave it out of --arms."
            )
        seeds = [seed, *(derive_seed(seed, self.name, step) for step in range(1, recipe.steps + 1))]
        copies = [standard_backbone(recipe, shape, num_classes, one) for one in seeds]
        with seeded(derive_seed(seed, self.name)):
            return Untied(
                copies,
                example_of(shape),
                recipe.adapter or "film",
                recipe.sites or SITES,
                recipe.context_dim,
                recipe.alpha,
            )

    def adjusted(self, recipe: Recipe) -> UntiedArm:
        """See `Arm.adjusted`."""
        return replace(self, weights=recipe.weights or self.weights)

    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Compute the cross entropy of y_0..y_T, weighted by lambda (Eq. 9)."""
        return cbl.refinement_loss(cbl.Refinement(self.outputs(model, x)), target, weights=self.weights)
