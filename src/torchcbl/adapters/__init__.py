"""Feedback adapters psi(h, z) (Eq. 4): one file each, all identity-initialised by default."""

from torchcbl.adapters.additive import Additive
from torchcbl.adapters.attention import Attention
from torchcbl.adapters.base import Adapter, AdapterChoice, AdapterFactory
from torchcbl.adapters.build import (
    ADAPTERS,
    CUSTOM,
    adapter_name,
    bind,
    build_adapters,
    describe_adapters,
    restore_adapters,
)
from torchcbl.adapters.concat import Concat
from torchcbl.adapters.film import Film
from torchcbl.adapters.gate import Gate
from torchcbl.adapters.joining import Attending, attending
from torchcbl.adapters.recurrent import Recurrent
from torchcbl.adapters.token import Token

__all__ = [
    "ADAPTERS",
    "CUSTOM",
    "Adapter",
    "AdapterChoice",
    "AdapterFactory",
    "Additive",
    "Attending",
    "Attention",
    "Concat",
    "Film",
    "Gate",
    "Recurrent",
    "Token",
    "adapter_name",
    "attending",
    "bind",
    "build_adapters",
    "describe_adapters",
    "restore_adapters",
]
