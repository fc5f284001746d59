"""Batch norm and dropout across the steps of one call.

Step 0 is the backbone itself. In the steps after it the replayed part sees other activations, so each step keeps
batch statistics of its own (as CORnet-S, Kubilius et al. 2019, arXiv 1909.06161, and BLT nets, Spoerer et al. 2020,
do), while the affine weights are shared. Dropout masks are drawn once, at step 0, and held; this file has what a traced
cut needs for that, a replayed one holds all noise (`stages/noise.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

StepNormMode = Literal["per_step", "shared", "frozen", "shared_tracked"]
STEP_NORM_MODES: tuple[str, ...] = get_args(StepNormMode)
Step = int | Tensor
"""tau >= 1, of all samples, or (B,), each sample's own."""


class StepStatistics(nn.Module):
    """Hold the running mean and variance of one batch norm for the steps 1..T.

    A step that has never been trained uses the backbone's own statistics, so that a loop put around a pretrained
    network starts as that network; training starts from the statistics the backbone had when the loop was built, so
    load pretrained weights first. Steps beyond T use those of step T.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: _BatchNorm, steps: int) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.register_buffer("running_mean", norm.running_mean.detach().repeat(steps, 1))
        self.register_buffer("running_var", norm.running_var.detach().repeat(steps, 1))
        counts = torch.zeros(steps, dtype=torch.long, device=norm.running_mean.device)
        self.register_buffer("num_batches_tracked", counts)

    def forward(self, norm: _BatchNorm, x: Tensor, step: Step) -> Tensor:
        """Normalise x (B, C, ...) at step tau >= 1 with the affine weights of `norm`."""
        if isinstance(step, Tensor):
            return self._at_own_steps(norm, x, step)
        row = min(step, len(self.running_mean)) - 1
        mean, var, count = self.running_mean[row], self.running_var[row], self.num_batches_tracked[row]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if norm.training:
            if norm.momentum is None and step == 1 and norm.num_batches_tracked == 1:
                self.num_batches_tracked.zero_()  # the backbone's average has begun anew, as by torch's `update_bn`
            count += 1
            momentum = 1.0 / float(count) if norm.momentum is None else norm.momentum
            return F.batch_norm(x, mean, var, norm.weight, norm.bias, True, momentum, norm.eps)
        mean = torch.where(count > 0, mean, norm.running_mean)
        var = torch.where(count > 0, var, norm.running_var)
        return F.batch_norm(x, mean, var, norm.weight, norm.bias, False, 0.0, norm.eps)

    def _at_own_steps(self, norm: _BatchNorm, x: Tensor, steps: Tensor) -> Tensor:
        """Normalise each sample at its own step, (B,); in training by the batch, of which nothing is fed."""
        if norm.training:
            return F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        row = self._rows(steps, len(x))
        fed = self.num_batches_tracked[row, None] > 0
        mean = torch.where(fed, self.running_mean[row], norm.running_mean).flatten()
        var = torch.where(fed, self.running_var[row], norm.running_var).flatten()
        weight, bias = (None if own is None else own.repeat(len(x)) for own in (norm.weight, norm.bias))
        channels = x.reshape(1, -1, *x.shape[2:])  # those of each sample by themselves
        return F.batch_norm(channels, mean, var, weight, bias, False, 0.0, norm.eps).reshape(x.shape)

    def _rows(self, steps: Tensor, count: int) -> Tensor:
        """Find the row of each of `count` entries; neighbours are of one sample, as after `x.flatten(0, 1)`."""
        ratio, rest = divmod(count, len(steps))
        own = steps.max().expand(count) if rest else steps.repeat_interleave(ratio)  # with a rest, whose is unknown
        return own.clamp(max=len(self.running_mean)) - 1


class CallStatistics:
    """The running statistics of one call, for what is computed again when other calls may have moved them.

    Args:
        modules: Where batch norms and their `StepStatistics` are.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self.modules = modules
        self._noted: list[tuple[Tensor, Tensor]] | None = None

    def note(self) -> None:
        """Note the statistics that training feeds, unless that has been done."""
        if self._noted is None:
            parts = [part for module in self.modules for part in module.modules()]
            holders = [part for part in parts if isinstance(part, (_BatchNorm, StepStatistics))]
            fed = any(part.training for part in holders if isinstance(part, _BatchNorm))
            buffers = [buffer for part in holders for buffer in part.buffers(recurse=False)] if fed else []
            self._noted = [(buffer, buffer.clone()) for buffer in buffers]

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Put what was noted in place; at the end, what was there, so that nothing has been fed."""
        self.note()
        noted = self._noted or []
        present = [(buffer, buffer.clone()) for buffer, _ in noted]
        _put(noted)
        try:
            yield
        finally:
            _put(present)


def _put(values: Iterable[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in values:
        buffer.data.copy_(value)  # past the version counter: a graph may have saved the buffer


class StepNorm(nn.Module):
    """Say how each batch norm of the replayed part normalises at the steps tau >= 1.

    Args:
        norms: The batch norms of the replayed part by name.
        mode: "per_step": statistics of each step's own. "shared": one set, fed by step 0 alone; in training the
            later steps normalise by their batch and feed nothing. "frozen": the later steps always use the running
            statistics of step 0. "shared_tracked": one set, fed by all steps, which is what calling the modules
            again without further thought does.
        steps: T, how many sets "per_step" keeps.
    """

    def __init__(self, norms: dict[str, _BatchNorm], mode: StepNormMode, steps: int) -> None:
        super().__init__()
        self.mode = mode
        tracked = {name: norm for name, norm in norms.items() if norm.running_mean is not None}
        kept = tracked if mode == "per_step" and steps > 0 else {}
        for name, norm in tracked.items():
            if isinstance(norm, nn.SyncBatchNorm) and mode in ("per_step", "shared"):
                raise ValueError(
                    f"'{name}' is a SyncBatchNorm, whose statistics per step are not supported: pass "
                    'step_norm="frozen" or "shared_tracked".'
                )
        self.statistics = nn.ModuleDict({module_key(name): StepStatistics(norm, steps) for name, norm in kept.items()})

    def applies(self, norm: _BatchNorm) -> bool:
        """Say whether later steps differ from a plain call of this batch norm."""
        return norm.running_mean is not None and self.mode != "shared_tracked"

    def forward(self, name: str, norm: _BatchNorm, x: Tensor, step: Step) -> Tensor:
        """Normalise x (B, C, ...) as the batch norm called `name` at step tau >= 1; only where `applies`."""
        key = module_key(name)
        if key in self.statistics:
            normalised: Tensor = self.statistics[key](norm, x, step)
            return normalised
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if norm.training and self.mode != "frozen":
            return F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
        mean, var = norm.running_mean, norm.running_var
        if norm.training:  # copies, since the next step 0 writes into the originals and backward would see that
            mean, var = mean.clone(), var.clone()
        return F.batch_norm(x, mean, var, norm.weight, norm.bias, False, 0.0, norm.eps)


def module_key(name: str) -> str:
    """Turn a dotted name into a key of a ModuleDict, which may neither hold dots nor be one of its attributes."""
    key = name.replace(".", "/")
    return f"{key}/" if hasattr(nn.ModuleDict, key) or key == "training" else key


def has_own_forward(norm: _BatchNorm) -> bool:
    """Say whether a batch norm does more than normalise, as timm's do, which have the activation inside."""
    return not type(norm).forward.__module__.startswith("torch.")


