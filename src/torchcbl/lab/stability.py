"""Does a trained loop settle? Its contraction, its fixed points and its answers beyond T, on validation samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

import torchcbl as cbl
from torchcbl.backbone.calls import Call
from torchcbl.lab.data import Progress, load_dataset
from torchcbl.lab.data.identity import check_identity
from torchcbl.lab.data.progress import silent
from torchcbl.lab.inspection import find_run, rebuild
from torchcbl.lab.scores import Scores
from torchcbl.solvers import SOLVERS, iterate
from torchcbl.theory import Contraction, Recommendation
from torchcbl.theory.space import opened

TOLERANCE = 1e-4
_BATCH = 64
_BY_STEP = ("lengths", "errors")


@dataclass(frozen=True)
class Stability:
    """What was found of one run.

    Args:
        run: `<arm>-seed<seed>`.
        data: Name of the data set.
        trained_steps: T of its training.
        report: The contraction, of all samples.
        outputs_accuracy: Validation accuracy of y_0..y_K by step.
        outputs_loss: Validation loss of the same.
        recommendation: Damping and steps that make every sample settle.
        solved: Per solver: how many samples settle, and the evaluations they take on average.
    """

    run: str
    data: str
    trained_steps: int
    report: Contraction
    outputs_accuracy: tuple[float, ...]
    outputs_loss: tuple[float, ...]
    recommendation: Recommendation
    solved: dict[str, tuple[int, float]]

    @property
    def samples(self) -> int:
        """How many samples were looked at."""
        return len(self.report.status)

    def as_dict(self) -> dict[str, object]:
        """Return it as plain data, quantiles in place of samples."""
        report = self.report
        numbers = {name: _quantiles(getattr(report, name)) for name in _PER_SAMPLE if getattr(report, name) is not None}
        return {
            "run": self.run,
            "data": f"{self.data}, validation part",
            "samples": self.samples,
            "trained_steps": self.trained_steps,
            "state": report.space,
            "state_size": report.size,
            "alpha": report.alpha,
            "exact": report.exact,
            "certified_reason": report.reason,
            "fixed_points_found": int((report.status == cbl.Status.converged).sum()),
            "settles_locally": int((report.asymptotic_rate < 1).sum()),
            "quantiles": {"of": [0.0, 0.25, 0.5, 0.75, 1.0], **numbers},
            "recommendation": {f.name: getattr(self.recommendation, f.name) for f in fields(self.recommendation)},
            "validation_accuracy_by_step": list(self.outputs_accuracy),
            "validation_loss_by_step": list(self.outputs_loss),
            "solvers": {name: {"settled": n, "evaluations": mean} for name, (n, mean) in self.solved.items()},
        }


_PER_SAMPLE = ("spectral_norm", "spectral_radius", "certified", "rate", "asymptotic_rate", "measured_rate")


def examine(
    folder: Path, data: Path | None = None, samples: int = 128, steps: int = 64, progress: Progress = silent
) -> Stability:
    """Examine a finished run on validation samples; the test part is not touched.

    Args:
        folder: OUT/runs/<arm>-seed<k>.
        data: Folder of the data; None for `TORCHCBL_DATA` or a download.
        samples: How many validation samples, at least 1, each class by its share; all where there are fewer.
        steps: How far the loop is run, at least 2 and at least the T of its training.
        progress: Called while data are read.

    Raises:
        ValueError: The run has no loop, a number is out of its range, or the data are not those of the study.
        FileNotFoundError: There is no such run, or it is not finished.
    """
    if samples < 1 or steps < 2:
        raise ValueError(f"samples must be >= 1 and steps >= 2, got samples={samples} and steps={steps}.")
    run, model = find_run(folder), rebuild(folder)
    if not isinstance(model, cbl.ContextLoop):
        raise ValueError(f"{run.name} is no `ContextLoop`: it has no loop that could settle.")
    trained = model.config.steps
    if steps < trained:
        raise ValueError(
            f"{run.name} was trained for T = {trained} steps: run it for at least as many, got steps={steps}."
        )
    model.eval()
    dataset = load_dataset(run.recipe, data, progress)
    check_identity(run.out, dataset)
    batches = dataset.batches("validation", _BATCH, limit=samples)
    reports, scores, solved = [], Scores(), dict[str, list[tuple[Tensor, Tensor]]]()
    for x, target in batches:
        reports.append(cbl.contraction(model, x, steps=steps))
        with torch.no_grad():
            scores.add(model.refine(x, steps=steps).outputs, target)
            for name, settled, evaluations in _solve(model, x, steps):
                solved.setdefault(name, []).append((settled, evaluations))
    report = join(reports)
    return Stability(
        run=run.name,
        data=run.recipe.data,
        trained_steps=trained,
        report=report,
        outputs_accuracy=tuple(scores.accuracy),
        outputs_loss=tuple(scores.loss),
        recommendation=report.recommend(TOLERANCE),
        solved={name: _count(parts) for name, parts in solved.items()},
    )


def join(reports: Sequence[Contraction]) -> Contraction:
    """Put the reports of several batches of one loop together."""
    first = reports[0]
    joined: dict[str, object] = {}
    for field in fields(first):
        values = [getattr(report, field.name) for report in reports]
        if all(isinstance(value, Tensor) for value in values):
            joined[field.name] = torch.cat(values, dim=1 if field.name in _BY_STEP else 0)
    return replace(first, **joined)  # type: ignore[arg-type]


def _solve(model: cbl.ContextLoop, x: Tensor, evaluations: int) -> list[tuple[str, Tensor, Tensor]]:
    """Which samples each solver takes below the tolerance within so many evaluations; on the map of step T."""
    found = []
    with opened(model, Call((x,))) as space, torch.no_grad():
        g = space.g
        for name, kind in SOLVERS.items():
            solver, start = kind(), g.prepare()
            steps = max(2, evaluations // (1 + solver.extra_evaluations(start.shape[1])))
            try:
                trace = iterate(
                    g, start, g.output, solver, cbl.Tolerance(TOLERANCE), steps, first=space.at_step, keep_outputs=False
                )
            except ValueError:  # a state too large for Newton
                continue
            found.append((name, trace.status == cbl.Status.converged, trace.evaluations))
    return found


def _count(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[int, float]:
    settled, evaluations = (torch.cat(column) for column in zip(*parts, strict=True))
    return int(settled.sum()), float(evaluations.double().mean())


def _quantiles(values: Tensor) -> list[float | None]:
    kept = values.double()[values.isfinite()]
    if not len(kept):
        return [None] * 5
    return [float(q) for q in torch.quantile(kept, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).double())]
