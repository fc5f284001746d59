"""Users' own data: one folder of files per class, in one piece or in official parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from torchcbl.lab.data.clips import Clips
from torchcbl.lab.data.images import Images
from torchcbl.lab.data.waveforms import stamp_of

PART_FOLDERS = {
    "train": "train", "training": "train",
    "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip

Labelled = TypeVar("Labelled", Images, Clips)


@dataclass(frozen=True, eq=False)
class FolderParts(Generic[Labelled]):
    """Hold what a folder of class folders holds.

    Args:
        train: What a model is fitted to; everything, where the folder has no parts of its own.
        validation: The folder's own validation part; None where it has none, to be held out of `train`.
        test: The folder's own test part; None where it has none, to be held out of `train` first.
        classes: The names of the class folders, sorted; labels are places in it.
    """

    train: Labelled
    validation: Labelled | None
    test: Labelled | None
    classes: tuple[str, ...]


class ClassFile(NamedTuple):
    """One file: its name below the part's folder, as 'dog/1.wav', its part, its class and where it is."""

    name: str
    part: str
    class_name: str
    path: Path


@dataclass(frozen=True)
class ClassFolders:
    """List the files of a folder of class folders, sorted, part by part."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[ClassFile, ...]

    def labels(self, names: Sequence[str]) -> list[int]:
        """Look up the class of each file by its name."""
        places = {name: index for index, name in enumerate(self.classes)}
        return [places[name.partition("/")[0]] for name in names]

    @property
    def stamp(self) -> str:
        """Changes whenever a file does."""
        return stamp_of(file.path for file in self.files)


def list_class_folders(folder: Path, suffixes: frozenset[str]) -> ClassFolders:
    """List the files in the class folders of `folder`, or of its `train`, `validation` and `test`.

    `folder` has parts of its own where a folder named as one (`train`, `validation` or `val`, `test`) holds folders.
    Class folders are searched to any depth; names that begin with a dot are left alone.

    Args:
        folder: The folder.
        suffixes: Endings of the files that count, in small letters with the dot.

    Returns:
        Classes and files; one part, "train", where the folder has no parts of its own.

    Raises:
        FileNotFoundError: `folder` is not a folder.
        ValueError: There are fewer than two classes, a class is empty or not in the train part, another folder
            stands beside the parts, or a name is not UTF-8.
    """
    root = folder.expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"the data folder {root} is not a folder: name one that holds a folder per class")
    parts = _parts(root)
    files = tuple(
        ClassFile(path.relative_to(place).as_posix(), part, path.relative_to(place).parts[0], path)
        for part, place in parts.items()
        for path in _files(place, suffixes)
    )
    classes = tuple(sorted({file.class_name for file in files if file.part == "train"}))
    _check_names(root, *(file.path for file in files))
    _check(root, parts, classes, files, suffixes)
    return ClassFolders(root, classes, files)


def _check_names(*paths: Path) -> None:
    """Refuse names that could not be written down."""
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the name of {str(path)!a} is not UTF-8: rename it") from error


def _parts(root: Path) -> dict[str, Path]:
    """Name the folder of each part, train first; all is one part where there are none."""
    named = {path: PART_FOLDERS[path.name] for path in _folders(root) if path.name in PART_FOLDERS}
    if not any(_folders(path) for path in named):
        return {"train": root}
    parts = {part: path for path, part in named.items()}
    others = [path.name for path in _folders(root) if path not in parts.values()]
    if others or "train" not in parts:
        found = ", ".join(path.name for path in _folders(root))
        raise ValueError(
            f"{root} has the folders {found}, expected train, and validation or test or both, each once and with no "
            "other folder beside them: rename or move what does not belong there"
        )
    return {part: parts[part] for part in ("train", "validation", "test") if part in parts}


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(place: Path, suffixes: frozenset[str]) -> list[Path]:
    return sorted(
        path
        for folder in _folders(place)
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(name.startswith(".") for name in path.relative_to(place).parts)
        and path.is_file()
    )


def _check(
    root: Path, parts: dict[str, Path], classes: tuple[str, ...], files: tuple[ClassFile, ...], suffixes: frozenset[str]
) -> None:
    kinds = ", ".join(sorted(suffixes))
    for part, place in parts.items():
        filled = {file.class_name for file in files if file.part == part}
        for path in _folders(place):
            if path.name not in filled:
                raise ValueError(f"{path} holds no file that ends in {kinds}: fill it, or remove it")
            if path.name not in classes:
                raise ValueError(f"{path} is a class that train lacks: there are {', '.join(classes)}")
    if len(classes) < 2:
        raise ValueError(
            f"{root} holds {len(classes)} folders with files that end in {kinds}, expected one folder per class and "
            "at least two classes"
        )
