"""Human votes: what agreement is, where the file is found, and what is said where it is not."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from torchcbl.lab.measures.ambiguity import agree, tenths
from torchcbl.lab.measures.votes import Votes, find_votes, load_votes

RNG = np.random.default_rng(0)
COUNTS = np.array([[50, 0, 0], [30, 20, 0], [25, 25, 0], [20, 16, 14]])
LABELS = np.array([0, 0, 1, 0])


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHCBL_DATA", raising=False)


def test_entropy_and_favourites() -> None:
    votes = Votes(COUNTS)
    expected = [stats.entropy(row) for row in COUNTS]
    assert votes.entropy == pytest.approx(expected)
    assert votes.favourites.tolist() == [
        [True, False, False],
        [True, False, False],
        [True, True, False],
        [True, False, False],
    ]


def test_agreement_against_scipy() -> None:
    votes = Votes(RNG.integers(0, 20, (200, 10)) + np.eye(10, dtype=int)[np.arange(200) % 10])
    logits, labels = torch.randn(200, 10), torch.arange(200) % 10
    found = agree(logits, labels, votes)
    p = logits.double().softmax(1).numpy()
    q = votes.shares
    assert found.kl == pytest.approx(np.mean([stats.entropy(a, b) for a, b in zip(q, p, strict=True)]))
    assert found.cross_entropy == pytest.approx(found.kl + votes.entropy.mean())
    model_entropy = stats.entropy(p, axis=1)
    assert found.pearson == pytest.approx(np.corrcoef(model_entropy, votes.entropy)[0, 1])
    assert found.spearman == pytest.approx(stats.spearmanr(model_entropy, votes.entropy).statistic)
    right = (logits.argmax(1) == labels).numpy()
    worst = np.argsort(votes.entropy, kind="stable")[-20:]
    assert found.accuracy_by_tenth[-1] == pytest.approx(right[worst].mean())
    assert np.mean(found.accuracy_by_tenth) == pytest.approx(found.accuracy) == pytest.approx(right.mean())


def test_a_network_that_votes_as_people_do_loses_nothing() -> None:
    votes = Votes(COUNTS + 1)
    found = agree(torch.from_numpy(votes.shares).log(), torch.from_numpy(LABELS), votes)
    assert found.kl == pytest.approx(0.0, abs=1e-12)
    assert found.pearson == pytest.approx(1.0)
    assert found.majority == 1.0
    assert found.accuracy == 0.75


def test_ties_count_alike() -> None:
    votes = Votes(np.array([[25, 25, 0]] * 2))
    found = agree(torch.eye(3)[:2], torch.tensor([0, 0]), votes)
    assert found.majority == 1.0
    assert found.accuracy == 0.5
    assert math.isnan(found.pearson), "there is no spread"


def test_tenths_hold_all_images_once_and_rise() -> None:
    entropy = RNG.random(203)
    parts = tenths(entropy)
    assert sorted(np.concatenate(parts).tolist()) == list(range(203))
    assert {len(part) for part in parts} == {20, 21}
    assert all(entropy[a].max() <= entropy[b].min() for a, b in itertools.pairwise(parts))


@pytest.mark.parametrize("name", ["cifar10h/counts.npz", "cifar10h/cifar10h-counts.npy", "counts.npz"])
@pytest.mark.parametrize("inner", [".", "cifar10", "cifar10/plain_text"])
def test_both_forms_are_found_wherever_the_data_folder_is(tmp_path: Path, name: str, inner: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    (tmp_path / inner).mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, counts=COUNTS.astype(np.uint8))
    else:
        np.save(path, COUNTS.astype(np.float64))
    assert find_votes(tmp_path / inner).resolve() == path.resolve()
    assert (load_votes(tmp_path / inner, LABELS).counts == COUNTS).all()


def test_the_named_folder_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "cifar10h").mkdir(parents=True)
        np.savez(tmp_path / name / "cifar10h" / "counts.npz", counts=COUNTS)
    monkeypatch.setenv("TORCHCBL_DATA", str(tmp_path / "b"))
    assert find_votes(tmp_path / "a").parent.parent.name == "a"
    assert find_votes(None).parent.parent.name == "b"


def test_where_they_are_missing_it_says_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no CIFAR-10H in .*looked for cifar10h/counts.npz .* Get .* from github"
    ):
        find_votes(tmp_path)
    with pytest.raises(FileNotFoundError, match="no CIFAR-10H in a data folder, none is named"):
        find_votes(None)


def test_damaged_files_and_other_images(tmp_path: Path) -> None:
    path = tmp_path / "counts.npz"
    np.savez(path, counts=COUNTS[::-1])
    with pytest.raises(ValueError, match="is of other images or in another order: most votes go to the label of 50%"):
        load_votes(tmp_path, np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="holds votes on 4 images, the test part has 3"):
        load_votes(tmp_path, LABELS[:3])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="counts.npz is damaged .*: get it again from github"):
        load_votes(tmp_path, LABELS)
    np.savez(path, others=COUNTS)
    with pytest.raises(ValueError, match="is damaged"):
        load_votes(tmp_path, LABELS)
    np.savez(path, counts=np.zeros((4, 3)))
    with pytest.raises(ValueError, match="votes must be counts"):
        load_votes(tmp_path, LABELS)
