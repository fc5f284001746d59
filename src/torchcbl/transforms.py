"""The transforms of torch.func, whose tensors stand for several."""

from __future__ import annotations

import torch


def in_transform() -> bool:
    """Say whether this runs within a transform of torch.func: grad, vmap, jvp and what is made of them.

    Example:
        >>> in_transform()
        False
        >>> _ = torch.func.vmap(lambda x: print(in_transform()) or x)(torch.zeros(2))
        True
    """
    return torch._C._functorch.peek_interpreter_stack() is not None
