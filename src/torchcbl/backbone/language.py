"""Language models of transformers: no key/value caches inside a loop, and `generate` through it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping

from torch import nn

from torchcbl.backbone.calls import Call

_CACHES = ("past_key_values", "past_key_value", "cache", "past_buckets_states", "mems", "cache_params")


def without_cache(backbone: nn.Module, call: Call) -> Call:
    """Ask a backbone that would return a key/value cache not to.

    A cache holds the keys of states that had no feedback yet, and of those that are not computed again it would hold
    nothing; so the loop runs on whole sequences.

    Raises:
        ValueError: The call brings a cache or asks for one.
    """
    brought = [name for name in _CACHES if call.kwargs.get(name) is not None]
    if brought or call.kwargs.get("use_cache"):
        raise ValueError(
            f"the call of {type(backbone).__name__} has {brought[0] if brought else 'use_cache'}: a key/value cache "
            "holds "
            "states without feedback, so the loop runs on whole sequences. Pass use_cache=False, and all tokens."
        )
    if "use_cache" in call.kwargs or not _would_cache(backbone):
        return call
    return Call(call.args, {**call.kwargs, "use_cache": False})


def _would_cache(backbone: nn.Module) -> bool:
    config = getattr(backbone, "config", None)
    if not getattr(config, "use_cache", False):
        return False
    parameters = inspect.signature(backbone.forward).parameters.values()
    return any(p.name == "use_cache" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def looped(backbone: nn.Module, run: Callable[..., object]) -> nn.Module:
    """Return a stand-in for the backbone, with all its attributes and weights, whose forward is `run`.

    That holds also where the backbone has a forward of its own beside its class's, as torch.compile or accelerate puts
    it there; the backbone keeps it, and so it is what `run` may call.

    The backbone is neither edited nor copied, so other threads may use it meanwhile.
    """
    parameters = inspect.signature(type(backbone).forward).parameters

    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        return run(*args, **kwargs)

    forward.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    stand_in = copy.copy(backbone)
    vars(stand_in).pop("forward", None)  # which would come before the class's
    stand_in.__class__ = type(type(backbone).__name__, (type(backbone),), {"forward": forward})
    return stand_in


def generate(
    backbone: nn.Module, run: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> object:
    """Call the backbone's own `generate` with the loop in place of its forward.

    Raises:
        TypeError: The backbone cannot generate.
        ValueError: A cache is asked for.
    """
    if not callable(getattr(backbone, "generate", None)):
        raise TypeError(
            f"{type(backbone).__name__} has no generate: put the loop around a language model of transformers, such as "
            "AutoModelForCausalLM."
        )
    without_cache(backbone, Call((), dict(kwargs)))
    base = getattr(backbone, "get_base_model", lambda: backbone)()  # peft's models hand generate on to it

    def whole(*args: object, logits_to_keep: object = 0, **kwargs: object) -> object:
        del logits_to_keep  # generate asks for the last position's alone, but feedback needs those of all
        return run(*args, **kwargs)

    stand_in = looped(base, whole)
    return stand_in.generate(*args, **{**kwargs, "use_cache": False})  # type: ignore[operator]
