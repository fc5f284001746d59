"""Feedback adapters psi(h, z) (Eq. 4): one file each, all identity-initialised by default."""

from torchcbl.adapters.base import Adapter, AdapterChoice, AdapterFactory
from torchcbl.adapters.build import ADAPTERS, CUSTOM, bind_mask, build_adapters, describe_adapters
from torchcbl.adapters.film import Film
from torchcbl.adapters.gate import Gate

__all__ = [
    "ADAPTERS",
    "CUSTOM",
    "Adapter",
    "AdapterChoice",
    "AdapterFactory",
    "Film",
    "Gate",
    "bind_mask",
    "build_adapters",
    "describe_adapters",
]
