"""What a trained network hears in one recording, at every step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from torchcbl.lab.data.sound import SAMPLE_RATE, DamagedSound, fit_length, read_sound
from torchcbl.lab.inspection import find_run, form_of, rebuild
from torchcbl.lab.sound.front_end import from_pcm
from torchcbl.lab.sound.serving import Recogniser

TOP = 3


@dataclass(frozen=True)
class Heard:
    """What was heard.

    Args:
        words: All words, in the order of the logits.
        probabilities: Of each word after each step tau, (T + 1, K).
        start: Where in the recording the second that was listened to begins, in seconds.
        length: How long the recording is, in seconds.
    """

    words: tuple[str, ...]
    probabilities: tuple[tuple[float, ...], ...]
    start: float
    length: float

    @property
    def answers(self) -> tuple[str, ...]:
        """The most probable word after each step."""
        return tuple(self.words[int(np.argmax(row))] for row in self.probabilities)

    def describe(self) -> str:
        """Write the top words at every step, and when the answer changed."""
        lines = [f"listened to {self.start:.2f} s and what follows, of {self.length:.2f} s"]
        for step, row in enumerate(self.probabilities):
            best = np.argsort(row)[::-1][:TOP]
            lines.append(f"step {step}:  " + "   ".join(f"{self.words[i]} {100 * row[i]:5.1f}%" for i in best))
        return "\n".join([*lines, self.verdict])

    @property
    def verdict(self) -> str:
        """Say when the answer changed."""
        answers = self.answers
        if len(answers) == 1:
            return f"the answer is '{answers[0]}'; this network has no loop"
        changes = [
            f"from '{answers[step - 1]}' to '{answers[step]}' at step {step}"
            for step in range(1, len(answers))
            if answers[step] != answers[step - 1]
        ]
        return (
            f"the answer changed {', then '.join(changes)}"
            if changes
            else f"the answer is '{answers[0]}' at every step"
        )


def load_recogniser(folder: Path) -> Recogniser:
    """Load a finished run of a study on sound: waveforms (B, S) to logits, with the front end it was trained with.

    Args:
        folder: OUT/runs/<arm>-seed<k>.

    Raises:
        ValueError: The folder's name is none of a run, the run is of other data than sound, or a file is damaged.
        FileNotFoundError: There is no such run, or it is not finished.
    """
    run = find_run(folder)
    network = rebuild(folder).eval()
    if not (run.model / "front_end.json").is_file():
        raise ValueError(f"{run.name} was trained on {run.recipe.data}: only a run on sound can listen.")
    front_end, words = Recogniser.load_front_end(run.model)
    return Recogniser(front_end, network, words).eval()


def listen(folder: Path, source: Path) -> Heard:
    """Say what a run hears in a sound file.

    Args:
        folder: OUT/runs/<arm>-seed<k>.
        source: A wav or flac file, of any rate and number of channels. Of a longer one the loudest stretch of the
            clips' length is listened to.

    Raises:
        ValueError: The file cannot be read, or the run is of other data.
        FileNotFoundError: There is no such run.
        ImportError: The extra that reads sound is not installed.
    """
    recogniser = load_recogniser(folder)
    try:
        samples = read_sound(source)
    except DamagedSound as error:
        raise ValueError(f"{source} cannot be listened to: {error}.") from error
    return hear(recogniser, samples, num_samples_of(folder, recogniser))


def num_samples_of(folder: Path, recogniser: Recogniser) -> int:
    """Say how long the clips were that a run was trained on, in samples: frames = 1 + samples // hop."""
    return (form_of(find_run(folder)).shape[2] - 1) * recogniser.front_end.settings.hop


def hear(recogniser: Recogniser, samples: NDArray[np.int16], num_samples: int) -> Heard:
    """Say what is heard in samples, (S,), int16: in the loudest `num_samples` of them."""
    start = loudest(samples, num_samples)
    clip = fit_length(samples[start:], num_samples)
    with torch.no_grad():
        outputs = recogniser.refine(from_pcm(clip[None])).outputs
    rows = tuple(tuple(row) for row in torch.cat(list(outputs)).double().softmax(-1).tolist())
    return Heard(recogniser.words, rows, start / SAMPLE_RATE, len(samples) / SAMPLE_RATE)


def loudest(samples: NDArray[np.int16], length: int) -> int:
    """Find where the stretch of most energy begins; 0 where there is no more than one.

    Example:
        >>> loudest(np.array([0, 0, 5, 5, 0], np.int16), 2)
        2
    """
    if len(samples) <= length:
        return 0
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    return int(np.argmax(energy[length:] - energy[:-length]))


def record(seconds: float) -> NDArray[np.int16]:
    """Record from the microphone.

    Args:
        seconds: How long.

    Returns:
        int16, (S,), at 16 kHz.

    Raises:
        ImportError: sounddevice is not installed, or finds no sound system.
        OSError: There is no microphone.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: PortAudio is missing
        raise ImportError(
            f"the microphone needs sounddevice ({error}): run pip install 'torchcbl[microphone]', or name a file"
        ) from error
    try:
        taken = sounddevice.rec(round(seconds * SAMPLE_RATE), samplerate=SAMPLE_RATE, channels=1, dtype="int16")
        sounddevice.wait()
    except sounddevice.PortAudioError as error:
        raise OSError(f"the microphone does not answer ({error}): plug one in, or name a file instead.") from error
    samples: NDArray[np.int16] = taken[:, 0]
    return samples
