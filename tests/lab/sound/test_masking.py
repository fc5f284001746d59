from __future__ import annotations

import pytest
import torch

from torchcbl.lab.sound.masking import draw_masks, mask


def draws(values: list[list[list[float]]]) -> torch.Tensor:
    return torch.tensor([values])


def test_masks_cover_what_was_drawn_and_nothing_else() -> None:
    """Widths 11 of 64 bins and 25 of 101 frames are the widest; a mask of width 0 hides nothing."""
    nearly = 1 - 1e-6
    drawn = draws([[[nearly, 0.0], [0.5, nearly]], [[0.0, 0.5], [nearly, 0.0]]])
    hidden = mask(torch.ones(1, 1, 64, 101), drawn)[0, 0] == 0
    rows, columns = hidden.all(1).nonzero().flatten(), hidden.all(0).nonzero().flatten()
    assert rows.tolist() == [*range(11), *range(58, 64)]
    assert columns.tolist() == list(range(25))
    expected = torch.zeros(64, 101, dtype=torch.bool)
    expected[rows], expected[:, columns] = True, True
    assert torch.equal(hidden, expected)


@pytest.mark.parametrize("shape", [(64, 101), (40, 98), (1, 1), (8, 3)])
def test_masks_fit_in(shape: tuple[int, int]) -> None:
    drawn = draw_masks(500, torch.Generator().manual_seed(0))
    hidden = mask(torch.ones(500, 1, *shape), drawn)[:, 0] == 0
    bins, frames = shape
    assert hidden.all(2).sum(1).max() <= 2 * (bins * 7 // 40)
    assert hidden.all(1).sum(1).max() <= 2 * (frames // 4)


def test_every_place_is_hidden_now_and_then() -> None:
    drawn = draw_masks(2000, torch.Generator().manual_seed(0))
    hidden = mask(torch.ones(2000, 1, 64, 101), drawn)[:, 0] == 0
    assert hidden.all(2).sum(0).min() > 20
    assert hidden.all(1).sum(0).min() > 20
    assert 0.3 < hidden.float().mean() < 0.45  # 1 - (1 - 5.5 / 64)^2 (1 - 12.5 / 101)^2 = 0.36


def test_the_input_stays_as_it_is() -> None:
    x = torch.ones(2, 1, 64, 101)
    mask(x, draw_masks(2, torch.Generator().manual_seed(0)))
    assert torch.equal(x, torch.ones_like(x))
