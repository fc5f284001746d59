"""What an attack sees of a network, where it may go, and what it wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Objective = Callable[[Tensor, Tensor], Tensor]
"""Maps logits of all steps (T + 1, B, K) and labels (B,) to what an attack maximises for each sample, (B,)."""
CHUNK = 125


class Attacked:
    """A network as an attack sees it: from pixels in [0, 1] to the logits of every step.

    Gradients pass through the normalisation, every step of the loop and the context; nothing is detached.

    Args:
        outputs: Maps normalised samples (B, C, H, W) and labels (B,) to logits (T + 1, B, K).
        mean: Per channel.
        std: Per channel.
    """

    def __init__(
        self, outputs: Callable[[Tensor, Tensor], Tensor], mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)
    ) -> None:
        self.outputs = outputs
        self.mean, self.std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the logits (T + 1, B, K) of pixels (B, C, H, W), with gradients.

        The only sample left is answered beside a copy of itself: an arm may need another in the batch.
        """
        if len(x) == 1:
            return self(torch.cat([x, x]), torch.cat([y, y]))[:, :1]
        normalised = (x - self.mean.to(x)) / self.std.to(x)
        return self.outputs(normalised.contiguous(memory_format=torch.channels_last), y)

    @torch.no_grad()
    def logits(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the logits (T + 1, B, K) in batches, without gradients."""
        return torch.cat([self(*batch) for batch in _batches(x, y)], dim=1)

    def gradient(self, x: Tensor, y: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """Compute an objective and its gradient.

        Returns:
            The objective (B,), its gradient (B, C, H, W), and the logits (T + 1, B, K), in batches and detached.
        """
        found = []
        for pixels, labels in _batches(x, y):
            pixels = pixels.detach().requires_grad_()
            with torch.enable_grad():
                logits = self(pixels, labels)
                value = objective(logits, labels)
                (slope,) = torch.autograd.grad(value.sum(), pixels)
            found.append((value.detach(), slope, logits.detach()))
        values, slopes, answers = zip(*found, strict=True)
        return torch.cat(values), torch.cat(slopes), torch.cat(answers, dim=1)


def on_step(step: int) -> Objective:
    """Aim at the cross entropy of y_tau."""
    return lambda logits, y: F.cross_entropy(logits[step], y, reduction="none")


def on_sum(logits: Tensor, y: Tensor) -> Tensor:
    """Aim at the sum of the cross entropies of all steps."""
    return torch.stack([F.cross_entropy(step, y, reduction="none") for step in logits]).sum(0)


def dlr_on_step(step: int) -> Objective:
    """Aim at the difference-of-logits ratio of y_tau, which neither shift nor scale of the logits changes.

        -(y_label - max_{k != label} y_k) / (y_[1] - y_[3]),     y_[i] the i-th largest

    Needs three classes. Source: Croce and Hein 2020, arXiv 2003.01690.
    """
    return lambda logits, y: _dlr(logits[step], y)


def _dlr(logits: Tensor, y: Tensor) -> Tensor:
    ordered = logits.sort(dim=1).values
    return -margin(logits, y) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return by how much the label's logit exceeds the best other, (B,): below 0 where the answer is wrong.

    Example:
        >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([1.])
    """
    label = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(~label, -torch.inf).amax(1) - logits.masked_fill(label, -torch.inf).amax(1)


def project(z: Tensor, x: Tensor, eps: float) -> Tensor:
    """Return the nearest point to z that is at most eps from x in every value, and in [0, 1]."""
    return torch.clamp(torch.minimum(torch.maximum(z, x - eps), x + eps), 0.0, 1.0)


def _batches(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Cut into batches of nearly equal size, none of a single sample unless there is but one."""
    parts = max(1, -(-len(x) // CHUNK))
    return list(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True))
