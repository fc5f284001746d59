from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from torchcbl.lab.data.clips import Clips


def clips(count: int = 3, num_samples: int = 8) -> Clips:
    waveforms = np.arange(count * num_samples, dtype=np.int16).reshape(count, num_samples)
    return Clips(waveforms, torch.arange(count), 5, tuple(f"w/{row}.wav" for row in range(count)))


def test_take_copies_rows_labels_and_names_in_the_order_asked_for() -> None:
    data = clips()
    taken = data.take(torch.tensor([2, 0, 2]))
    assert np.array_equal(taken.waveforms, data.waveforms[[2, 0, 2]])
    assert taken.labels.tolist() == [2, 0, 2]
    assert taken.names == ("w/2.wav", "w/0.wav", "w/2.wav")
    assert (taken.num_classes, taken.sample_rate, len(taken)) == (5, 16_000, 3)
    taken.waveforms[:] = 0
    assert data.waveforms.any()


def test_a_read_only_map_will_do(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", clips().waveforms)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    data = Clips(mapped, torch.arange(3), 5, ("a", "b", "c"))
    assert data.waveforms is mapped
    assert data.take(torch.tensor([1])).waveforms.flags.writeable


def test_types() -> None:
    data = clips()
    with pytest.raises(TypeError, match="waveforms must be a numpy array of int16, got float64: read files with"):
        Clips(data.waveforms.astype(float), data.labels, 5, data.names)
    with pytest.raises(TypeError, match="waveforms must be a numpy array of int16, got torch.int16"):
        Clips(torch.zeros(3, 8, dtype=torch.int16), data.labels, 5, data.names)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="labels must be torch.int64, got torch.int32: convert"):
        Clips(data.waveforms, data.labels.int(), 5, data.names)


def test_shapes() -> None:
    data = clips()
    with pytest.raises(ValueError, match=r"waveforms must be \(N, S\) and labels \(N,\), got \(8,\) and \(3,\)"):
        Clips(data.waveforms[0], data.labels, 5, data.names)
    with pytest.raises(ValueError, match="got 3 clips, 3 labels and 2 names: give one label and one name per clip"):
        Clips(data.waveforms, data.labels, 5, data.names[:2])
    with pytest.raises(ValueError, match="got 3 clips, 2 labels and 3 names"):
        Clips(data.waveforms, data.labels[:2], 5, data.names)
    with pytest.raises(ValueError, match="got 0 clips, 0 labels and 0 names: .*at least one clip"):
        Clips(data.waveforms[:0], data.labels[:0], 5, ())


def test_numbers() -> None:
    data = clips()
    with pytest.raises(ValueError, match=r"label 2 of w/2.wav is outside 0\.\.1 \(num_classes=2\): correct the label"):
        Clips(data.waveforms, data.labels, 2, data.names)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        Clips(data.waveforms, data.labels * 0, 1, data.names)
    with pytest.raises(ValueError, match="sample_rate must be positive, got 0"):
        Clips(data.waveforms, data.labels, 5, data.names, sample_rate=0)
