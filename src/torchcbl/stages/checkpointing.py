"""Gradient checkpointing inside a replayed part: what is computed again in the backward pass must see the feedback too.

`torch.utils.checkpoint` keeps a frame with the function to run again; while its region runs, that frame is held by the
hooks on saved tensors. There is no public way to it, so where the frame is not found as expected, that is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.utils.checkpoint


def saved_tensor_hooks() -> object:
    """What is done now to tensors that are saved for backward."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def wrap_recomputation(hooks: object, name: str, wrap: Callable[[Callable[..., None]], Callable[..., None]]) -> bool:
    """Wrap what the checkpointed region that these hooks belong to will run in the backward pass.

    Returns:
        Whether the hooks are those of a region.

    Raises:
        RuntimeError: They are, but torch keeps the function elsewhere than is known here.
    """
    if "checkpoint" not in str(hooks) or not isinstance(hooks, tuple):
        return False
    cells = getattr(hooks[0], "__closure__", None) or ()
    frames = [cell.cell_contents for cell in cells if hasattr(cell.cell_contents, "recompute_fn")]
    if len(frames) != 1:
        raise RuntimeError(
            f"'{name}' runs under torch.utils.checkpoint inside the part that is replayed, and torch "
            f"{torch.__version__} "
            "keeps what it needs to compute it again where torchcbl does not know: switch checkpointing off in the "
            "backbone, and checkpoint the whole loop."
        )
    frames[0].recompute_fn = wrap(frames[0].recompute_fn)
    return True


def check_not_reentrant(name: str) -> None:
    """Refuse the older kind of checkpointing, which runs without gradients first and leaves no frame.

    Raises:
        RuntimeError: The code runs within it.
    """
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "forward" and frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            raise RuntimeError(
                f"'{name}' runs under torch.utils.checkpoint with use_reentrant=True inside the part that is replayed, "
                "where it would be computed again without the feedback: pass use_reentrant=False (in transformers, "
                "gradient_checkpointing_kwargs={'use_reentrant': False})."
            )


def within_checkpoint() -> bool:
    """Say whether the code that calls this runs within torch's checkpointing, of either kind."""
    frame = sys._getframe().f_back
    while frame is not None and frame.f_code.co_filename != torch.utils.checkpoint.__file__:
        frame = frame.f_back
    return frame is not None


def called_by_checkpoint(depth: int) -> bool:
    """Say whether it is torch's checkpointing that makes a call, so many Python frames up."""
    return sys._getframe(depth).f_code.co_filename == torch.utils.checkpoint.__file__
