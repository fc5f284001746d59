"""Where Speech Commands stands: found in a folder, or downloaded and unpacked."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torchcbl.lab.data.cache import cache_folder, one_at_a_time, sha256_of
from torchcbl.lab.data.download import download
from torchcbl.lab.data.progress import Progress, silent
from torchcbl.lab.data.speech_words import PARTS, WORDS_35

ARCHIVE = "speech_commands_v0.02.tar.gz"
URL = f"http://download.tensorflow.org/data/{ARCHIVE}"
# As in torchaudio's datasets/speechcommands.py and tensorflow_datasets' speech_commands/checksums.tsv.
SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
INSIDE = (
    "",
    "five_words",
    "speech_commands",
    "speech_commands/five_words",
    "speech_commands_v0.02",
    "speech_commands/speech_commands_v0.02",
    "SpeechCommands/speech_commands_v0.02",
)
TELL_EVERY = 200


def find_speech_commands(folder: Path | None = None, words: Sequence[str] = (), *, progress: Progress = silent) -> Path:
    """Find the folder with the clips; download and unpack the official archive where no folder is named.

    Where the named folder holds the archive as it was downloaded, it is unpacked into the cache.

    Args:
        folder: As in `load_speech_commands`.
        words: A place with wav files that lacks some of these comes after all others.
        progress: Called during a download and the unpacking.

    Returns:
        A folder with one folder of wav files per word, or with the parts' parquet files.

    Raises:
        FileNotFoundError: The named folder holds neither.
        ValueError: The archive in it is damaged.
        DownloadError: They can be neither found nor downloaded. TORCHCBL_SPEECH_COMMANDS_URL may name another address
            of the archive.
    """
    named = folder or os.environ.get("TORCHCBL_DATA")
    if not named:
        return _unpacked(None, progress)
    root = Path(named).expanduser()
    found = [root / inside for inside in INSIDE if has_words(root / inside) or has_parts(root / inside)]
    if found:
        # which words parquet files hold is seen when they are read
        whole = (place for place in found if not has_words(place) or all(holds_clips(place / word) for word in words))
        return next(whole, found[0])
    for packed in (root / ARCHIVE, root / "speech_commands" / ARCHIVE):
        if packed.is_file():
            return _unpacked(packed, progress)
    origin = "the data folder" if folder else "TORCHCBL_DATA ="
    unlike = "" if root.is_dir() else ", which is not a folder"
    raise FileNotFoundError(
        f"no Speech Commands in {origin} {root}{unlike}: looked for folders of wav files named as the words (bed, "
        "cat, ...) and for train-*, validation-* and test-*.parquet, in it and in its "
        f"{', '.join(INSIDE[1:])}, and for {ARCHIVE}. Name the folder that "
        "holds them with --data, or leave out --data and TORCHCBL_DATA to download them"
    )


def has_words(place: Path) -> bool:
    """Say whether `place` has folders of wav files named as words, as the unpacked archive has."""
    return any(holds_clips(place / word) for word in WORDS_35)


def holds_clips(folder: Path) -> bool:
    """Say whether a wav file is directly in `folder`."""
    return folder.is_dir() and any(folder.glob("[!.]*.wav"))


def has_parts(place: Path) -> bool:
    """Say whether `place` has parquet files named as the three parts."""
    return all(any(place.glob(f"{part}-*.parquet")) for part in PARTS)


def _unpacked(packed: Path | None, progress: Progress) -> Path:
    """Unpack the archive into the cache, unless that was done before; download it where there is none."""
    target = cache_folder() / "speech_commands" / "speech_commands_v0.02"
    with one_at_a_time(target):
        if target.is_dir():
            return target
        if packed is not None:
            _verify(packed)
            target.parent.mkdir(parents=True, exist_ok=True)
            _unpack(packed, target, progress)
        else:
            url = os.environ.get("TORCHCBL_SPEECH_COMMANDS_URL") or URL
            archive = download(url, target.parent / ARCHIVE, sha256=SHA256, progress=progress)
            _unpack(archive, target, progress)
            archive.unlink()
    return target


def _verify(archive: Path) -> None:
    with archive.open("rb") as stream:
        found = sha256_of(stream)
    if found != SHA256:
        raise ValueError(
            f"{archive} ({archive.stat().st_size:,} bytes) has SHA-256 {found}, expected {SHA256} (2,428,923,189 "
            "bytes): it is damaged or was not copied whole, fetch it again"
        )


def _unpack(archive: Path, target: Path, progress: Progress) -> None:
    """Unpack into a folder beside `target` that takes its name when it is whole."""
    if not hasattr(tarfile, "data_filter"):  # Python before 3.10.12 or 3.11.4
        raise OSError(
            f"this Python cannot unpack {archive.name} safely: use 3.10.12, 3.11.4 or a later one, or unpack it by "
            "hand and name the folder with --data"
        )
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with archive.open("rb") as stream, tarfile.open(fileobj=stream, mode="r|gz") as members:
            size = archive.stat().st_size
            for count, member in enumerate(members):
                members.extract(member, temporary, filter="data")
                if count % TELL_EVERY == 0:
                    progress(f"unpacking {archive.name}", stream.tell(), size)
            progress(f"unpacking {archive.name}", size, size)
        temporary.chmod(0o755)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
