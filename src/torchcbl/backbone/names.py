"""Names and globs of submodules, and what to say when there is none."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

from torch import nn


def match_names(backbone: nn.Module, patterns: str | Sequence[str]) -> list[str]:
    """Turn names and globs into submodule names; `*` stays within one level of the tree, `**` crosses levels.

    Raises:
        ValueError: A pattern matches nothing (the message names the closest names), or none is given.
        TypeError: `patterns` is not a string or a sequence of strings.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 2))
        >>> match_names(net, "*"), match_names(net, "**")
        (['0', '1'], ['0', '0.0', '1'])
    """
    if not isinstance(patterns, (str, Sequence)):
        raise TypeError(f"sites must be names or globs of submodules (str), got {type(patterns).__name__}.")
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    if not wanted:
        raise ValueError("sites is empty: name at least one submodule; torchcbl.sites(model) lists them all.")
    for pattern in wanted:
        if not isinstance(pattern, str):
            raise TypeError(f"sites must be names or globs of submodules (str), got {type(pattern).__name__}.")
    names = submodules(backbone)
    matched = {pattern: [name for name in names if matches_glob(name, pattern)] for pattern in wanted}
    for pattern, found in matched.items():
        if not found:
            raise ValueError(not_found("site", pattern, names, backbone))
    return list(dict.fromkeys(name for pattern in wanted for name in matched[pattern]))


def not_found(kind: str, name: str, names: Iterable[str], backbone: nn.Module) -> str:
    """Say that `name` is no submodule, with the closest ones."""
    known = list(names)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = " or ".join(f"'{other}'" for other in close) if close else ", ".join(f"'{n}'" for n in known[:8])
    asked = f"did you mean {hint}?" if close else f"it has {hint or 'no submodules'}."
    return f"{kind} '{name}' not found in {type(backbone).__name__}: {asked} torchcbl.sites(model) lists them all."


def matches_glob(name: str, pattern: str) -> bool:
    """Say whether a dotted name matches a glob; `*` stays within one level, `**` crosses levels."""

    def walk(parts: list[str], globs: list[str]) -> bool:
        if not globs:
            return not parts
        if globs[0] == "**":
            return any(walk(parts[i:], globs[1:]) for i in range(len(parts) + 1))
        return bool(parts) and fnmatch.fnmatchcase(parts[0], globs[0]) and walk(parts[1:], globs[1:])

    return walk(name.split("."), pattern.split("."))


def is_glob(pattern: str) -> bool:
    """Say whether a name holds a wildcard."""
    return any(sign in pattern for sign in "*?[")


def submodules(backbone: nn.Module) -> list[str]:
    """List the dotted names of all submodules, in the order of the module tree."""
    return [name for name, _ in backbone.named_modules() if name]