def batch_norms(named: Iterable[tuple[str, nn.Module]]) -> dict[str, _BatchNorm]:
    """Pick the batch norms out of named modules."""
    return {name: module for name, module in named if isinstance(module, _BatchNorm)}


def norms_at(backbone: nn.Module, names: Iterable[str]) -> dict[str, _BatchNorm]:
    """Find batch norms by name, as they are now: a mode or a module may have changed since the loop was built."""
    return batch_norms((name, backbone.get_submodule(name)) for name in names)


def differs_by_step(mode: str, norms: Iterable[_BatchNorm]) -> bool:
    """Say whether a step is another map than the one before: by statistics of its own, or of the batch in training."""
    return any(mode == "per_step" or (mode != "frozen" and norm.training) for norm in norms)


def choose_step_norm(mode: str | None, norms: dict[str, _BatchNorm], steps: int) -> StepNorm:
    """Check `step_norm` and build it; None means "per_step".

    Raises:
        ValueError: The mode is unknown.
    """
    if mode is not None and mode not in STEP_NORM_MODES:
        raise ValueError(f"step_norm must be one of {', '.join(map(repr, STEP_NORM_MODES))}, got {mode!r}.")
    return StepNorm(norms, "per_step" if mode is None else mode, steps)  # type: ignore[arg-type]


_MULTIPLICATIVE = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def is_dropout(module: nn.Module) -> bool:
    """Say whether a module is one of torch's dropouts, whose mask is held over the steps."""
    return isinstance(module, _DropoutNd)


def can_hold(module: nn.Module) -> bool:
    """Say whether a dropout's mask is a factor, so that it can be held (alpha dropout's is not)."""
    return isinstance(module, _MULTIPLICATIVE)


def draw_mask(dropout: nn.Module, x: Tensor) -> Tensor | None:
    """Draw a dropout's mask for x (0 or 1/(1-p), x's shape), or None in eval mode.

    It takes from the random generator just what the dropout itself would, and x * mask is bit for bit its output.
    """
    assert isinstance(dropout, _DropoutNd)
    if not dropout.training or dropout.p == 0.0:
        return None
    ones = torch.ones_like(x, requires_grad=False)
    mask: Tensor = dropout.forward(ones)
    return mask


def apply_mask(x: Tensor, mask: Tensor | None) -> Tensor:
    """Multiply by a held dropout mask; None leaves x as it is."""
    return x if mask is None else x * mask
