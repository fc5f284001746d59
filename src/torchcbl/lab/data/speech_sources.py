"""Where Speech Commands stands, and which clips stand there: the official archive, unpacked, or parquet files."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torchcbl.lab.data.cache import cache_folder, one_at_a_time
from torchcbl.lab.data.download import download
from torchcbl.lab.data.parquet import opened
from torchcbl.lab.data.progress import Progress, silent
from torchcbl.lab.data.speech_words import PARTS, WORDS_35, which_part
from torchcbl.lab.data.waveforms import Encoded, stamp_of

ARCHIVE = "speech_commands_v0.02.tar.gz"
URL = f"http://download.tensorflow.org/data/{ARCHIVE}"
# As in torchaudio's datasets/speechcommands.py and tensorflow_datasets' speech_commands/checksums.tsv.
SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
NOISE = "_background_noise_"
INSIDE = (
    "",
    "five_words",
    "speech_commands",
    "speech_commands/five_words",
    "speech_commands_v0.02",
    "speech_commands/speech_commands_v0.02",
    "SpeechCommands/speech_commands_v0.02",
)
ROWS_AT_ONCE = 200


@dataclass(frozen=True)
class Source:
    """Clips that can be decoded.

    Args:
        place: Their folder.
        words: The words it has clips of.
        count: How many clips each word asked for has.
        stamp: Changes whenever a file does.
        encoded: Yields the clips of the words asked for, part by part.
        noise: The files of background noise.
    """

    place: Path
    words: tuple[str, ...]
    total: int
    stamp: str
    encoded: Callable[[], Iterable[Encoded]]
    noise: tuple[Path, ...]


def find_speech_commands(folder: Path | None = None, *, progress: Progress = silent) -> Path:
    """Find the folder with the clips; download and unpack the official archive where no folder is named.

    Args:
        folder: As in `load_speech_commands`.
        progress: Called during a download and the unpacking.

    Returns:
        A folder with one folder of wav files per word, or with the parts' parquet files.

    Raises:
        FileNotFoundError: The named folder holds neither.
        DownloadError: They can be neither found nor downloaded. TORCHCBL_SPEECH_COMMANDS_URL may name another address
            of the archive.
    """
    named = folder or os.environ.get("TORCHCBL_DATA")
    if not named:
        return _downloaded(cache_folder() / "speech_commands" / "speech_commands_v0.02", progress)
    root = Path(named).expanduser()
    for inside in INSIDE:
        if _has_words(root / inside) or _has_parts(root / inside):
            return root / inside
    origin = "the data folder" if folder else "TORCHCBL_DATA ="
    unlike = "" if root.is_dir() else ", which is not a folder"
    raise FileNotFoundError(
        f"no Speech Commands in {origin} {root}{unlike}: looked for folders of wav files named as the words (bed, "
        f"cat, ...) and for train-*, validation-* and test-*.parquet, in it and in its {', '.join(INSIDE[1:])}. Name "
        "the folder that holds them with --data, or leave out --data and TORCHCBL_DATA to download them"
    )


def list_speech_commands(place: Path, words: tuple[str, ...]) -> Source:
    """List the clips of `words` in a folder that `find_speech_commands` found.

    Raises:
        ValueError: A word is not there, a parquet file is damaged or of another layout, or one of the two official
            lists is there without the other.
    """
    return _list_archive(place, words) if _has_words(place) else _list_parquet(place, words)


def _has_words(place: Path) -> bool:
    return any((place / word).is_dir() for word in WORDS_35)


def _has_parts(place: Path) -> bool:
    return all(any(place.glob(f"{part}-*.parquet")) for part in PARTS)


def _downloaded(target: Path, progress: Progress) -> Path:
    with one_at_a_time(target):
        if not target.is_dir():
            url = os.environ.get("TORCHCBL_SPEECH_COMMANDS_URL") or URL
            archive = download(url, target.parent / ARCHIVE, sha256=SHA256, progress=progress)
            _unpack(archive, target, progress)
            archive.unlink()
    return target


def _unpack(archive: Path, target: Path, progress: Progress) -> None:
    """Unpack into a folder beside `target` that takes its name when it is whole."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with archive.open("rb") as stream, tarfile.open(fileobj=stream, mode="r|gz") as members:
            size = archive.stat().st_size
            for count, member in enumerate(members):
                members.extract(member, temporary, filter="data")
                if count % ROWS_AT_ONCE == 0:
                    progress(f"unpacking {archive.name}", stream.tell(), size)
            progress(f"unpacking {archive.name}", size, size)
        temporary.chmod(0o755)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _list_archive(place: Path, words: tuple[str, ...]) -> Source:
    there = tuple(sorted(path.name for path in place.iterdir() if path.is_dir() and path.name[:1] not in "._"))
    check_words(words, there, place)
    listed = _official_parts(place)
    names = {f"{word}/{path.name}" for word in words for path in (place / word).glob("*.wav")}
    # What a list names and the folder lacks was lost: it is reported as any other damaged file.
    names |= {name for name in listed or () if name.partition("/")[0] in words}
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in sorted(names):
        parts[which_part(name) if listed is None else listed.get(name, "train")].append(name)

    def encoded() -> Iterator[Encoded]:
        for part, members in parts.items():
            yield from (Encoded(name, part, place / name) for name in members)

    lists = [place / file for file in LISTS.values()]
    stamp = stamp_of([*lists, *(place / name for name in sorted(names))])
    return Source(place, there, len(names), stamp, encoded, tuple(sorted((place / NOISE).glob("*.wav"))))


