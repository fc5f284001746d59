"""Taking finished samples out of what a cut keeps: which axis they are on, and what cannot be taken apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from problems import random
from subject import awaken
from torchcbl.halting import Halting, Progress
from torchcbl.solvers.base import NotSelectableError
from torchcbl.stages.selection import Axis, learn, select

INDEX = torch.tensor([3, 0])


def parted(value: Tensor, dim: int, ratio: int, outer: bool, index: Tensor) -> Tensor:
    return Axis(dim, ratio, outer).select(value, index, 4)  # type: ignore[return-value]


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("dim", [0, 1])
def test_merged_axes_are_told_apart_by_what_they_hold(dim: int, outer: bool) -> None:
    sizes = (4, 3) if outer else (3, 4)
    per_sample = torch.arange(4).float().reshape(-1, 1) * 10 + torch.arange(3)
    merged = (per_sample if outer else per_sample.T).reshape(12)
    whole = merged.expand(2, 12).movedim(1, dim)
    wanted = per_sample[INDEX]
    part = (wanted if outer else wanted.T).reshape(6).expand(2, 6).movedim(1, dim)
    rules = learn([whole], [part], INDEX, 4)
    assert rules == (Axis(dim, 3, outer),)
    assert torch.equal(parted(whole, dim, 3, outer, INDEX), part)
    assert sizes[0 if outer else 1] == 4
    (picked,) = select([whole + 1], rules, torch.tensor([2]), 4)  # type: ignore[misc]
    expected = (per_sample[2:3] if outer else per_sample[2:3].T).reshape(3).expand(2, 3).movedim(1, dim) + 1
    assert torch.equal(picked, expected)


def test_what_holds_no_samples_stays() -> None:
    shared, shape = torch.ones(5, 2), torch.Size([4, 7])
    whole = {"a": shared, "n": 8, "s": shape, "t": "mean", "z": torch.arange(8.0).reshape(4, 2)}
    part = {"a": shared.clone(), "n": 4, "s": torch.Size([2, 7]), "t": "mean", "z": whole["z"][INDEX]}  # type: ignore[index]
    rules = learn(whole, part, INDEX, 4)
    found = select(whole, rules, torch.tensor([1, 2, 3]), 4)
    assert found["n"] == 6  # type: ignore[index]
    assert found["s"] == torch.Size([3, 7])  # type: ignore[index]
    assert found["a"] is shared  # type: ignore[index]
    assert torch.equal(found["z"], whole["z"][1:])  # type: ignore[index]


@pytest.mark.parametrize(("whole", "part"), [
    (torch.zeros(12, 2), torch.zeros(6, 2)),  # alike samples: either of them could be the neighbour
    (torch.arange(4), torch.arange(2)),  # numbers of samples
    (torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2])),
    (random(4, 2), random(2, 2, seed=1)),  # another value than the sample has alone
    (random(5), random(5, seed=1)),
    (random(4, 4), random(2, 2)),
    (random(6), random(3)),
    ("sum", "mean"), (3, 2), (random(4), None), (torch.Size([4, 4]), torch.Size([2, 2])),
])  # fmt: skip
def test_what_cannot_be_taken_apart_is_refused(whole: object, part: object) -> None:
    with pytest.raises(NotSelectableError):
        learn([whole], [part], INDEX, 4)


def test_another_form_is_refused() -> None:
    rules = learn([random(4, 2), torch.ones(1, 2)], [random(4, 2)[INDEX], torch.ones(1, 2)], INDEX, 4)
    for other in ([random(4, 2)], [random(5, 2), torch.ones(1, 2)], [random(4, 2), torch.ones(4, 2)]):
        with pytest.raises(NotSelectableError):
            select(other, rules, INDEX, 4)


class Leaving(Halting):
    """Sample i goes at step i + 1."""

    def done(self, progress: Progress, memory: object) -> tuple[Tensor, object]:
        when = memory[0] if isinstance(memory, tuple) and memory else torch.arange(1, len(progress.residual) + 1)
        return progress.step >= when, (when,)


class Merging(nn.Module):
    """A skip whose batch is merged with its positions, in either order."""

    def __init__(self, outer: bool) -> None:
        super().__init__()
        self.outer = outer
        self.embed, self.site, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        size, positions = x.shape[:2]
        merged = torch.tanh(self.embed(x if self.outer else x.transpose(0, 1)).reshape(size * positions, -1))
        h = torch.tanh(self.site(torch.tanh(self.embed(x.mean(1)))))
        skip = (
            merged.reshape(size, positions, -1) if self.outer else merged.reshape(positions, size, -1).transpose(0, 1)
        )
        return self.head(h + skip.mean(1))


class Pooling(nn.Module):
    """The last real position of each sample, picked by the sample's number or by its place in the flattened batch."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        self.embed, self.site, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, last = torch.ones_like(x[:, 0, 0]).cumsum(0).long() - 1, mask.expand(x.shape[:2]).sum(1).long() - 1
        places = rows * x.shape[1] + last
        h = torch.tanh(self.site(torch.tanh(self.embed(x))))
        picked = h.flatten(0, 1)[places] if self.flat else h[rows, last]
        return self.head(picked) + (self.embed(x) * mask[..., None]).mean((1, 2))[:, None]


