"""The tables of a sweep: every setting, every value of every key, what cannot be had."""

from __future__ import annotations

from collections.abc import Iterable

from torchcbl.lab.report.sweep.words import scored, signed, spread
from torchcbl.lab.report.tables import NONE, Table
from torchcbl.lab.report.verdict import format_p
from torchcbl.lab.statistics import Comparison
from torchcbl.lab.sweep.choice import Choice, levels
from torchcbl.lab.sweep.grid import shown
from torchcbl.lab.sweep.results import Candidate, Results

UNITS = {"accuracy": "accuracy (%)", "loss": "loss (nats)"}


def settings(results: Results, choice: Choice) -> Table:
    """Every complete setting, best first, and the plain network."""
    sweep = results.sweep
    header = (
        "Rank",
        *sweep.keys,
        "n",
        "Mean ± sd",
        f"Minus {sweep.plain}",
        "p (Holm)",
        "MFLOPs, answer",
        "MFLOPs, training",
        "Seconds",
    )
    rows = [
        (_place(choice, index), *_cells(one, sweep.keys), *_scores(one, found), *_costs(one))
        for index, (one, found) in enumerate(zip(choice.ranking, choice.against, strict=True))
    ]
    rows += [(one.arm, *_cells(one, sweep.keys), *_scores(one, None), *_costs(one)) for one in results.references]
    return Table(f"Validation {UNITS[sweep.by]} of y_T after the last epoch, best first", header, tuple(rows))


def marginals(results: Results) -> Table:
    """The mean over all settings that share a value."""
    by = results.sweep.by
    rows = [
        (
            f"{one.key} = {one.label}",
            str(len(one.means)),
            *(scored(value, by) for value in (one.mean, min(one.means), max(one.means))),
        )
        for one in levels(results.complete)
    ]
    header = ("Value", "Settings", "Mean", "Lowest", "Highest")
    return Table(f"Validation {UNITS[by]} by value: over all settings that have it", header, tuple(rows))


def refused(results: Results) -> Table:
    """What cannot be had, and why."""
    return Table("Settings that cannot be had", ("Setting", "Why"), tuple(results.sweep.refused.items()), words=True)


def recipe(results: Results) -> Table:
    """The recipe that holds for all settings."""
    sweep = results.sweep
    fixed = {key: value for key, value in sweep.recipe.as_dict().items() if key not in (*sweep.keys, "arms", "seeds")}
    values = fixed if "epochs" in sweep.keys else {**fixed, "epochs": sweep.epochs}
    rows = [(key, shown(tuple(value) if isinstance(value, list) else value)) for key, value in values.items()]
    return Table("Recipe of all runs", ("Key", "Value"), (("arm", sweep.arm), *rows))


def surroundings(results: Results) -> Table:
    """Versions and machine; several values where the runs differ."""
    records = [record for one in (*results.candidates, *results.references) for record in one.records]
    found = {
        key: ", ".join(dict.fromkeys(str(getattr(record, what).get(key, NONE)) for record in records))
        for what in ("versions", "machine")
        for key in _keys(getattr(record, what) for record in records)
    }
    return Table("Versions and machine", ("Key", "Value"), tuple(found.items()))


def _keys(mappings: Iterable[dict[str, object]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _place(choice: Choice, index: int) -> str:
    place = str(index + 1)
    if index == 0:
        return f"{place}, chosen"
    return f"{place}, cheapest within 1 SE" if choice.ranking[index] is choice.frugal else place


def _cells(candidate: Candidate, keys: Iterable[str]) -> tuple[str, ...]:
    values = dict(candidate.setting.values)
    return tuple(shown(values[key]) if key in values else NONE for key in keys)


def _scores(candidate: Candidate, found: Comparison | None) -> tuple[str, ...]:
    difference = NONE if found is None or found.mean is None else signed(found.mean, candidate.by)
    p = NONE if found is None or found.p_holm is None else format_p(found.p_holm).removeprefix("= ")
    return str(candidate.n), spread(candidate), difference, p


def _costs(candidate: Candidate) -> tuple[str, ...]:
    return (*(f"{flops / 1e6:,.2f}" for flops in candidate.cost), f"{candidate.seconds:.1f}")
