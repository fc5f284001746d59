"""From what the user named to one adapter per site."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from torchcbl.adapters.additive import Additive
from torchcbl.adapters.attention import Attention
from torchcbl.adapters.base import AdapterChoice, AdapterFactory
from torchcbl.adapters.concat import Concat
from torchcbl.adapters.film import Film
from torchcbl.adapters.gate import Gate
from torchcbl.adapters.joining import Attending, parting
from torchcbl.adapters.recurrent import Recurrent
from torchcbl.adapters.token import Token
from torchcbl.backbone.names import matches_glob
from torchcbl.backbone.site import Site
from torchcbl.dtypes import autocast_chooses, weights_dtype

Psi = Callable[..., Tensor]
ADAPTERS: dict[str, AdapterFactory] = {
    "film": Film,
    "gate": Gate,
    "additive": Additive,
    "concat": Concat,
    "attention": Attention,
    "token": Token,
    "recurrent": Recurrent,
}


def build_adapters(choice: AdapterChoice, sites: Sequence[Site], context_dim: int) -> list[nn.Module]:
    """Build one adapter per site.

    Args:
        choice: A name, a module class or factory called with (site, context_dim), a module, or a dict of these by
            site name or glob.
        sites: The sites, in execution order.
        context_dim: D, the size of z.

    Raises:
        ValueError: A name is unknown, the dict misses a site or names none, or one module is given for many sites.
        TypeError: The choice, or what a factory returns, is no adapter.
    """
    if isinstance(choice, Mapping):
        by_site = _by_site(choice, sites)
    else:
        _refuse_shared(choice, len(sites))
        by_site = {site.name: choice for site in sites}
    return [_build(by_site[site.name], site, context_dim) for site in sites]


def _refuse_shared(choice: str | nn.Module | AdapterFactory, count: int) -> None:
    if isinstance(choice, nn.Module) and count > 1:
        raise ValueError(
            f"one {type(choice).__name__} was given for {count} sites, which would share its weights: pass "
            "the class, a factory called with (site, context_dim), or a dict with one adapter per site."
        )


def bind(adapters: Iterable[Psi], mask: Tensor | None, tokens: Attending | None) -> list[Psi]:
    """Give adapters the call's mask, if they want it, and h and z in their weights' dtype; no tokens outlive a site."""
    bound = [_in_own_dtype(adapter, _masked(adapter, mask)) for adapter in adapters]
    return bound if tokens is None else [parting(adapter, tokens) for adapter in bound]


def _masked(adapter: Psi, mask: Tensor | None) -> Psi:
    wanted = mask is not None and getattr(adapter, "wants_mask", False)
    return functools.partial(adapter, mask=mask) if wanted else adapter


def _in_own_dtype(adapter: Psi, run: Psi) -> Psi:
    """Let an adapter, run as `run`, compute in the dtype of its weights; h' has h's own."""
    dtype = weights_dtype(adapter)
    return run if dtype is None else functools.partial(_cast, run=run, dtype=dtype)


def _cast(h: Tensor, z: Tensor, run: Psi, dtype: torch.dtype) -> Tensor:
    if h.dtype == z.dtype == dtype or autocast_chooses(h):
        return run(h, z)
    refined = run(h.to(dtype), z.to(dtype))
    return refined.to(h.dtype) if isinstance(refined, Tensor) else refined  # which `refine` refuses by name


def adapter_name(psi: Psi) -> str:
    """Name the class of an adapter, also of one that is bound."""
    while isinstance(psi, functools.partial):
        psi = psi.keywords.get("run", psi.func)
    return type(psi).__name__


CUSTOM = "custom"
"""What stands for an adapter whose code is the caller's own."""


def describe_adapters(choice: AdapterChoice) -> str | dict[str, str]:
    """Say in plain data what was chosen: names, with the options of a `functools.partial`; `CUSTOM` elsewhere."""
    if isinstance(choice, Mapping):
        return {site: _describe(one) for site, one in choice.items()}
    return _describe(choice)


def _describe(choice: str | nn.Module | AdapterFactory) -> str:
    if isinstance(choice, str):
        return choice
    options = choice.keywords if isinstance(choice, functools.partial) and not choice.args else {}
    plain = all(isinstance(value, (bool, int, float, str)) for value in options.values())
    factory = choice.func if options and plain and isinstance(choice, functools.partial) else choice
    name = next((name for name, known in ADAPTERS.items() if known is factory), CUSTOM)
    return name if name == CUSTOM or not options else f"{name} {json.dumps(options)}"


def restore_adapters(described: str | Mapping[str, str]) -> AdapterChoice:
    """Turn what `describe_adapters` said into a choice again.

    Raises:
        ValueError: An adapter is not known, or its options cannot be read.
    """
    if not isinstance(described, str):
        return {site: _restore(one) for site, one in described.items()}
    return _restore(described)


def _restore(described: str) -> str | AdapterFactory:
    name, _, options = described.partition(" ")
    if not options:
        return described
    if name not in ADAPTERS:
        raise ValueError(f"adapter '{name}' of the save is unknown: there are {', '.join(map(repr, ADAPTERS))}.")
    return functools.partial(ADAPTERS[name], **json.loads(options))


def _by_site(
    choices: Mapping[str, str | nn.Module | AdapterFactory], sites: Sequence[Site]
) -> dict[str, str | nn.Module | AdapterFactory]:
    found: dict[str, str | nn.Module | AdapterFactory] = {}
    for pattern, choice in choices.items():
        names = [site.name for site in sites if matches_glob(site.name, pattern)]
        if not names:
            raise ValueError(
                f"adapter names site '{pattern}', which is not among the sites {[site.name for site in sites]}."
            )
        found.update(dict.fromkeys(names, choice))
    missing = [site.name for site in sites if site.name not in found]
    if missing:
        raise ValueError(f"adapter gives nothing for site '{missing[0]}': name one for each of the sites.")
    for pattern, choice in choices.items():
        _refuse_shared(choice, sum(found[site] is choice for site in found if matches_glob(site, pattern)))
    return found


def _build(choice: str | nn.Module | AdapterFactory, site: Site, context_dim: int) -> nn.Module:
    if isinstance(choice, nn.Module):
        return choice
    if isinstance(choice, str):
        if choice not in ADAPTERS:
            close = difflib.get_close_matches(choice, ADAPTERS, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise ValueError(
                f"adapter '{choice}' is unknown: {hint}There are {', '.join(map(repr, ADAPTERS))}, or pass a "
                "module class of your own."
            )
        choice = ADAPTERS[choice]
    if not callable(choice):
        raise TypeError(
            f"adapter must be a name, a module, a class or factory called with (site, context_dim), or a dict of these "
            f"by site, got {type(choice).__name__}."
        )
    adapter = choice(site, context_dim)
    if not isinstance(adapter, nn.Module):
        raise TypeError(
            f"the adapter factory returned {type(adapter).__name__} for site '{site.name}', expected an nn.Module with "
            "forward(h, z)."
        )
    return adapter
