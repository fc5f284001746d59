"""The embedded data: scikit-learn's handwritten digits."""

from __future__ import annotations

import numpy as np
import torch

from torchcbl.lab.data.images import Images
from torchcbl.lab.data.strata import stratified_split

TEST_SIZE = 397
TEST_SEED = 0


def load_digits() -> tuple[Images, Images]:
    """Read the 1,797 real 8x8 grey images that come with scikit-learn; nothing is downloaded.

    Their intensities 0..16 become round(255 v / 16). They have no official test part, so 397 images,
    stratified, are set aside here once and for all: no argument changes which.

    Returns:
        1,400 images to fit and validate on, and 397 to test on; shape (N, 1, 8, 8), ten classes.

    Source: the test part of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.

    Example:
        >>> full, test = load_digits()
        >>> tuple(full.images.shape), tuple(test.images.shape)
        ((1400, 1, 8, 8), (397, 1, 8, 8))
    """
    from sklearn.datasets import load_digits as read

    bunch = read()
    pixels = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    everything = Images(pixels, torch.from_numpy(bunch.target.astype(np.int64)), num_classes=10)
    full, test = stratified_split(everything.labels, TEST_SIZE, TEST_SEED)
    return everything.take(full), everything.take(test)
