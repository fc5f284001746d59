"""Waveforms to logits, for deployment: the front end that was trained with, and the network."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from torch import Tensor, nn

from torchcbl.lab.sound import saving
from torchcbl.lab.sound.front_end import MelFrontEnd
from torchcbl.loop import ContextLoop
from torchcbl.refinement import Refinement


class Recogniser(nn.Module):
    """Recognise words in waveforms: y = network(front_end(waveforms)).

    The front end is the one that the network was trained with, so what is saved is what is served, bit for bit. It goes
    through torch.export, and through that to ONNX, as one module.

    Args:
        front_end: Fitted to the training part.
        network: Maps spectrograms (B, 1, bins, frames) to logits (B, K): a plain module or a `torchcbl.ContextLoop`.
        words: What each class is called, in the order of the logits; length K.

    Raises:
        ValueError: `words` is empty or names a word twice.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64 * 101, 2))
        >>> recogniser = Recogniser(MelFrontEnd(), network, words=("no", "yes"))
        >>> recogniser(torch.zeros(3, 16_000)).shape
        torch.Size([3, 2])
    """

    def __init__(self, front_end: MelFrontEnd, network: nn.Module, words: Sequence[str]) -> None:
        super().__init__()
        if isinstance(words, str) or not words or len(set(words)) != len(words):
            raise ValueError(f"words must name each class once, got {words!r}: list them in the order of the logits")
        self.front_end, self.network, self.words = front_end, network, tuple(words)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Map waveforms (B, S) in [-1, 1] to logits (B, K); y_T where the network is a loop."""
        y: Tensor = self.network(self.front_end(waveforms))
        return y

    def refine(self, waveforms: Tensor) -> Refinement:
        """Return all steps: y_0..y_T where the network is a `ContextLoop`, and y_0 alone where it is a plain module.

        Args:
            waveforms: In [-1, 1], (B, S).

        Returns:
            The refinement; its outputs are (B, K).
        """
        x = self.front_end(waveforms)
        return self.network.refine(x) if isinstance(self.network, ContextLoop) else Refinement((self.network(x),))

    def save_front_end(self, folder: str | PathLike[str]) -> None:
        """Write front end and words to a folder, which may be the one that the network is saved to.

        `front_end.safetensors` holds window, filters, mean and std; `front_end.json` settings, words and a fingerprint.

        Args:
            folder: Made if it is not there; files of an earlier save are replaced.

        Raises:
            OSError: The folder cannot be written.
        """
        saving.save_front_end(Path(folder), self.front_end, self.words)

    @classmethod
    def load_front_end(cls, folder: str | PathLike[str]) -> tuple[MelFrontEnd, tuple[str, ...]]:
        """Read what `save_front_end` wrote; the filter bank comes from the file, so no audio library is needed.

        Args:
            folder: Where it was saved.

        Returns:
            The front end, bit for bit as it was saved, and the words: `Recogniser(front_end, network, words)`.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, of another format, or does not belong to the other.
        """
        return saving.load_front_end(Path(folder))
