"""The section of `ambiguity`: agreement with human votes, by how much people disagree."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from torchcbl.lab.measures.ambiguity import Ambiguity
from torchcbl.lab.measures.found import Measures, Row
from torchcbl.lab.report.drawing import canvas, legend, title
from torchcbl.lab.report.measures.section import Read, Section, curves, of_loops, table_of, verdicts
from torchcbl.lab.report.tables import Table

_NOTE = (
    "CIFAR-10H (Peterson et al. 2019): about {people:.0f} votes on each test image. The cross entropy to the "
    "votes cannot be below their own entropy, {entropy:.4f} nats. An answer is a favourite where no class has "
    "more votes. Many images have votes for one class only, so the lower tenths differ by chance alone."
)


def section(found: Measures) -> Section | None:
    """Build the section; None where nothing was measured."""
    rows = found.rows(found.of("ambiguity", Ambiguity), lambda run: len(run.steps))
    if not rows:
        return None
    first = rows[0].runs[0]
    what = "Accuracy on the tenth of the images that people disagree on most"
    said = verdicts(found, rows, what, lambda run, step: 100 * run.steps[step].accuracy_by_tenth[-1])
    return Section(
        "ambiguity",
        "Human votes: ambiguous images",
        said,
        (_agreement(rows), _tenths(rows)),
        (("tenths", _by_tenth(rows), "Accuracy of y_T in each tenth of the images by entropy of the votes."),),
        _NOTE.format(people=first.about.settings.get("people", 0), entropy=first.human_entropy),
        told=of_loops(found, said),
    )


def _agreement(rows: Sequence[Row[Ambiguity]]) -> Table:
    return table_of(
        "Agreement with human votes: cross entropy and KL (nats), accuracy (%), correlation of entropies",
        rows,
        {
            "Cross entropy": (lambda run, step: run.steps[step].cross_entropy, ".4f"),
            "KL": (lambda run, step: run.steps[step].kl, ".4f"),
            "Label": lambda run, step: 100 * run.steps[step].accuracy,
            "Favourite": lambda run, step: 100 * run.steps[step].majority,
            "Label, most ambiguous tenth": lambda run, step: 100 * run.steps[step].accuracy_by_tenth[-1],
            "Favourite, most ambiguous tenth": lambda run, step: 100 * run.steps[step].majority_by_tenth[-1],
            "Pearson": (lambda run, step: run.steps[step].pearson, ".3f"),
            "Spearman": (lambda run, step: run.steps[step].spearman, ".3f"),
        },
    )


def _tenths(rows: Sequence[Row[Ambiguity]]) -> Table:
    entropy = rows[0].runs[0].entropy_by_tenth
    columns = {f"{number} ({value:.2f})": _reader(number - 1) for number, value in enumerate(entropy, start=1)}
    return table_of("Accuracy (%) by tenth, in brackets the mean entropy of its votes (nats)", rows, columns)


def _reader(tenth: int) -> Read[Ambiguity]:
    return lambda run, step: 100 * run.steps[step].accuracy_by_tenth[tenth]


def _by_tenth(rows: Sequence[Row[Ambiguity]]) -> Figure:
    figure, axes = canvas()
    count = len(rows[0].runs[0].entropy_by_tenth)
    curves(
        axes,
        rows,
        tuple(float(number) for number in range(1, count + 1)),
        lambda run, step, place: 100 * run.steps[step].accuracy_by_tenth[place],
    )
    axes.set_xlabel("Tenth of the images by entropy of human votes")
    axes.set_ylabel("Test accuracy (%)")
    title(axes, "Where people disagree, networks err", "")
    legend(figure, axes)
    return figure
