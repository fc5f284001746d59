"""A data set of sound: waveforms, their spectrograms on disk, and the front end between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from torchcbl.lab.data.clips import Clips
from torchcbl.lab.data.dataset import PARTS, Dataset, Form
from torchcbl.lab.data.folders import load_audio_folder
from torchcbl.lab.data.own import named, three_parts
from torchcbl.lab.data.progress import Progress, silent
from torchcbl.lab.data.speech_commands import FIVE_WORDS, WORDS_35, load_speech_commands
from torchcbl.lab.data.strata import stratified_sample
from torchcbl.lab.sound.batches import SoundBatches
from torchcbl.lab.sound.features import features_on_disk, num_frames
from torchcbl.lab.sound.front_end import MelFrontEnd
from torchcbl.lab.sound.noise import NoiseMixer
from torchcbl.lab.sound.saving import save_front_end

if TYPE_CHECKING:
    from torchcbl.lab.recipe import Recipe

WORDS = {"speech-commands": WORDS_35, "speech-five-words": FIVE_WORDS}


@dataclass(frozen=True, eq=False)
class SoundDataset(Dataset):
    """Hold the three parts of a data set of sound.

    Args:
        clips: Waveforms by part.
        features: Their log-mel spectrograms by part, as of `features_on_disk`.
        front_end: Fitted to the training part.
        classes: Their names.
        recordings: Background noise by name; empty where the data have none.
        masking: Whether training batches are masked.
        noise: Mixed into training batches; None for none.
    """

    clips: dict[str, Clips]
    features: dict[str, NDArray[np.float32]]
    front_end: MelFrontEnd
    classes: tuple[str, ...]
    recordings: dict[str, NDArray[np.int16]]
    masking: bool = False
    noise: NoiseMixer | None = None

    @property
    def form(self) -> Form:
        """See `Dataset.form`: one channel of mel bins by frames."""
        frames = num_frames(self.clips["train"], self.front_end)
        return Form((1, self.front_end.settings.bins, frames), self.classes)

    def size(self, part: str) -> int:
        """See `Dataset.size`."""
        return len(self.clips[part])

    def raw(self, part: str) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
        """See `Dataset.raw`: int16, (N, S)."""
        return self.clips[part].waveforms, self.clips[part].labels.numpy()

    def batches(
        self,
        part: str,
        batch_size: int,
        *,
        seed: int | None = None,
        limit: int | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> SoundBatches:
        """See `Dataset.batches`."""
        clips, features = self.clips[part], self.features[part]
        if limit is not None and limit < len(clips):
            indices = stratified_sample(clips.labels, limit, seed=0)
            clips, features = clips.take(indices), features[indices.numpy()]
        training = seed is not None
        return SoundBatches(
            clips,
            features,
            self.front_end,
            batch_size=batch_size,
            seed=seed,
            masking=self.masking and training,
            noise=self.noise if training else None,
            memory_format=memory_format,
        )

    def save_front_end(self, folder: Path) -> None:
        """Keep the front end and the words beside a network, so that what is served is what was trained."""
        save_front_end(folder, self.front_end, self.classes)


def load_sound(recipe: Recipe, folder: Path | None = None, progress: Progress = silent) -> SoundDataset:
    """Load the sound that a recipe is about; spectrograms are computed once and kept in the cache.

    Args:
        recipe: Its data are "speech-commands", "speech-five-words" or "audio".
        folder: Where the data are; None looks into TORCHCBL_DATA, then downloads.
        progress: Called during downloads, decoding and computing.

    Raises:
        ValueError: A file is damaged or of another layout, a speaker is in two parts, or noise is asked for where the
            data have none.
        FileNotFoundError: The data are not in the folder.
        DownloadError: They cannot be downloaded.
        ImportError: The extra that reads sound is not installed.
    """
    if recipe.data in WORDS:
        words = WORDS[recipe.data]
        speech = load_speech_commands(folder, words=words, damaged=recipe.damaged, progress=progress)
        parts, classes, recordings = (speech.train, speech.validation, speech.test), speech.words, speech.noise
    else:
        place = named(folder, "audio")
        own = load_audio_folder(place, seconds=recipe.seconds, damaged=recipe.damaged, progress=progress)
        parts, classes, recordings = three_parts(own, recipe.validation_size), own.classes, {}
    if recipe.noise and not recordings:
        raise ValueError(f"noise = {recipe.noise} needs recordings of noise, which these data have not: set noise=0.")
    mixer = training_noise(recordings, recipe.noise) if recipe.noise else None
    front_end = MelFrontEnd()
    clips = dict(zip(PARTS, parts, strict=True))
    features = {part: features_on_disk(some, front_end, progress) for part, some in clips.items()}
    front_end.fit(features["train"])
    return SoundDataset(clips, features, front_end, classes, recordings, recipe.masking, mixer)


def training_noise(recordings: dict[str, NDArray[np.int16]], share: float) -> NoiseMixer:
    """The first half of each recording: training never hears the noise that robustness is measured with."""
    return NoiseMixer(recordings, share=share).split()[0]


def testing_noise(recordings: dict[str, NDArray[np.int16]]) -> NoiseMixer:
    """The second half of each recording."""
    return NoiseMixer(recordings).split()[1]