def _official_parts(place: Path) -> dict[str, str] | None:
    """The part of every clip in the two lists; None where there are none."""
    missing = [file for file in LISTS.values() if not (place / file).is_file()]
    if len(missing) == len(LISTS):
        return None
    if missing:
        raise ValueError(
            f"{place} has no {missing[0]} though it has the other list: unpack the archive again, or remove both lists "
            "to split by the published rule"
        )
    return {name: part for part, file in LISTS.items() for name in (place / file).read_text(encoding="utf-8").split()}


def _list_parquet(place: Path, words: tuple[str, ...]) -> Source:
    files = {part: sorted(place.glob(f"{part}-*.parquet")) for part in PARTS}
    names = [name for paths in files.values() for path in paths for name in _clip_names(path)]
    there = tuple(sorted({name.partition("/")[0] for name in names}))
    check_words(words, there, place)

    def encoded() -> Iterator[Encoded]:
        for part, paths in files.items():
            for path in paths:
                yield from (Encoded(name, part, content) for name, content in _rows(path, words))

    total = sum(name.partition("/")[0] in words for name in names)
    noise = [path for folder in (place, place.parent) for path in sorted((folder / "background_noise").glob("*.flac"))]
    stamp = stamp_of(path for paths in files.values() for path in paths)
    return Source(place, there, total, stamp, encoded, tuple(noise))


def _clip_names(path: Path) -> list[str]:
    with opened(path) as file:
        schema = file.schema_arrow
        audio = schema.field("audio").type if "audio" in schema.names else None
        if "file" not in schema.names or not str(audio).startswith("struct<bytes: binary"):
            columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
            raise ValueError(
                f"{path} has another layout: {columns}. Expected file: string, audio: struct<bytes: binary, ...>. "
                "Fetch the file again, or choose another folder with --data"
            )
        names: list[str | None] = file.read(["file"]).column("file").to_pylist()
    for row, name in enumerate(names):
        if not name or name.count("/") != 1:
            raise ValueError(
                f"row {row} of {path} has the file name {name!r}, expected <word>/<speaker>_nohash_<n>.wav"
            )
    return [name for name in names if name]


def _rows(path: Path, words: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    with opened(path) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=["file", "audio"]):
            names, contents = batch.column("file").to_pylist(), batch.column("audio").field("bytes").to_pylist()
            for name, content in zip(names, contents, strict=True):
                if name.partition("/")[0] in words:
                    yield name, content or b""


def check_words(words: tuple[str, ...], there: tuple[str, ...], place: Path) -> None:
    """Raise ValueError unless every one of `words` is `there`."""
    missing = [word for word in words if word not in there]
    if missing:
        held = [word for word in words if word in there]
        raise ValueError(
            f"{place} holds {len(held)} of the {len(words)} words asked for ({', '.join(held) or 'none of them'}), not "
            f"{', '.join(missing)}. Name a folder with the whole official archive, leave out --data and TORCHCBL_DATA "
            "to download it, or ask for fewer words: 'speech-five-words' is bed, cat, happy, no, yes"
        )
