"""ContextLoop: puts the parts together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from os import PathLike

import torch
from torch import Tensor, nn

from torchcbl.adapters import AdapterChoice, build_adapters, describe_adapters
from torchcbl.audit import Audit, audit_at_random, audit_loop, dead_adapters_message
from torchcbl.calls import Call, Example, describe, evaluating, placement, synthesise
from torchcbl.context import Context, ContextMap
from torchcbl.refinement import Refinement, relative_change
from torchcbl.schedules import Psi, State, find_schedule
from torchcbl.site import Site, build_sites, match_names, not_found
from torchcbl.stages import Cut, Plan, choose_plan, make_cut
from torchcbl.stages.replayed import ReplayedCut
from torchcbl.stages.traced import TracedCut
from torchcbl.stages.tracing import NotTraceable
from torchcbl.step_norm import batch_norms, choose_step_norm, module_key


@dataclass(frozen=True)
class LoopConfig:
    """What a loop was built with, as plain data."""

    steps: int
    alpha: float
    schedule: str
    context: Context
    custom_context: bool
    adapter: str | dict[str, str]
    example: dict[str, object]
    step_norm: str
    channel_dim: int | None


class ContextLoop(nn.Module):
    """Put top-down feedback into a network.

        y_0 = F(x),   z_t = g(y_t),   h_{t+1} = alpha h_t + (1 - alpha) psi(h, z_t),   y_{t+1} = head(h_{t+1})

    The backbone is neither edited nor subclassed: its parameters and its `state_dict` keys stay what they were, and
    what lies below the lowest site is computed once per call, however many steps there are.

    Args:
        backbone: Any module that maps tensors to one tensor of logits, (B, K) or (B, N, K), deterministic in eval mode.
        sites: Dotted names or globs of submodules (`*` within a level, `**` across levels); their outputs are h^(l).
        example: What the backbone is called with, for shapes: a tensor, a tuple of positional or a dict of keyword
            arguments. Two samples are enough; it is run a few times and not kept.
        adapter: "film", "gate", a module class or factory called with (`Site`, context dim), a module, or a dict of
            these by site name or glob.
        context: g, by default `Context(dim=64)`: an affine map of the logits.
        steps: T, the number of feedback steps; at least 0. May be changed at call time.
        alpha: Weight of the OLD state in [0, 1]: h_{t+1} = alpha h_t + (1 - alpha) psi(h, z_t). 0 replaces it.
        schedule: "repropagate" (bottom-up through all sites), "synchronous" (one stage per step) or "literal" (Eqs. 7-8
            to the letter: only the top site reaches the output). See `torchcbl.schedules`.
        step_norm: Batch norm in the replayed part: "per_step" (the default: statistics of each step's own), "shared",
            "frozen" or "shared_tracked". See `torchcbl.step_norm.StepNorm`.
        channel_dim: Channel axis of the hidden states; None finds it from the module that made them.
        cut: "auto", "traced" (torch.fx, or an error that says why not) or "replayed". A trace keeps the values that
            plain Python attributes read by `forward` have now; a backbone whose flags change later wants "replayed".
            torch.fx is not made for threads: build loops before other threads run modules.
        allow_dead: Whether adapters that cannot move the output are allowed.

    Raises:
        ValueError: A site is unknown, never runs, runs twice or is named twice; an argument is out of its range; the
            backbone is not deterministic; or an adapter is dead.
        TypeError: A site or the backbone does not return one tensor, or an argument is of the wrong type.

    Source:
        Fein-Ashley, Contextual Backpropagation Loops: Amplifying Deep Reasoning with Iterative Top-Down Feedback.

    Example:
        >>> backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.randn(5, 4)
        >>> net = ContextLoop(backbone, sites="1", example=x, context=Context(dim=6))
        >>> net(x).shape, len(net.refine(x, steps=4).outputs)
        (torch.Size([5, 3]), 5)
        >>> torch.equal(net(x), backbone(x))  # adapters start as the identity
        True
    """

    @torch.inference_mode(False)  # parameters made in inference mode could never be trained
    def __init__(
        self,
        backbone: nn.Module,
        sites: str | Sequence[str],
        example: Example,
        adapter: AdapterChoice = "film",
        context: Context | None = None,
        steps: int = 2,
        alpha: float = 0.0,
        schedule: str = "repropagate",
        *,
        step_norm: str | None = None,
        channel_dim: int | None = None,
        cut: str = "auto",
        allow_dead: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise TypeError(f"backbone must be an nn.Module, got {type(backbone).__name__}.")
        context = Context() if context is None else context
        if not isinstance(context, Context):
            raise TypeError(
                f"context must be a torchcbl.Context, got {context!r}: write for example "
                "Context(dim=64, source='probs')."
            )
        steps, alpha = check_steps(steps), check_alpha(alpha)
        order = find_schedule(schedule)
        call = Call.from_example(example)
        names = match_names(backbone, sites)
        self.backbone = backbone
        self.sites: tuple[Site, ...] = tuple(build_sites(backbone, names, call.detached(), channel_dim))
        site_names = tuple(site.name for site in self.sites)
        source = self._check_source(context)
        plan, replayed = choose_plan(backbone, site_names, source, order.start(len(site_names)), call, cut)
        self.plan: Plan = plan
        self.context = self._build_context(context, call).to(*placement(backbone, call))
        modules = build_adapters(adapter, self.sites, context.dim)
        self.adapters = nn.ModuleDict(
            {module_key(site.name): module for site, module in zip(self.sites, modules, strict=True)}
        ).to(*placement(backbone, call))
        self.step_norm = choose_step_norm(step_norm, batch_norms(replayed.items()), steps)
        self.has_batch_norm = bool(batch_norms(replayed.items()))
        self.config = LoopConfig(
            steps=steps,
            alpha=alpha,
            schedule=schedule,
            context=replace(context, map=None),  # a lambda could not be pickled
            custom_context=context.map is not None,
            adapter=describe_adapters(adapter),
            example=describe(call),
            step_norm=self.step_norm.mode,
            channel_dim=channel_dim,
        )
        self._prepare_cuts()
        for part in (self.context, self.adapters, self.step_norm):
            part.train(backbone.training)
        self.training = backbone.training
        self._audit = audit_loop(self, call.detached())
        if self._audit.dead:
            self._audit = audit_at_random(self)
        if self._audit.dead and not allow_dead:
            raise ValueError(dead_adapters_message(self._audit))

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Return y_T: the backbone's output after T steps of feedback, (B, K) or (B, N, K)."""
        outputs, _ = self.run(Call(args, kwargs), self.config.steps)
        return outputs[-1]

    def refine(self, *args: object, steps: int | None = None, **kwargs: object) -> Refinement:
        """Return the outputs of all steps.

        Args:
            *args: What the backbone is called with.
            steps: T for this call, at least 0; None for the loop's own. 0 is the backbone, bit for bit.
            **kwargs: What the backbone is called with by keyword.

        Raises:
            ValueError: `steps` is negative.
            TypeError: `steps` is not a whole number.
        """
        steps = self.config.steps if steps is None else check_steps(steps)
        outputs, residuals = self.run(Call(args, kwargs), steps, measure=True)
        return Refinement(outputs, torch.stack(residuals) if residuals else None)

    def audit(self, example: Example | None = None) -> Audit:
        """Establish which adapters can move the output, and what the loop costs, on a batch.

        Args:
            example: A batch; None makes one of the form the loop was built with (standard normal, seeded).

        Returns:
            Per adapter whether it is live, by gradient and by perturbation; parameters; FLOPs per step. The loop runs
            in eval mode meanwhile; its state, modes and random generators are as before afterwards.
        """
        if example is not None:
            return audit_loop(self, Call.from_example(example).detached())
        return audit_loop(self, synthesise(self.config.example, self.backbone))

    def save(self, folder: str | PathLike[str], *, include_backbone: bool = False) -> None:
        """Write adapters, context and per-step statistics to `folder`; see `torchcbl.storage.save`."""
        from torchcbl.storage import save

        save(self, folder, include_backbone=include_backbone)

    def run(
        self, call: Call, steps: int, psi: Sequence[Psi] | None = None, measure: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run the loop, with other adapters than its own if given.

        Args:
            call: The backbone's arguments.
            steps: T, at least 0.
            psi: One callable psi(h, z) per site, in execution order; None for the loop's adapters.
            measure: Whether to measure residuals where they cannot be told from the outputs.

        Returns:
            y_0..y_T, and the residuals (B,) of the steps that were measured.
        """
        if steps == 0:
            output = call.run(self.backbone)
            assert isinstance(output, Tensor)
            return [output], []
        adapters: Sequence[Psi] = list(self.adapters.values()) if psi is None else psi
        cut, order, alpha = self._cut_for(call), find_schedule(self.config.schedule), self.config.alpha
        first = cut.first(call)
        carried = order.carries_hidden(alpha)
        state = State(first.output, first.source, first.states if carried else ())
        outputs, residuals = [state.output], []
        for step in range(1, steps + 1):
            z = self.context(state.output if state.source is None else state.source)
            new = order.step(cut, first, state, z, adapters, alpha, step)
            if measure and carried:
                residuals.append(relative_change(new.hidden, state.hidden))
            outputs.append(new.output)
            state = new
        return outputs, residuals

    def _prepare_cuts(self) -> None:
        """Make the planned cut, and the replayed one that serves what the plan was not made for."""
        plan = replace(self.plan, kind="replayed", writes={})
        self._replayed = ReplayedCut(self.backbone, plan, self.step_norm, copy_all=True)
        try:
            self._cut = make_cut(self.backbone, self.plan, self.step_norm)
        except NotTraceable:  # a copy of a loop whose backbone has got hooks since
            self._cut = self._replayed

    def _cut_for(self, call: Call) -> Cut:
        """The planned cut; the replayed one where the call has another form, or hooks came that a trace would miss."""
        planned = call.pattern() == self.plan.pattern and all(isinstance(v, Tensor) for v in call.values())
        cut = self._cut if planned else self._replayed
        if not torch.compiler.is_compiling():
            cut.check_tree()
            if isinstance(cut, TracedCut) and cut.has_hooks():
                return self._replayed
        return cut

    def _check_source(self, context: Context) -> str | None:
        name = context.module_name
        known = [module for module, _ in self.backbone.named_modules() if module]
        if name is not None and name not in known:
            raise ValueError(not_found("context source", name, ["logits", "probs", *known], self.backbone))
        return name

    def _build_context(self, context: Context, call: Call) -> ContextMap:
        with torch.no_grad(), evaluating(self.backbone):
            output = call.detached().run(self.backbone)
        assert isinstance(output, Tensor)
        if output.ndim not in (2, 3):
            raise ValueError(
                f"the backbone's output has shape {tuple(output.shape)}, expected (B, K) or (B, N, K): wrap the "
                "backbone in a module that returns logits of that shape."
            )
        if context.module_name is None:
            return ContextMap(context, output.shape[-1], -1, pool=False)
        made = build_sites(self.backbone, [context.module_name], call.detached(), None)[0]
        return ContextMap(context, made.channels, made.channel_dim, pool=len(made.shape) > 2 and output.ndim == 2)

    def __getstate__(self) -> dict[str, object]:
        state = self.__dict__.copy()
        for name in ("_cut", "_replayed"):  # made again from the plan, around the copy's own modules
            del state[name]
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._prepare_cuts()

    def __repr__(self) -> str:
        return self._audit.describe(type(self).__name__, measures=False)


def check_steps(steps: object) -> int:
    """Return T if it is a whole number, at least 0."""
    if isinstance(steps, bool) or not isinstance(steps, Integral):
        raise TypeError(f"steps must be a whole number, got {steps!r}: pass the number of feedback steps T.")
    if int(steps) < 0:
        raise ValueError(f"steps must be at least 0, got {steps}: 0 is the backbone alone.")
    return int(steps)


def check_alpha(alpha: object) -> float:
    """Return alpha if it is a number in [0, 1]."""
    if isinstance(alpha, bool) or not isinstance(alpha, Real):
        raise TypeError(f"alpha must be a number in [0, 1], got {alpha!r}.")
    if not 0.0 <= float(alpha) <= 1.0:
        raise ValueError(
            f"alpha must lie in [0, 1], got {alpha}: it weights the OLD state, h <- alpha h + (1 - alpha) psi(h, z)."
        )
    return float(alpha)
