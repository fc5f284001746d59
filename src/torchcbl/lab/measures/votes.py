"""CIFAR-10H: what some fifty people each took every CIFAR-10 test image for."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PLACES = ("counts.npz", "cifar10h-counts.npy")
_HOME = "github.com/jcpeterson/cifar-10h"
_AGREEMENT = 0.9


@dataclass(frozen=True)
class Votes:
    """Human votes on the test images, in the official order.

    Args:
        counts: How many people chose each class, (N, K).

    Raises:
        ValueError: They are no counts, or an image has none.
    """

    counts: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.counts.ndim != 2 or (self.counts < 0).any() or (self.counts.sum(1) < 1).any():
            raise ValueError(f"votes must be counts (N, K), at least one per row, got shape {self.counts.shape}")

    @property
    def shares(self) -> NDArray[np.float64]:
        """Which share of the votes each class has, (N, K)."""
        return np.asarray(self.counts / self.counts.sum(1, keepdims=True))

    @property
    def entropy(self) -> NDArray[np.float64]:
        """Entropy of the votes in nats, (N,).

        Example:
            >>> Votes(np.array([[50, 0], [25, 25]])).entropy.round(3).tolist()
            [0.0, 0.693]
        """
        shares = self.shares
        return np.asarray(-(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1) + 0.0)

    @property
    def favourites(self) -> NDArray[np.bool_]:
        """Which classes have the most votes, (N, K): several where they tie."""
        return np.asarray(self.counts == self.counts.max(1, keepdims=True))


def find_votes(folder: Path | None) -> Path:
    """Find the file of votes in the data folder, its `cifar10h`, or the same of TORCHCBL_DATA.

    Raises:
        FileNotFoundError: It is not there; the message says where it is to be had.
    """
    named = [Path(place).expanduser() for place in (folder, os.environ.get("TORCHCBL_DATA")) if place]
    around = [place for base in named for place in (base, base.parent, base.parent.parent)]
    places = [place / inner / name for place in around for inner in ("cifar10h", ".") for name in PLACES]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"no CIFAR-10H in {' or '.join(map(str, named)) or 'a data folder, none is named'}: looked for "
        f"cifar10h/{' and cifar10h/'.join(PLACES)}. Get data/cifar10h-counts.npy from {_HOME} (CC BY-NC-SA 4.0), put "
        "it there, and name the folder with --data or TORCHCBL_DATA; or leave 'ambiguity' out of --only"
    )


def load_votes(folder: Path | None, labels: NDArray[np.int64]) -> Votes:
    """Read the votes on CIFAR-10's test images (Peterson et al. 2019, arXiv 1908.07086).

    Args:
        folder: Where to look, as in `find_votes`.
        labels: Of the test images in the official order, (10000,): to see that the votes are on them.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It is damaged, or the votes are not on these images in this order.
    """
    path = find_votes(folder)
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            counts = np.asarray(loaded["counts"] if path.suffix == ".npz" else loaded)
        votes = Votes(np.rint(counts).astype(np.int64))
    except (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): get it again from {_HOME}.") from error
    if len(counts) != len(labels):
        raise ValueError(f"{path} holds votes on {len(counts)} images, the test part has {len(labels)}.")
    agreement = float(votes.favourites[np.arange(len(labels)), labels].mean())
    if agreement < _AGREEMENT:
        raise ValueError(
            f"{path} is of other images or in another order: most votes go to the label of "
            f"{100 * agreement:.0f}% of the images, and of over 99% in CIFAR-10H. Get it again from {_HOME}."
        )
    return votes
