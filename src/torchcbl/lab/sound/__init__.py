"""Sound: from waveforms to batches of mel spectrograms, and from waveforms to logits where a network is deployed."""

from __future__ import annotations

from torchcbl.lab.sound.batches import SoundBatches
from torchcbl.lab.sound.features import features_on_disk
from torchcbl.lab.sound.front_end import MelFrontEnd, from_pcm
from torchcbl.lab.sound.mel import MelSettings
from torchcbl.lab.sound.noise import NoiseMixer, at_snr
from torchcbl.lab.sound.robustness import RATIOS, scores_by_snr
from torchcbl.lab.sound.serving import Recogniser

__all__ = [
    "RATIOS",
    "MelFrontEnd",
    "MelSettings",
    "NoiseMixer",
    "Recogniser",
    "SoundBatches",
    "at_snr",
    "features_on_disk",
    "from_pcm",
    "scores_by_snr",
]
