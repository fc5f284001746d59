"""What a sweep comes to, in sentences that say how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torchcbl.lab.report.listing import count
from torchcbl.lab.sources import SOURCES
from torchcbl.lab.statistics import Comparison
from torchcbl.lab.sweep.choice import Choice, rank
from torchcbl.lab.sweep.plan import FIRST_SEED
from torchcbl.lab.sweep.results import Candidate, Results


def scored(value: float, by: str) -> str:
    """Write a score, or a deviation of scores.

    Example:
        >>> scored(97.5, "accuracy"), scored(0.12, "loss")
        ('97.50', '0.1200')
    """
    return f"{value:.2f}" if by == "accuracy" else f"{value:.4f}"


def signed(value: float, by: str) -> str:
    """Write a difference of scores.

    Example:
        >>> signed(-0.5, "accuracy"), signed(0.0, "loss")
        ('-0.50', '+0.0000')
    """
    return f"{'-' if value < 0 else '+'}{scored(abs(value), by)}"


def spread(candidate: Candidate) -> str:
    """Write mean and sample deviation; the mean alone where there is one run."""
    std = "" if candidate.std is None else f" ± {scored(candidate.std, candidate.by)}"
    return f"{scored(candidate.mean, candidate.by)}{std}"


def sentences(results: Results, choice: Choice) -> list[str]:
    """Say what was chosen, what its score is worth, what would do for less, and whether any beats no loop."""
    return [
        _chosen(results, choice),
        _luck(results, choice),
        _frugal(choice),
        *_against(results, choice),
        *_caveats(results, choice),
    ]


def label(results: Results) -> str:
    """Say on what it was made."""
    recipe = results.sweep.recipe
    note = SOURCES[recipe.data].note
    first, last = results.seeds[0], results.seeds[-1]
    seeds = f"seeds {first} to {last}" if last > first else f"seed {first}"
    return f"{recipe.name}, validation part{f', {note}' if note else f' of {recipe.data}'}, {seeds}"


def progress(results: Results) -> str:
    """Say how much of it is finished."""
    total, done = len(results.sweep.possible), len(results.complete)
    runs = f"all {len(results.seeds)} runs" if len(results.seeds) > 1 else "their one run"
    text = f"{done} of {total} settings have {runs} finished."
    if results.incomplete:
        parts = (f"{setting.label} ({count} of {len(results.seeds)})" for setting, count in results.incomplete)
        text += f" Not chosen from: {'; '.join(parts)}."
    if len(results.seeds) < results.sweep.seeds:
        text += f" Stopped early: judged by {len(results.seeds)} of {results.sweep.seeds} seeds."
    return text


def _chosen(results: Results, choice: Choice) -> str:
    best, tried = choice.best, len(choice.ranking)
    how = f"by validation {best.by} of y_T after the last epoch, mean over {count(best.n, 'seed')}"
    ties = [one for one in choice.ranking[1:] if one.worth == best.worth]
    tie = f" {count(len(ties), 'other')} scored the same and cost no less." if ties else ""
    if tried == 1:
        return f"One setting of {best.arm}: {best.setting.label}, {spread(best)}{_percent(best)}, {how}."
    return f"Best of {tried} settings of {best.arm}: {best.setting.label}, {spread(best)}{_percent(best)}, {how}.{tie}"


def _luck(results: Results, choice: Choice) -> str:
    best, tried = choice.best, len(choice.ranking)
    if tried == 1:
        return "Nothing was chosen, so its score is not flattered by a choice; the validation samples are the same."
    text = (
        f"That score is too good on average: it is the best of {tried}, and part of what made it the best is luck "
        "(the winner's curse)."
    )
    if choice.left_out is None:
        return f"{text} With one seed nothing says how much."
    if not math.isfinite(choice.left_out):
        return f"{text} Chosen on all seeds but one, the choice diverged on one that was left out."
    return (
        f"{text} Chosen on all seeds but one and scored on that one, for each in turn, the choice scores "
        f"{scored(choice.left_out, best.by)}{_percent(best)}. That takes out the luck of the seeds, not that of the "
        "validation samples, which all settings share."
    )


def _frugal(choice: Choice) -> str:
    best, frugal = choice.best, choice.frugal
    if frugal is None:
        return "With one seed there is no standard error to say which cheaper setting is as good."
    assert best.standard_error is not None
    within = f"within one standard error ({scored(best.standard_error, best.by)}) of the best"
    if frugal is best:
        return f"No cheaper setting is {within}."
    ratio = frugal.cost[0] / best.cost[0]
    same = "at the same FLOPs for an answer and fewer in training" if ratio == 1 else f"at {ratio:.2f} x its FLOPs"
    return f"The cheapest {within} is {frugal.setting.label}: {spread(frugal)}{_percent(frugal)}, {same}."


def _against(results: Results, choice: Choice) -> list[str]:
    best, found, plain = choice.best, choice.against[0], results.sweep.plain
    reference = results.reference(best)
    if found is None or found.mean is None or reference is None:
        return [f"No run of {plain} with the same seeds has finished: nothing says whether any setting beats no loop."]
    compared = [one for one in choice.against if one is not None and one.mean is not None]
    better = [one for one in compared if _improves(one, best.by)]
    return [
        f"{plain}, without a loop: {spread(reference)}{_percent(reference)}. The best minus {plain}: "
        f"{_difference(found, best.by)}; as it is the best that is compared, this too is too good on average."
        f"{f' {plain} is itself within one standard error of the best.' if _near(best, reference) else ''}",
        f"{len(better)} of {len(compared)} settings are better than it on average. {_shown(compared, best.by)}",
    ]


def _near(best: Candidate, other: Candidate) -> bool:
    return best.standard_error is not None and other.worth >= best.worth - best.standard_error


def _difference(found: Comparison, by: str) -> str:
    assert found.mean is not None
    unit = " points" if by == "accuracy" else ""
    interval = found.t_interval
    between = f" (95% interval {scored(interval.low, by)} to {scored(interval.high, by)})" if interval else ""
    return f"{signed(found.mean, by)}{unit}{between} over {count(found.n, 'paired run')}"


def _shown(compared: Sequence[Comparison], by: str) -> str:
    tested = [one for one in compared if one.p_holm is not None]
    if not tested:
        return "No test is possible: it needs two seeds whose differences are not all the same."
    better = sum(one.difference_shown and _improves(one, by) for one in tested)
    worse = sum(one.difference_shown for one in tested) - better
    corrected = f"corrected for {tested[0].num_comparisons} tests (Holm)"
    if not better and not worse:
        return f"For none is a difference shown, {corrected}; that is not to say that there is none."
    return f"Shown to be better: {better}; shown to be worse: {worse}, {corrected}."


def _improves(found: Comparison, by: str) -> bool:
    assert found.mean is not None
    return found.mean > 0 if by == "accuracy" else found.mean < 0


def _caveats(results: Results, choice: Choice) -> list[str]:
    sweep, best, found = results.sweep, choice.best, []
    strongest = rank(results.references)[0] if len(results.references) > 1 else None
    if strongest is not None and strongest is not results.reference(best):
        found.append(
            f"{sweep.plain} does best at {strongest.setting.label} ({spread(strongest)}{_percent(strongest)}), which "
            f"is not what is best for {best.arm}: hold them against each other, each at its own best."
        )
    if sweep.epochs != sweep.recipe.epochs and "epochs" not in sweep.keys:
        found.append(
            f"Chosen after {count(sweep.epochs, 'epoch')}, where the recipe trains for {sweep.recipe.epochs}: "
            "the order may be another by then."
        )
    if sweep.recipe.seeds > FIRST_SEED:
        found.append(f"The recipe's seeds reach the sweep's, which begin at {FIRST_SEED}: they are not independent.")
    return found


def _percent(candidate: Candidate) -> str:
    return "%" if candidate.by == "accuracy" else ""
