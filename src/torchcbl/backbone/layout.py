"""Where the tensor stands in what a module returns: plain, in a tuple, dict or dataclass, or in a packed sequence."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Key = str | int
_PREFERRED = ("logits", "last_hidden_state", "out", "prediction_logits", "sample")
_PASSED_OVER = ("loss", "past_key_values", "attentions")


@dataclass(frozen=True)
class Layout:
    """Read a batch-first tensor from a module's output, and put another in its place.

    Args:
        path: Keys, indices or field names that lead to it; empty when the output is the tensor.
        packed: Whether a `PackedSequence` stands there; it is read as a padded tensor (B, N, C).
        batch_dim: Which axis of the tensor is the batch; it is read as axis 0.

    Example:
        >>> output = (torch.zeros(7, 2, 3), "state")
        >>> layout = Layout(path=(0,), batch_dim=1)
        >>> layout.read(output).shape
        torch.Size([2, 7, 3])
        >>> layout.write(output, torch.ones(2, 7, 3))[0].shape
        torch.Size([7, 2, 3])
    """

    path: tuple[Key, ...] = ()
    packed: bool = False
    batch_dim: int = 0

    def read(self, output: object) -> Tensor:
        """Return the tensor, batch first."""
        value = output
        for key in self.path:
            value = _get(value, key)
        if self.packed:
            assert isinstance(value, PackedSequence)
            padded: Tensor = pad_packed_sequence(value, batch_first=True)[0]
            return padded
        if not isinstance(value, Tensor):
            raise TypeError(f"expected a tensor{self.where()} of what the module returns, got {type(value).__name__}")
        return value.movedim(self.batch_dim, 0) if self.batch_dim else value

    def write(self, output: object, tensor: Tensor) -> object:
        """Return the output with another tensor, given batch first, in its place; the output itself stays as it is."""
        return self._write(output, self.path, tensor)

    def where(self) -> str:
        """Say where it stands, for messages."""
        return f" at {''.join(f'[{key!r}]' for key in self.path)}" if self.path else ""

    def _write(self, output: object, path: Sequence[Key], tensor: Tensor) -> object:
        if path:
            return _set(output, path[0], self._write(_get(output, path[0]), path[1:], tensor))
        if self.packed:
            assert isinstance(output, PackedSequence)
            return _pack_like(tensor, output)
        return tensor.movedim(0, self.batch_dim) if self.batch_dim else tensor


def find_layout(output: object, key: Key | None = None) -> Layout | None:
    """Find the tensor in what a module returns, or None where there is none.

    A tensor is itself; of a mapping or dataclass "logits", "last_hidden_state" or "out" is taken, else, as in a tuple,
    the first floating-point tensor with at least two axes.

    Args:
        output: What the module returned.
        key: The key, field or index to take instead.
    """
    if key is not None:
        found = find_layout(_get(output, key))
        return None if found is None else dataclasses.replace(found, path=(key, *found.path))
    if isinstance(output, Tensor):
        return Layout()
    if isinstance(output, PackedSequence):
        return Layout(packed=True)
    for name in _names(output):
        value = _get(output, name)
        if isinstance(value, PackedSequence) or (
            isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2
        ):
            return Layout((name,), packed=isinstance(value, PackedSequence))
    return None


def read_like(layout: Layout, output: object, named: bool) -> Tensor:
    """Read a tensor where it stood in another output, or, unless it was named, where it stands in one of another type.

    Raises:
        TypeError: There is none.
    """
    return _find_like(layout, output, named)[1]


def write_like(layout: Layout, output: object, tensor: Tensor, named: bool) -> object:
    """Return the output with another tensor in the place of the one that `read_like` reads."""
    return _find_like(layout, output, named)[0].write(output, tensor)


def _find_like(layout: Layout, output: object, named: bool) -> tuple[Layout, Tensor]:
    try:
        return layout, layout.read(output)
    except (TypeError, LookupError, AttributeError, AssertionError) as error:
        found = None if named else find_layout(output)
        if found is None:
            raise TypeError(
                f"the backbone returns {type(output).__name__} without y{layout.where()}, which the example had: call "
                "it "
                "as in the example, or name y, output='...'."
            ) from error
        return found, found.read(output)


def _names(output: object) -> list[Key]:
    """The keys of a container, those preferred first."""
    if isinstance(output, Mapping):
        names: list[Key] = [name for name in output if name not in _PASSED_OVER]
    elif dataclasses.is_dataclass(output):
        names = [field.name for field in dataclasses.fields(output) if field.name not in _PASSED_OVER]
    elif isinstance(output, (tuple, list)):
        return list(range(len(output)))
    else:
        return []
    return [name for name in _PREFERRED if name in names] + [name for name in names if name not in _PREFERRED]


def _get(output: object, key: Key) -> object:
    if isinstance(output, (Mapping, tuple, list)) and not (isinstance(key, str) and isinstance(output, tuple)):
        return output[key]  # type: ignore[index]
    return getattr(output, str(key))


def _set(output: object, key: Key, value: object) -> object:
    """Return the container with one entry replaced, of the same type."""
    if isinstance(output, tuple):
        index = key if isinstance(key, int) else output._fields.index(key)  # type: ignore[attr-defined]
        entries = [*output[:index], value, *output[index + 1 :]]
        return type(output)(*entries) if hasattr(output, "_fields") else type(output)(entries)
    if isinstance(output, list):
        assert isinstance(key, int)
        return [*output[:key], value, *output[key + 1 :]]
    if isinstance(output, Mapping):
        changed = copy.copy(output)  # the dataclass mappings of transformers keep field and entry equal
        changed[key] = value  # type: ignore[index]
        return changed
    return dataclasses.replace(output, **{str(key): value})  # type: ignore[type-var]


def _pack_like(tensor: Tensor, packed: PackedSequence) -> PackedSequence:
    """Pack (B, N, C) with the lengths and the order of another packed sequence."""
    samples = torch.arange(int(packed.batch_sizes[0]), device=packed.batch_sizes.device)  # the CPU, whatever is default
    lengths = (packed.batch_sizes[None, :] > samples[:, None]).sum(1)
    ordered = tensor if packed.sorted_indices is None else tensor.index_select(0, packed.sorted_indices)
    data = pack_padded_sequence(ordered, lengths, batch_first=True).data
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
