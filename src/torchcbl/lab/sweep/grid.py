"""What a sweep goes over: values of recipe keys, and the settings that they make together."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torchcbl.lab.recipe import Recipe, parse_value, reads

LOOP_KEYS = ("steps", "alpha", "context_dim", "adapter", "weights", "schedule", "sites", "step_norm")
"""Recipe keys that arms without a loop do not read."""
SAMPLE_SEED = 0
EXAMPLE = "--over steps=1,2,3 --over alpha=0,0.3"
_ALL, _DEFAULT = "all", "default"
_FIXED = {
    "name": "it only names the study",
    "data": "scores on other data do not compare",
    "arms": "a sweep is about one arm: --arm names it",
    "seeds": "every setting gets the same: --seeds says how many",
    "validation_size": "it changes the data that settings are chosen by",
    "damaged": "it changes the data that settings are chosen by",
}


@dataclass(frozen=True)
class Setting:
    """Values of some recipe keys, in the recipe's order.

    Args:
        values: Keys and values.

    Example:
        >>> setting = Setting((("steps", 2), ("sites", ("block1", "block3"))))
        >>> setting.label
        'steps=2,sites=block1+block3'
        >>> setting.without(("sites",)).label
        'steps=2'
    """

    values: tuple[tuple[str, object], ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys."""
        return tuple(key for key, _ in self.values)

    @property
    def label(self) -> str:
        """Keys and values as text; settings of one sweep differ in it."""
        return ",".join(f"{key}={shown(value)}" for key, value in self.values)

    def applied(self, recipe: Recipe) -> Recipe:
        """Return the recipe with these values.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: A value is out of range.
        """
        changes = dict(self.values)
        return dataclasses.replace(recipe, **changes)  # type: ignore[arg-type]

    def without(self, keys: Collection[str]) -> Setting:
        """Return the setting of the other keys."""
        return Setting(tuple((key, value) for key, value in self.values if key not in keys))


def shown(value: object) -> str:
    """Write a value as `--over` takes it.

    Example:
        >>> shown(0.3), shown(True), shown(("block1", "block3")), shown(()), shown("film")
        ('0.3', 'true', 'block1+block3', 'all', 'film')
    """
    if isinstance(value, tuple):
        return "+".join(value) or _ALL
    if isinstance(value, str):
        return value or _DEFAULT
    return str(value).lower() if isinstance(value, bool) else repr(value)


def make_settings(over: Sequence[str], recipe: Recipe, samples: int | None = None) -> tuple[Setting, ...]:
    """Make the settings of a grid.

    Args:
        over: What to go over, each as "key=value,value"; several sites are joined by "+", "all" is all of them.
        recipe: What holds for the other keys.
        samples: How many settings to draw at random; the same ones every time, and those of a smaller number are among
            those of a larger one. None for all.

    Returns:
        All combinations, or those that were drawn, the last key changing fastest.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: There is nothing to go over, a key or value does not fit or stands twice, or `samples` does not fit.

    Example:
        >>> from torchcbl.lab.recipe import load_recipe
        >>> settings = make_settings(["steps=1,2", "adapter=film,gate"], load_recipe("demo"))
        >>> [setting.label for setting in settings]
        ['steps=1,adapter=film', 'steps=1,adapter=gate', 'steps=2,adapter=film', 'steps=2,adapter=gate']
    """
    if not over:
        raise ValueError(f"a sweep needs something to go over, got no --over: for example {EXAMPLE}")
    factors: dict[str, list[object]] = {}
    for text in over:
        key, values = _factor(text, recipe)
        if key in factors:
            raise ValueError(f"--over {key} is given twice: list all its values in one, as in {key}=A,B")
        factors[key] = values
    keys = [field.name for field in dataclasses.fields(Recipe) if field.name in factors]
    grid = [
        Setting(tuple(zip(keys, values, strict=True))) for values in itertools.product(*(factors[key] for key in keys))
    ]
    return tuple(grid if samples is None else _drawn(grid, samples))


def _factor(text: str, recipe: Recipe) -> tuple[str, list[object]]:
    """Read one --over: the key, and its values as the recipe has them."""
    key, equals, listed = (part.strip() for part in text.partition("="))
    if not equals:
        raise ValueError(f"--over needs key=value,value, got '{text}': for example {EXAMPLE}")
    values: list[object] = []
    for one in listed.split(","):
        parsed = parse_value(key, one.strip())
        _check_key(key, recipe)
        if not one.strip():
            raise ValueError(f"--over {key} has an empty value in '{text}': for example {EXAMPLE}")
        if isinstance(getattr(recipe, key), tuple) and isinstance(parsed, str):
            parsed = () if parsed == _ALL else tuple(parsed.split("+"))
        value = getattr(Setting(((key, parsed),)).applied(recipe), key)
        if value in values:
            raise ValueError(f"--over {key} lists {shown(value)} twice, in '{text}': each value once")
        values.append(value)
    return key, values


def _check_key(key: str, recipe: Recipe) -> None:
    if key in _FIXED:
        raise ValueError(f"--over cannot go over '{key}': {_FIXED[key]}.")
    if not reads(recipe.data, key):
        raise ValueError(f"--over cannot go over '{key}': data = \"{recipe.data}\" does not read it.")


def _drawn(grid: Sequence[Setting], samples: int) -> list[Setting]:
    """Draw by a hash, which is the same everywhere, where a generator's sampling may change between versions."""
    if not 1 <= samples <= len(grid):
        raise ValueError(f"--samples must be in 1..{len(grid)}, the number of settings of the grid, got {samples}")
    order = sorted(grid, key=lambda setting: hashlib.sha256(f"{SAMPLE_SEED}/{setting.label}".encode()).digest())
    drawn = set(order[:samples])
    return [setting for setting in grid if setting in drawn]
