from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sound_files import encode_sound, noise_of, tone

from torchcbl.lab.data.sound import UNKNOWN_SIZE, DamagedSound, fit_length, read_sound

EXTREMES = np.array([-32768, -32767, -1, 0, 1, 32766, 32767], np.int16)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_16_bit_mono_comes_out_bit_by_bit(kind: str) -> None:
    samples = np.concatenate([EXTREMES, noise_of(kind, 5000)])
    got = read_sound(encode_sound(samples, kind=kind))
    assert got.dtype == np.int16
    assert np.array_equal(got, samples)


def test_a_file_is_read_as_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encode_sound(noise_of("a")))
    assert np.array_equal(read_sound(path), noise_of("a"))


@pytest.mark.parametrize("subtype", ["PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_finer_depths_are_rounded(subtype: str) -> None:
    samples = noise_of(subtype, 3000)
    finer = (samples + np.random.default_rng(0).uniform(-0.4, 0.4, 3000)) / 32768
    assert np.array_equal(read_sound(encode_sound(finer, subtype=subtype)), samples)


def test_floats_beyond_full_scale_are_clipped() -> None:
    assert read_sound(encode_sound(np.array([1.5, -1.5]), subtype="FLOAT")).tolist() == [32767, -32768]


def test_channels_are_averaged() -> None:
    left, right = noise_of("left"), noise_of("right")
    got = read_sound(encode_sound(np.stack([left, right], 1)))
    assert np.array_equal(got, np.rint((left.astype(float) + right) / 2))


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_other_rates_keep_pitch_and_length(rate: int) -> None:
    got = read_sound(encode_sound(tone(rate, rate=rate), rate=rate)).astype(float)
    expected = tone(16_000).astype(float)
    assert abs(len(got) - 16_000) <= 1
    inner = slice(1000, 15_000)  # the filter rings where the tone is switched on and off
    assert np.abs(got[inner] - expected[inner]).max() < 2


def test_what_is_above_half_the_rate_is_gone_and_does_not_fold_back() -> None:
    got = read_sound(encode_sound(tone(44_100, rate=44_100, hertz=12_000), rate=44_100))
    assert np.abs(got[1000:15_000]).max() <= 1


def test_fit_length_pads_at_the_end_and_crops() -> None:
    samples = noise_of("fit", 100)
    assert np.array_equal(fit_length(samples, 60), samples[:60])
    padded = fit_length(samples, 160)
    assert np.array_equal(padded[:100], samples)
    assert not padded[100:].any()
    assert padded.dtype == np.int16


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.999])
def test_cut_short(kind: str, kept: float) -> None:
    whole = encode_sound(noise_of("cut"), kind=kind)
    with pytest.raises(DamagedSound, match="cut short|no sound that can be decoded"):
        read_sound(whole[: int(kept * len(whole))])


def test_a_wav_that_lost_its_end_says_how_much() -> None:
    whole = encode_sound(noise_of("cut"))
    with pytest.raises(DamagedSound, match="it was cut short: 31,000 of 32,000 bytes of sound are there"):
        read_sound(whole[:-1000])


def test_a_wav_whose_writer_did_not_know_its_length_is_whole() -> None:
    samples = noise_of("streamed", 500)
    header = b"RIFF" + struct.pack("<I", UNKNOWN_SIZE) + encode_sound(samples)[8:36]
    streamed = header + b"data" + struct.pack("<I", UNKNOWN_SIZE) + samples.tobytes()
    assert np.array_equal(read_sound(streamed), samples)


def test_chunks_before_and_after_the_sound_are_passed_over() -> None:
    whole = encode_sound(noise_of("chunks", 500))
    extra = b"LIST" + struct.pack("<I", 5) + b"hello\0"
    content = whole[:36] + extra + whole[36:] + extra
    content = content[:4] + struct.pack("<I", len(content) - 8) + content[8:]
    assert np.array_equal(read_sound(content), noise_of("chunks", 500))
    with pytest.raises(DamagedSound, match="it was cut short: 986 of 1,000 bytes of sound are there"):
        read_sound(content[: -len(extra) - 14])


@pytest.mark.parametrize("content", [b"", b"hello" * 100, bytes(5000)])
def test_no_sound(content: bytes) -> None:
    with pytest.raises(DamagedSound, match="it is no sound that can be decoded: .*not recognised"):
        read_sound(content)


def test_a_flac_damaged_in_the_middle() -> None:
    content = bytearray(encode_sound(noise_of("flac"), kind="FLAC"))
    content[len(content) // 2] ^= 1
    with pytest.raises(DamagedSound, match="it is no sound that can be decoded"):
        read_sound(bytes(content))


def test_a_flac_that_states_more_samples_than_memory_holds() -> None:
    content = bytearray(encode_sound(noise_of("flac"), kind="FLAC"))
    content[21] |= 0x0F  # the highest bits of the number of samples
    with pytest.raises(DamagedSound, match="it states more samples than memory can hold, 6"):
        read_sound(bytes(content))


def test_a_decoder_that_stops_early_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile.SoundFile, "frames", property(lambda file: 17_000))
    with pytest.raises(DamagedSound, match="it was cut short: 16,000 of 17,000 samples can be read"):
        read_sound(encode_sound(noise_of("early"), kind="FLAC"))


def test_nothing_in_it() -> None:
    with pytest.raises(DamagedSound, match="it holds no samples"):
        read_sound(encode_sound(np.zeros(0, np.int16)))
    with pytest.raises(DamagedSound, match="it holds no samples"):
        read_sound(encode_sound(np.zeros(1, np.int16), rate=192_000))


def test_not_numbers() -> None:
    with pytest.raises(DamagedSound, match="it holds samples that are not numbers"):
        read_sound(encode_sound(np.array([0.0, np.nan]), subtype="FLOAT"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DamagedSound, match="it cannot be read: No such file"):
        read_sound(tmp_path / "nowhere.wav")


@pytest.mark.parametrize(("library", "rate"), [("soundfile", 16_000), ("soxr", 8_000)])
def test_without_the_libraries(library: str, rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode_sound(noise_of("a"), rate=rate)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"reading sound needs {library} .*: run pip install 'torchcbl\[audio\]'"):
        read_sound(content)
