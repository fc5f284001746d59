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