def check(net: cbl.ContextLoop, *args: Tensor) -> None:
    with torch.no_grad():
        plain, found = net.refine(*args, steps=5), net.refine(*args, steps=5, halting=Leaving())
    assert found.steps.tolist() == [1, 2, 3, 4]
    for sample in range(4):
        torch.testing.assert_close(found.output[sample], plain.outputs[sample + 1][sample], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cut", ["traced", "replayed"])
@pytest.mark.parametrize("outer", [True, False])
def test_a_batch_of_equal_samples_teaches_nothing_wrong(cut: str, outer: bool) -> None:
    x = random(4, 3, 5)
    net = awaken(cbl.ContextLoop(Merging(outer).double(), "site", x, cut=cut)).eval()
    check(net, torch.zeros_like(x))
    check(net, x)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("cut", ["traced", "replayed"])
def test_numbers_of_samples_and_broadcast_masks(cut: str, flat: bool) -> None:
    x, shared = random(4, 3, 5), torch.ones(1, 3, dtype=torch.float64)
    own = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], dtype=torch.float64)
    net = awaken(cbl.ContextLoop(Pooling(flat).double(), "site", (x, shared), cut=cut)).eval()
    for mask in (shared, own, shared):
        check(net, x, mask)


class Codes(nn.Module):
    """All samples share the entries of a codebook."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.site, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        h = torch.tanh(self.site(torch.tanh(self.embed(x))))
        return self.head(h + (h @ codes.T).softmax(-1) @ codes)


class Classes(Codes):
    """One answer per class, of which each has an embedding."""

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        return torch.tanh(self.site(torch.tanh(self.embed(x)))) @ codes.T


class Weights(Codes):
    """A weight matrix is passed in."""

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        return self.head(torch.tanh(self.site(torch.tanh(self.embed(x))))[:, :4] @ codes)


def count_samples(net: cbl.ContextLoop) -> list[int]:
    """Note the size of the batch at each step from here on."""
    seen: list[int] = []
    net.context.register_forward_hook(lambda module, args, z: seen.append(len(z)))
    return seen


@pytest.mark.parametrize("cut", ["traced", "replayed"])
@pytest.mark.parametrize("kind", [Codes, Classes, Weights])
def test_what_samples_share_may_be_as_long_as_the_batch(kind: type[Codes], cut: str) -> None:
    x, codes = random(4, 5), random(4, 8, seed=1)
    net = awaken(cbl.ContextLoop(kind().double(), "site", (x[:3], codes), cut=cut)).eval()
    seen = count_samples(net)
    check(net, x, codes)
    assert set(seen) == {4}, "samples that cannot be taken out stay"
    if kind is Codes:  # which takes any number of codes
        seen.clear()
        check(net, x, random(7, 8, seed=2))
        assert seen[-4:] == [4, 3, 2, 1], "samples leave where nothing is in doubt"
        check(net, x, codes)


def partly_in_train_mode(part: nn.Module, cut: str) -> cbl.ContextLoop:
    """A loop in eval mode but for one part, as for samples of dropout."""
    backbone = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), part, nn.Linear(8, 4)).double()
    net = awaken(cbl.ContextLoop(backbone, "0", random(4, 5), step_norm="shared", cut=cut)).eval()
    part.train()
    return net


@pytest.mark.parametrize("cut", ["traced", "replayed"])
def test_samples_stay_where_noise_is_held(cut: str) -> None:
    net = partly_in_train_mode(nn.Dropout(0.5), cut)
    seen, runs = count_samples(net), []
    for halting in (None, Leaving()):
        torch.manual_seed(3)
        with torch.no_grad():
            runs.append(net.refine(random(4, 5), steps=4, halting=halting))
    plain, found = runs
    assert set(seen) == {4}
    assert found.steps.tolist() == [1, 2, 3, 4]
    for sample in range(4):
        torch.testing.assert_close(found.output[sample], plain.outputs[sample + 1][sample], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cut", ["traced", "replayed"])
def test_samples_stay_where_batch_norm_reads_all_of_them(cut: str) -> None:
    norm = nn.BatchNorm1d(8)
    net = partly_in_train_mode(norm, cut)
    seen = count_samples(net)
    with torch.no_grad():
        net.refine(random(4, 5), steps=4, halting=Leaving())
    assert set(seen) == {4}
    assert int(norm.num_batches_tracked) == 1, "looking for the samples has fed a batch"
