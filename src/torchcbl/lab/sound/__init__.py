"""Sound: from waveforms to batches of mel spectrograms, and from waveforms to logits where a network is deployed."""

from __future__ import annotations

from torchcbl.lab.sound.batches import SoundBatches
from torchcbl.lab.sound.features import features_on_disk
from torchcbl.lab.sound.front_end import MelFrontEnd, from_pcm

__all__ = ["MelFrontEnd", "SoundBatches", "features_on_disk", "from_pcm"]
