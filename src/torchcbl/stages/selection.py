"""Taking samples out of what step 0 of a call has kept, so that finished ones need not be computed any further.

What a cut keeps are values of the backbone's own, of any shape: which axis of them counts samples is not written
anywhere. It is learnt once per cut, by running step 0 on some of the samples and comparing shapes, and what has been
learnt is checked against that run's values. What could be read in two ways (the samples are alike), and numbers of
samples in their batch (which would point elsewhere in a smaller one), are not taken apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchcbl.solvers.base import NotSelectableError


@dataclass(frozen=True)
class Axis:
    """Samples are on axis `dim` of a tensor, `ratio` entries each, or a number counts `ratio` per sample (dim None).

    Args:
        dim: The axis of a tensor, or of the shape of one.
        ratio: Entries per sample.
        outer: Whether the entries of one sample are neighbours; else the sample counts fastest.
    """

    dim: int | None
    ratio: int
    outer: bool = True

    def select(self, value: object, index: Tensor, batch: int) -> object:
        """Take samples out of a value."""
        if self.dim is None:
            assert isinstance(value, int)
            return value // batch * len(index)
        if isinstance(value, torch.Size):
            return torch.Size(
                [size // batch * len(index) if dim == self.dim else size for dim, size in enumerate(value)]
            )
        assert isinstance(value, Tensor)
        if value.shape[self.dim] != self.ratio * batch:
            raise NotSelectableError
        if self.ratio == 1:
            return value.index_select(self.dim, index)
        sizes = (batch, self.ratio) if self.outer else (self.ratio, batch)
        parted = value.reshape(*value.shape[: self.dim], *sizes, *value.shape[self.dim + 1 :])
        picked = parted.index_select(self.dim if self.outer else self.dim + 1, index)
        return picked.flatten(self.dim, self.dim + 1)


Rules = tuple["Axis | torch.Size | None", ...]
"""For each leaf of what is kept: where its samples are; where a tensor holds none, its shape; None for other values."""


def learn(whole: object, part: object, index: Tensor, batch: int) -> Rules:
    """Find where samples are in what was kept of a whole batch, given what was kept of some of it.

    Raises:
        NotSelectableError: It cannot be found, or what it would give is not what the part has.
    """
    leaves, others = _flatten(whole)[0], _flatten(part)[0]
    if len(leaves) != len(others):
        raise NotSelectableError
    return tuple(_learn(a, b, index, batch) for a, b in zip(leaves, others, strict=True))


def _flatten(value: object) -> tuple[list[object], pytree.TreeSpec]:
    """Take a value apart into tensors, shapes and what is neither."""
    return pytree.tree_flatten(value, is_leaf=lambda part: isinstance(part, torch.Size))


def select(whole: object, rules: Rules, index: Tensor, batch: int) -> object:
    """Take samples out of what was kept.

    Raises:
        NotSelectableError: It has another form than what the rules were learnt from.
    """
    leaves, tree = _flatten(whole)
    if len(leaves) != len(rules):
        raise NotSelectableError
    done: dict[int, object] = {}  # what is shared stays shared
    picked = []
    for leaf, rule in zip(leaves, rules, strict=True):
        if not isinstance(rule, Axis):
            if rule is not None and (not isinstance(leaf, Tensor) or leaf.shape != rule):
                raise NotSelectableError
            picked.append(leaf)
            continue
        if id(leaf) not in done:
            done[id(leaf)] = rule.select(leaf, index, batch)
        picked.append(done[id(leaf)])
    return pytree.tree_unflatten(picked, tree)


def _learn(whole: object, part: object, index: Tensor, batch: int) -> Axis | torch.Size | None:
    if isinstance(whole, Tensor) and isinstance(part, Tensor) and whole.ndim == part.ndim:
        return _learn_axis(whole, part, index, batch)
    if isinstance(whole, torch.Size) and isinstance(part, torch.Size) and len(whole) == len(part):
        return _learn_size(whole, part, index, batch)
    if isinstance(whole, int) and isinstance(part, int) and not isinstance(whole, bool) and whole != part:
        if whole % batch == 0 and part == whole // batch * len(index):
            return Axis(None, whole // batch)
        raise NotSelectableError
    if isinstance(whole, Tensor) or isinstance(part, Tensor) or type(whole) is not type(part):
        raise NotSelectableError
    if whole is part or (isinstance(whole, (str, int, float, bool, torch.dtype, torch.device)) and whole == part):
        return None
    raise NotSelectableError


def _learn_size(whole: torch.Size, part: torch.Size, index: Tensor, batch: int) -> Axis | None:
    dims = [dim for dim in range(len(whole)) if whole[dim] != part[dim]]
    if not dims:
        return None
    rule = _learn(whole[dims[0]], part[dims[0]], index, batch)
    if len(dims) > 1 or not isinstance(rule, Axis):
        raise NotSelectableError
    return Axis(dims[0], rule.ratio)


def _learn_axis(whole: Tensor, part: Tensor, index: Tensor, batch: int) -> Axis | torch.Size:
    dims = [dim for dim in range(whole.ndim) if whole.shape[dim] != part.shape[dim]]
    if not dims:
        if _alike(whole, part):
            return whole.shape
        raise NotSelectableError
    dim = dims[0]
    ratio = whole.shape[dim] // batch
    if len(dims) > 1 or whole.shape[dim] % batch or part.shape[dim] != ratio * len(index) or _numbers(whole, batch):
        raise NotSelectableError
    found = [
        axis
        for axis in (Axis(dim, ratio, outer) for outer in (True, False)[: 1 if ratio == 1 else 2])
        if _alike(axis.select(whole, index, batch), part)
    ]
    if len(found) != 1:
        raise NotSelectableError
    return found[0]


def _numbers(value: Tensor, batch: int) -> bool:
    """Say whether a tensor holds the numbers of the samples in their batch, as an order to sort them by does."""
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool or value.numel() != batch:
        return False
    return torch.equal(value.flatten().sort()[0], torch.arange(batch, device=value.device, dtype=value.dtype))


def _alike(a: object, b: Tensor) -> bool:
    """Say whether two tensors are equal up to the rounding of other batch sizes."""
    assert isinstance(a, Tensor)
    if not a.is_floating_point():
        return torch.equal(a, b)
    a, b = a.detach().double(), b.detach().double()
    scale = a[a.isfinite()].abs().max() if bool(a.isfinite().any()) else a.new_ones(())
    return torch.allclose(a, b, rtol=1e-2, atol=1e-3 * float(scale), equal_nan=True)
