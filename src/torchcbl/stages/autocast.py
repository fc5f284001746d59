"""Whether a cut keeps the autocast contexts of a forward, found without the arithmetic of low precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torchcbl.backbone.calls import Call
from torchcbl.stages.base import tensors_in


class Uncast(TorchFunctionMode):
    """Compute as without autocast, and count what would run under another autocast than that around the mode.

    A convolution in bfloat16 takes 30 times as long as one in float32 on a CPU that has no instructions for it.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.around = self._state()
        self.others = 0

    def _state(self) -> tuple[bool, torch.dtype]:
        return torch.is_autocast_enabled(self.device), torch.get_autocast_dtype(self.device)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        self.others += self._state() != self.around
        with torch.autocast(self.device, enabled=False):
            return func(*args, **(kwargs or {}))


def under_autocast(call: Call, runs: Sequence[Callable[[Call], object]]) -> list[tuple[int, list[Tensor]]]:
    """Run the same call in several ways inside autocast, without gradients.

    Returns:
        For each how many functions ran under another autocast than that around it, or -1 where the arithmetic was that
        of low precision, and the tensors that it returned.
    """
    device = next((value.device.type for value in call.values() if isinstance(value, Tensor)), "cpu")
    with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
        found = []
        try:
            for run in runs:
                with Uncast(device) as mode:
                    found.append((mode, tensors_in(run(call.detached()))))
            return [(mode.others, outputs) for mode, outputs in found]
        except Exception:  # it casts by itself, and without autocast its weights do not go along
            return [(-1, tensors_in(run(call.detached()))) for run in runs]
