"""Occluders and clutter: how much they cover, with what, and that no batch matters."""

from __future__ import annotations

import numpy as np
import pytest

from torchcbl.lab.measures.disturb.occluders import OCCLUSIONS, SHARES, Crowd, occlude

COUNT, SIZE = 12, 32
LABELS = np.arange(COUNT, dtype=np.int64) % 3
# Every image of a class is of one colour, its own: what is pasted says whence it comes.
TONES = np.array([20, 120, 220])
PIXELS = np.broadcast_to(TONES[LABELS][:, None, None, None], (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
CROWD = Crowd(PIXELS, LABELS)


def done(name: str, share: int, indices: list[int] | None = None) -> np.ndarray:
    chosen = list(range(COUNT)) if indices is None else indices
    return occlude(PIXELS[chosen], LABELS[chosen], name, share, chosen, CROWD)


@pytest.mark.parametrize("name", OCCLUSIONS)
def test_the_same_in_every_batch(name: str) -> None:
    share = OCCLUSIONS[name].shares[2]
    whole = done(name, share)
    backwards = [done(name, share, [index])[0] for index in reversed(range(COUNT))]
    assert np.array_equal(whole, np.stack(backwards[::-1]))
    assert whole.dtype == np.uint8
    assert (whole != PIXELS).any((1, 2, 3)).all()
    assert not (PIXELS - PIXELS[:, :1, :1]).any(), "the images themselves stay"


@pytest.mark.parametrize("share", SHARES)
def test_squares_cover_their_share(share: int) -> None:
    grey = done("grey_square", share)
    covered = (grey != PIXELS).any(-1).mean((1, 2))
    assert covered == pytest.approx(share / 100, abs=0.03)
    assert set(np.unique(grey[(grey != PIXELS).any(-1)])) == {128}
    noise = done("noise_square", share)
    assert (noise != PIXELS).any(-1).mean((1, 2)) == pytest.approx(share / 100, abs=0.03)


def test_squares_are_at_different_places() -> None:
    centres = [
        np.argwhere((image != plain).any(-1)).mean(0)
        for image, plain in zip(done("grey_square", 20), PIXELS, strict=True)
    ]
    assert np.std(centres, axis=0).min() > 1


@pytest.mark.parametrize("share", SHARES)
def test_border_patches_leave_the_middle_and_come_from_other_classes(share: int) -> None:
    found = done("border_patches", share)
    assert np.array_equal(found[:, 8:24, 8:24], PIXELS[:, 8:24, 8:24])
    cells = (found != PIXELS).any(-1).reshape(COUNT, 4, 8, 4, 8).all((2, 4)).sum((1, 2))
    assert (cells == round(share / 100 * 16)).all()
    for image, label in zip(found, LABELS, strict=True):
        assert set(np.unique(image)) <= set(TONES)
        assert (image == TONES[label]).any()


@pytest.mark.parametrize("share", [10, 30, 50])
def test_insets_lie_in_a_corner(share: int) -> None:
    found = done("inset", share)
    changed = (found != PIXELS).any(-1)
    assert changed.mean((1, 2)) == pytest.approx(share / 100, abs=0.03)
    corners = changed[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners.sum(1) == 1).all()
    assert corners.any(0).sum() > 1


@pytest.mark.parametrize("share", [10, 45])
def test_mixing_weighs(share: int) -> None:
    found = done("mixed", share)
    for image, label in zip(found, LABELS, strict=True):
        wanted = {
            round((1 - share / 100) * TONES[label] + share / 100 * tone) for tone in TONES if tone != TONES[label]
        }
        assert set(np.unique(image)) <= wanted


def test_unknown_names_and_shares() -> None:
    with pytest.raises(ValueError, match="no occlusion 'mixed' of 60%: there are grey_square"):
        done("mixed", 60)
    with pytest.raises(ValueError, match="no occlusion 'hat' of 10%"):
        done("hat", 10)
