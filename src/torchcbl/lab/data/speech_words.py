"""The words of Speech Commands, and the published rule that puts each speaker into one part."""

from __future__ import annotations

import hashlib
import re

WORDS_35 = (
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy",
    "house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop",
    "three", "tree", "two", "up", "visual", "wow", "yes", "zero",
)  # fmt: skip
FIVE_WORDS = ("bed", "cat", "happy", "no", "yes")
PARTS = ("train", "validation", "test")
PER_CENT = 10.0  # of the speakers, into validation, and as many into test
LARGEST = 2**27 - 1


def speaker_of(file_name: str) -> str:
    """Name the speaker of a clip: what stands before `_nohash_` in its file's name.

    Example:
        >>> speaker_of("bed/0c40e715_nohash_0.wav")
        '0c40e715'
    """
    return re.sub("_nohash_.*$", "", file_name.rpartition("/")[2])


def which_part(file_name: str) -> str:
    """Name the part a clip belongs to, by its speaker alone.

    With H the SHA-1 of the speaker's name read as a number, and p = 100 (H mod 2^27) / (2^27 - 1), the clip is in
    "validation" where p < 10, in "test" where 10 <= p < 20, else in "train". So no speaker is in two parts, and
    clips added later move none of the earlier ones. The rule reproduces all 20,986 lines of the two lists that are
    published with v0.02.

    Args:
        file_name: As 'bed/0c40e715_nohash_0.wav', with or without folders before it.

    Returns:
        "train", "validation" or "test".

    Source: the data set's README; P. Warden, Speech Commands, 2018, arXiv:1804.03209, section 7.

    Example:
        >>> which_part("right/bb05582b_nohash_3.wav"), which_part("bed/00176480_nohash_0.wav")
        ('test', 'train')
    """
    hashed = int(hashlib.sha1(speaker_of(file_name).encode(), usedforsecurity=False).hexdigest(), 16)
    percentage = (hashed % (LARGEST + 1)) * (100.0 / LARGEST)
    if percentage < PER_CENT:
        return "validation"
    return "test" if percentage < 2 * PER_CENT else "train"
