"""Which clips of Speech Commands stand in a folder: the official archive, unpacked, or parquet files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torchcbl.lab.data.parquet import opened
from torchcbl.lab.data.speech_folder import has_words, holds_clips
from torchcbl.lab.data.speech_words import PARTS, which_part
from torchcbl.lab.data.waveforms import Encoded, stamp_of

LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
NOISE = "_background_noise_"
ROWS_AT_ONCE = 200


@dataclass(frozen=True)
class Source:
    """Clips that can be decoded.

    Args:
        place: Their folder.
        total: How many there are.
        stamp: Changes whenever a file does.
        encoded: Yields the clips of the words asked for, part by part.
        noise: The files of background noise.
    """

    place: Path
    total: int
    stamp: str
    encoded: Callable[[], Iterable[Encoded]]
    noise: tuple[Path, ...]


def list_speech_commands(place: Path, words: tuple[str, ...]) -> Source:
    """List the clips of `words` in a folder that `find_speech_commands` found.

    Raises:
        ValueError: A word is not there, a parquet file is damaged or of another layout, or one of the two official
            lists is there without the other.
    """
    return _list_archive(place, words) if has_words(place) else _list_parquet(place, words)


def _list_archive(place: Path, words: tuple[str, ...]) -> Source:
    there = tuple(sorted(path.name for path in place.iterdir() if holds_clips(path) and path.name != NOISE))
    _check_words(words, there, place)
    listed = _official_parts(place)
    names = {f"{word}/{path.name}" for word in words for path in (place / word).glob("[!.]*.wav")}
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
    return Source(place, len(names), stamp, encoded, tuple(sorted((place / NOISE).glob("[!.]*.wav"))))


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
    _check_words(words, there, place)

    def encoded() -> Iterator[Encoded]:
        for part, paths in files.items():
            for path in paths:
                yield from (Encoded(name, part, content) for name, content in _rows(path, words))

    total = sum(name.partition("/")[0] in words for name in names)
    noise = [
        path for folder in (place, place.parent) for path in sorted((folder / "background_noise").glob("[!.]*.flac"))
    ]
    stamp = stamp_of(path for paths in files.values() for path in paths)
    return Source(place, total, stamp, encoded, tuple(noise))


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


def _check_words(words: tuple[str, ...], there: tuple[str, ...], place: Path) -> None:
    """Raise ValueError unless every one of `words` is `there`."""
    missing = [word for word in words if word not in there]
    if missing:
        held = [word for word in words if word in there]
        raise ValueError(
            f"{place} holds {len(held)} of the {len(words)} words asked for ({', '.join(held) or 'none of them'}), not "
            f"{', '.join(missing)}. Name a folder with the whole official archive, leave out --data and TORCHCBL_DATA "
            "to download it, or ask for fewer words: 'speech-five-words' is bed, cat, happy, no, yes"
        )
