"""Fingerprints: what each tensor of a state is, without its values, and how one state differs from another."""

from __future__ import annotations

import ctypes
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

Inventory = dict[str, list[object]]
"""Of each tensor: dtype, shape, and the first 16 hex digits of the SHA-256 of its bytes."""

SHOWN = 3  # of each kind of difference, so that a message stays readable


def inventory(state: Mapping[str, object]) -> Inventory:
    """List dtype, shape and digest of each tensor; what a module has by `get_extra_state` is left out.

    What a quantised layer packs into a tuple counts as one value without a shape.

    Example:
        >>> import torch
        >>> inventory({"bias": torch.zeros(3)})
        {'bias': ['float32', [3], '15ec7bf0b50732b4']}
    """
    return {name: _row(value) for name, value in state.items() if isinstance(value, Tensor) or is_packed(name, value)}


def is_packed(name: str, value: object) -> bool:
    """Say whether an entry of a state is a weight that is no tensor, as quantised layers have."""
    return not isinstance(value, Tensor) and not name.endswith(_EXTRA_STATE_KEY_SUFFIX)


def is_wrapper(tensor: Tensor) -> bool:
    """Say whether a tensor has no memory of its own but stands for others, as torchao's quantised weights."""
    return is_traceable_wrapper_subclass(tensor)


def digest(tensor: Tensor) -> str:
    """Return the first 16 hex digits of the SHA-256 of a tensor's bytes, which do not depend on its strides.

    Raises:
        TypeError: The tensor has no bytes of its own, and does not say what it stands for.
    """
    if is_wrapper(tensor):
        parts, _ = tensor.detach().__tensor_flatten__()  # type: ignore[attr-defined]
        return _joint(digest(getattr(tensor, part)) for part in parts)
    flat = tensor.detach().cpu().contiguous()
    if flat.numel() and not flat.data_ptr():
        raise TypeError(f"a {type(tensor).__name__} has no bytes of its own to take a fingerprint of.")
    return _sha(ctypes.string_at(flat.data_ptr(), flat.numel() * flat.element_size()))


def _row(value: object) -> list[object]:
    if isinstance(value, Tensor):
        return [str(value.dtype).removeprefix("torch."), list(value.shape), digest(value)]
    return [type(value).__name__, [], _joint(_leaf(leaf) for leaf in pytree.tree_leaves(value))]


def _leaf(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return digest(value.dequantize()) if value.is_quantized else digest(value)


def _joint(parts: Iterable[str]) -> str:
    return _sha(" ".join(parts).encode())


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def differences(expected: Inventory, found: Inventory, digests: bool) -> list[str]:
    """Say how `found` differs from `expected`: renamed, missing, unexpected, of another shape, of other values.

    Args:
        expected: What was saved.
        found: What is there now.
        digests: Whether values count.

    Returns:
        One sentence per difference, at most a few of each kind; none when nothing differs.
    """
    renamed = renames(expected, found) if digests else {}
    taken = set(renamed.values())
    missing = [f"'{name}' is missing" for name in expected if name not in found and name not in renamed]
    extra = [f"'{name}' is not in the save" for name in found if name not in expected and name not in taken]
    shapes, values = [], []
    for name in (name for name in expected if name in found):
        (dtype, shape, value), (dtype_found, shape_found, value_found) = expected[name], found[name]
        if (dtype, shape) != (dtype_found, shape_found):
            shapes.append(f"'{name}' is {dtype_found} {shape_found}, expected {dtype} {shape}")
        elif digests and value != value_found:
            values.append(f"'{name}' has other values")
    return [
        *_capped(_describe_renames(renamed), "renamed"),
        *_capped(missing, "missing"),
        *_capped(extra, "not in the save"),
        *_capped(shapes, "of another dtype or shape"),
        *_capped(values, "with other values"),
    ]


def renames(expected: Inventory, found: Inventory) -> dict[str, str]:
    """Pair tensors that are missing with tensors that came instead and hold the same values.

    Several may hold the same values, as biases of zero do: the one whose name ends alike is taken.

    Example:
        >>> renames({"layer1.weight": ["float32", [2], "ab"]}, {"stage1.weight": ["float32", [2], "ab"]})
        {'layer1.weight': 'stage1.weight'}
    """
    candidates: dict[str, list[str]] = defaultdict(list)
    for name, row in found.items():
        if name not in expected:
            candidates[repr(row)].append(name)
    pairs = {}
    for name, row in expected.items():
        same = candidates[repr(row)] if name not in found else []
        if same:
            pairs[name] = max(same, key=lambda other: len(_split(name, other)[2]))
            same.remove(pairs[name])
    return pairs


def renamed_module(name: str, pairs: Mapping[str, str]) -> str | None:
    """Tell from renamed tensors what a module is called now, or None when they do not say.

    Example:
        >>> renamed_module("layer1.conv", {"layer1.conv.weight": "stage1.conv.weight"})
        'stage1.conv'
    """
    for old, new in pairs.items():
        before, after, _ = _split(old, new)
        if old.startswith(f"{name}.") and (name + ".").startswith(f"{before}." if before else ""):
            rest = name[len(before) :].strip(".")
            return ".".join(part for part in (after, rest) if part)
    return None


def check_backbone(backbone: nn.Module, expected: Inventory, modules: Mapping[str, str], digests: bool) -> None:
    """Refuse another backbone than the one that was saved.

    Args:
        backbone: The network.
        expected: The tensors it must have.
        modules: The modules it must have, by name, with what each is needed for.
        digests: Whether the tensors' values count.

    Raises:
        ValueError: It differs; the message lists how.
    """
    found = inventory(backbone.state_dict())
    pairs = renames(expected, found)
    known = {name for name, _ in backbone.named_modules(remove_duplicate=False)}
    lost = []
    for name, role in modules.items():
        if name not in known:
            now = renamed_module(name, pairs)
            hint = f", it is now '{now}'" if now in known else ""
            lost.append(f"{role} '{name}' is not in {type(backbone).__name__}{hint}")
    advice = "Load with the same architecture and weights, or save with include_backbone=True."
    refuse("the backbone", [*_capped(lost, "not in it"), *differences(expected, found, digests)], advice)


def refuse(what: str, found: Sequence[str], advice: str) -> None:
    """Raise a ValueError that lists the differences, if there are any."""
    if found:
        raise ValueError(f"{what} differs from what was saved: {'; '.join(found)}. {advice}")


def _describe_renames(pairs: Mapping[str, str]) -> list[str]:
    """Write renamed tensors module by module."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for old, new in pairs.items():
        before, after, _ = _split(old, new)
        groups[before, after].append(old)
    lines = []
    for (before, after), names in groups.items():
        if len(names) == 1:
            lines.append(f"renamed: '{names[0]}' is now '{pairs[names[0]]}' (same values)")
        else:
            many = f"{len(names)} tensors, same values"
            lines.append(f"renamed: '{_join(before, '*')}' is now '{_join(after, '*')}' ({many})")
    return lines


def _split(old: str, new: str) -> tuple[str, str, list[str]]:
    """Split two dotted names into what differs in front and the parts that they end with in common."""
    before, after = old.split("."), new.split(".")
    common: list[str] = []
    while before and after and before[-1] == after[-1]:
        common.insert(0, before.pop())
        after.pop()
    return ".".join(before), ".".join(after), common


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _capped(lines: Iterable[str], kind: str) -> list[str]:
    found = list(lines)
    return found[:SHOWN] + ([f"and {len(found) - SHOWN} more {kind}"] if len(found) > SHOWN else [])
