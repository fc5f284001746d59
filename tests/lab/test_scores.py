import torch
from torch.nn import functional as F

from torchcbl.lab.scores import Scores


def test_scores_over_unequal_batches_are_those_of_all_images_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(10, 4, generator=generator) for _ in range(3)]
    target = torch.randint(0, 4, (10,), generator=generator)
    scores = Scores()
    for part in (slice(0, 7), slice(7, 10)):
        scores.add([y[part] for y in outputs], target[part])
    expected = torch.stack([F.cross_entropy(y, target) for y in outputs])
    torch.testing.assert_close(torch.tensor(scores.loss), expected)
    assert scores.accuracy == tuple(float((y.argmax(-1) == target).double().mean()) for y in outputs)
    assert scores.n == 10


def test_what_diverged_is_wrong_of_whatever_class_it_is() -> None:
    """An argmax would call every NaN class 0, so that a run that diverged scored the share of that class."""
    target = torch.tensor([0] * 9 + [1])
    scores = Scores()
    scores.add([torch.full((10, 2), 0.5), torch.full((10, 2), torch.nan)], target)
    assert scores.accuracy == (0.9, 0.0)
    assert scores.balanced_accuracy == (0.5, 0.0)
    assert scores.confusion[1] == ((0, 9), (1, 0))
