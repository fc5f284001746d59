"""The section of `noise`: what the page of sound in noise has, inside this one."""

from __future__ import annotations

from torchcbl.lab.measures.found import Measures
from torchcbl.lab.measures.noise import Noise
from torchcbl.lab.report.measures.section import Section
from torchcbl.lab.report.robustness import draw_noise, sentences, tables
from torchcbl.lab.robustness import Robustness

_NOTE = (
    "Noise is mixed into the test clips from the second halves of the data set's own recordings. Every run meets "
    "the same stretch of noise in the same clip."
)


def section(found: Measures) -> Section | None:
    """Build the section; None where nothing was measured."""
    by_arm = found.of("noise", Noise)
    if not by_arm:
        return None
    robustness = Robustness(found.recipe, tuple(run.as_noisy_run() for runs in by_arm.values() for run in runs))
    said = tuple(sentences(robustness))
    return Section(
        "noise",
        "Sound in background noise",
        said,
        tuple(tables(robustness)),
        (("ratios", draw_noise(robustness), "Accuracy of the answer y_T by signal-to-noise ratio."),),
        _NOTE,
        told=said,
    )
