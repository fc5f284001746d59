"""A recipe: everything that defines a study, in one flat TOML file that validates itself."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from torchcbl.lab.sources import SOURCES

EXTENSIBLE = ("arms", "seeds")
ARM_NAMES = (
    "standard",
    "cbl",
    "cbl-gate",
    "no-context",
    "shuffled-context",
    "frozen-context",
    "label-context",
    "no-loop-deep-supervision",
    "untied",
    "wider-params",
    "wider-flops",
    "ensemble",
    "loop-free",
    "as-released-standard",
    "as-released-cbl",
    "as-released-standard-no-dropout",
    "as-released-cbl-dropout",
)
DERIVED_ARMS = {"loop-free": ("cbl", 0)}
"""Arms that are not trained: each is another arm's runs, read at one step."""
ADAPTER_NAMES = ("film", "gate", "additive", "concat", "attention", "recurrent")
SCHEDULE_NAMES = ("repropagate", "synchronous", "literal")
WEIGHT_NAMES = ("uniform", "last", "linear", "geometric")
STEP_NORM_NAMES = ("per_step", "shared", "frozen", "shared_tracked")
SITE_NAMES = ("block1", "block2", "block3")


@dataclass(frozen=True)
class Recipe:
    """Define a study: which arms, on what data, trained how, how often.

    Args:
        name: The study's name; letters, digits, `.`, `_` and `-`.
        data: "digits" (8x8, embedded), "cifar10", "speech-commands", "speech-five-words", or a folder of one's own,
            "images" or "audio".
        arms: What is compared, out of `ARM_NAMES`.
        seeds: How many runs of each arm: seeds 0, 1, ..., seeds - 1.
        epochs: Passes over the training data.
        batch_size: Images per optimiser step.
        learning_rate: Adam's step size at the start, > 0.
        halve_every: Halve the step size every so many epochs; 0 never does.
        validation_size: Samples held out of the training data, stratified by class, where the data have no validation
            part; as many again for a test part of one's own data. 0: a tenth.
        augment: Random crop and flip of images, in training only.
        width: Channels of the network's first block.
        steps: T, refinement steps of the arms with a loop.
        alpha: Weight of the OLD state in h <- alpha h + (1 - alpha) psi(h, z), in [0, 1).
        context_dim: Length of the context vector z.
        masking: Time and frequency masks over spectrograms, in training only.
        noise: Share of the clips to which background noise is mixed, in training only; in [0, 1].
        image_size: Height and width to which images of one's own are resized.
        seconds: Length to which sound of one's own is padded or cropped.
        adapter: Feedback adapter of `cbl` and its controls, out of `ADAPTER_NAMES`; "" for each arm's own.
        weights: lambda of the loss of `cbl` and its controls, out of `WEIGHT_NAMES`; "" for each arm's own.
        schedule: Of the arms with a loop: "repropagate", "synchronous" or "literal".
        sites: Blocks that feedback enters, out of `SITE_NAMES`, in that order; none for all three.
        step_norm: How batch norms of the arms with a loop normalise at the steps, out of `STEP_NORM_NAMES`.
        damaged: What to do with a file of sound, or of images of one's own, that cannot be decoded: "refuse" or "skip"
            (with a warning that names it).

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of range.

    Example:
        >>> recipe = load_recipe("demo", {"epochs": "2"})
        >>> recipe.data, recipe.epochs
        ('digits', 2)
    """

    name: str
    data: str
    arms: tuple[str, ...]
    seeds: int
    epochs: int
    batch_size: int
    learning_rate: float
    halve_every: int
    validation_size: int
    augment: bool
    width: int
    steps: int
    alpha: float
    context_dim: int
    masking: bool = False
    noise: float = 0.0
    image_size: int = 32
    seconds: float = 1.0
    damaged: str = "refuse"
    adapter: str = ""
    weights: str = ""
    schedule: str = "repropagate"
    sites: tuple[str, ...] = ()
    step_norm: str = "per_step"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _typed(field.name, str(field.type), getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        for key, (allowed, expectation) in _RANGES.items():
            if not allowed(getattr(self, key)):
                raise ValueError(f"recipe key '{key}' must be {expectation}, got {_shown(getattr(self, key))}")
        for key, off in _OFF.items():
            if getattr(self, key) != off and not reads(self.data, key):
                raise ValueError(
                    f"recipe key '{key}' must be left at {_shown(off)}, got {_shown(getattr(self, key))}: "
                    f'data = "{self.data}" does not read it'
                )
        for arm in self.arms:
            if arm not in ARM_NAMES:
                raise ValueError(f"unknown arm '{arm}'{_closest(arm, ARM_NAMES)} Arms: {', '.join(ARM_NAMES)}.")
            source, step = DERIVED_ARMS.get(arm, (arm, 0))
            if source not in self.arms:
                raise ValueError(f"arm '{arm}' is '{source}' read at step {step}: name '{source}' among the arms too.")

    @property
    def trained_arms(self) -> tuple[str, ...]:
        """The arms that have runs of their own."""
        return tuple(arm for arm in self.arms if arm not in DERIVED_ARMS)

    def as_dict(self) -> dict[str, object]:
        """The recipe as flat keys and plain values, as TOML and JSON hold them; without options that are not used."""
        fields = [field for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        values = {field.name: getattr(self, field.name) for field in fields}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def as_toml(self) -> str:
        """The recipe as TOML text; `read_recipe` gives the same recipe back."""
        return "".join(f"{key} = {_shown(value)}\n" for key, value in self.as_dict().items())


def reads(data: str, key: str) -> bool:
    """Say whether data of that name depend on a recipe key.

    Example:
        >>> reads("cifar10", "augment"), reads("cifar10", "masking"), reads("cifar10", "epochs")
        (True, False, True)
    """
    source = SOURCES[data]
    return {
        "augment": source.noun == "image",
        "masking": source.noun == "clip",
        "noise": source.noun == "clip",
        "image_size": data == "images",
        "seconds": data == "audio",
        "damaged": source.own or source.noun == "clip",
        "validation_size": source.own or source.noun == "image",
    }.get(key, True)


def differences(found: Mapping[str, object], recipe: Recipe) -> list[str]:
    """Say in which keys other plain values differ from a recipe; arms and seeds may, since a study can be extended.

    Example:
        >>> recipe = load_recipe("demo")
        >>> differences({**recipe.as_dict(), "seeds": 99, "alpha": 0.5}, recipe)
        ['alpha is 0.5 there, 0.0 here']
    """
    defaults = {key: list(value) if isinstance(value, tuple) else value for key, value in _OPTIONAL.items()}
    there, here = {**defaults, **found}, {**defaults, **recipe.as_dict()}
    keys = [key for key in here if key not in EXTENSIBLE and there.get(key) != here[key]]
    unknown = [key for key in there if key not in here]
    return [
        *(f"{key} is {_shown(there.get(key))} there, {_shown(here[key])} here" for key in keys),
        *(f"{key} is {_shown(there[key])} there, unknown to this version of torchcbl" for key in unknown),
    ]


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(Path(entry.name).stem for entry in _shelf().iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Load a recipe and change single values of it.

    Args:
        name_or_path: The name of one that comes with the package (`recipe_names`), or the path of a TOML file.
        overrides: Key to value as TOML text: `{"alpha": "0.1", "arms": '["standard", "cbl"]'}`; strings need
            no quotes.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: A value has the wrong type.
        ValueError: The recipe, a key or an arm is unknown, or a value out of range.
    """
    changes = {key: parse_value(key, text) for key, text in (overrides or {}).items()}
    path = Path(name_or_path)
    if path.suffix == ".toml" or len(path.parts) > 1:
        return read_recipe(path, changes)
    names = recipe_names()
    if str(name_or_path) not in names:
        raise ValueError(
            f"unknown recipe '{name_or_path}'{_closest(str(name_or_path), names)} "
            f"Recipes: {', '.join(names)}, or the path of a .toml file."
        )
    return _resolve(f"{name_or_path}", _shelf().joinpath(f"{name_or_path}.toml").read_text("utf-8"), changes)


def read_recipe(path: Path, changes: Mapping[str, object] | None = None) -> Recipe:
    """Read a recipe from a TOML file.

    Args:
        path: The file.
        changes: Values that replace those of the file.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: A value has the wrong type.
        ValueError: The file is not TOML, a key is unknown or missing, or a value out of range.
    """
    if not path.is_file():
        raise FileNotFoundError(f"recipe {path} is not there; recipes that come along: {', '.join(recipe_names())}.")
    try:
        text = path.read_text("utf-8-sig")  # Notepad begins a file with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"recipe {path} is not valid TOML: {error}") from error
    return _resolve(str(path), text, changes or {})


def _shelf() -> resources.abc.Traversable:
    return resources.files("torchcbl.lab").joinpath("recipes")


def _resolve(source: str, text: str, changes: Mapping[str, object]) -> Recipe:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"recipe {source} is not valid TOML: {error}") from error
    values.update(changes)
    for key in values:
        _check_key(key)
    missing = [key for key in _REQUIRED if key not in values]
    if missing:
        raise ValueError(f"recipe {source} lacks {', '.join(missing)}; it must give {', '.join(_REQUIRED)}.")
    return Recipe(**values)


def parse_value(key: str, text: str) -> object:
    """Read the value of a recipe key as TOML; a text that is none is a string, where a string is wanted.

    Raises:
        ValueError: There is no such key; the message names the closest.
    """
    _check_key(key)
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    return parsed["value"] if list(parsed) == ["value"] else text


def _check_key(key: str) -> None:
    if key not in KEYS:
        raise ValueError(f"unknown recipe key '{key}'{_closest(key, KEYS)} Keys: {', '.join(KEYS)}.")


def _closest(word: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(choices), n=2)
    return f": did you mean {' or '.join(repr(match) for match in close)}?" if close else "."


def _typed(key: str, kind: str, value: object) -> object:
    """Return the value as the field's type; an int passes for a float, a boolean never for a number."""
    if kind == "float" and type(value) is int:
        value = float(value)
    if kind == "tuple[str, ...]" and isinstance(value, (list, tuple)):
        if all(isinstance(item, str) for item in value):
            return tuple(value)
    elif type(value).__name__ == kind:
        return value
    raise TypeError(f"recipe key '{key}' must be {_KINDS[kind]}, got {_shown(value)}")


def _shown(value: object) -> str:
    """Write a value as TOML."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_shown(item) for item in value)}]"
    if isinstance(value, (bool, str)):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


KEYS = tuple(field.name for field in dataclasses.fields(Recipe))
_OPTIONAL = {f.name: f.default for f in dataclasses.fields(Recipe) if f.default is not dataclasses.MISSING}
_REQUIRED = tuple(key for key in KEYS if key not in _OPTIONAL)
_SHAPING = ("masking", "noise", "image_size", "seconds", "damaged")
_OFF = {"augment": False, "validation_size": 0, **{key: _OPTIONAL[key] for key in _SHAPING}}
"""Keys that some data do not read, and the value that says nothing."""

_KINDS = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple[str, ...]": "a list of strings",
}

_RANGES: dict[str, tuple[Callable[..., bool], str]] = {
    "name": (
        lambda v: re.fullmatch(r"\w[\w.-]*", v, re.ASCII) is not None,
        "letters, digits, '.', '_' or '-'",
    ),
    "data": (lambda v: v in SOURCES, f"one of {', '.join(SOURCES)}"),
    "arms": (lambda v: 0 < len(v) == len(set(v)), "at least one arm, none twice"),
    "seeds": (lambda v: v >= 1, ">= 1"),
    "epochs": (lambda v: v >= 1, ">= 1"),
    "batch_size": (lambda v: v >= 1, ">= 1"),
    "learning_rate": (lambda v: 0 < v < math.inf, "> 0 and finite"),
    "halve_every": (lambda v: v >= 0, ">= 0 (0 never halves)"),
    "validation_size": (lambda v: v >= 0, ">= 0 (0 takes a tenth)"),
    "width": (lambda v: v >= 1, ">= 1"),
    "steps": (lambda v: v >= 1, ">= 1 (without a step a loop is the plain network)"),
    "alpha": (lambda v: 0 <= v < 1, "in [0, 1) (at 1 the old state never changes)"),
    "context_dim": (lambda v: v >= 1, ">= 1"),
    "noise": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "image_size": (lambda v: v >= 8, ">= 8 (three poolings halve it)"),
    "seconds": (lambda v: 0.1 <= v <= 60, "in [0.1, 60]"),
    "adapter": (lambda v: v in ("", *ADAPTER_NAMES), f"one of {', '.join(ADAPTER_NAMES)}"),
    "weights": (lambda v: v in ("", *WEIGHT_NAMES), f"one of {', '.join(WEIGHT_NAMES)}"),
    "schedule": (lambda v: v in SCHEDULE_NAMES, f"one of {', '.join(SCHEDULE_NAMES)}"),
    "sites": (
        lambda v: v == tuple(site for site in SITE_NAMES if site in v),
        f"out of {', '.join(SITE_NAMES)}, in this order, none twice",
    ),
    "step_norm": (lambda v: v in STEP_NORM_NAMES, f"one of {', '.join(STEP_NORM_NAMES)}"),
    "damaged": (lambda v: v in ("refuse", "skip"), '"refuse" or "skip"'),
}
