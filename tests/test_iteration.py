"""One iteration over a batch: exact step counts, samples that leave, statuses, order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from problems import Counting, Known, countdown, kepler, mixed, random, symmetric
from torchcbl.fixed_point import fixed_point
from torchcbl.halting import Confidence, Halting, Never, Progress, Tolerance
from torchcbl.refinement import Status
from torchcbl.solvers import SOLVERS, Anderson, Evaluation, FunctionMap, Map, Picard, Trace, iterate
from torchcbl.solvers.base import NotSelectableError

NUMBERS = torch.tensor([[3.0], [0.0], [1.0], [9.0], [5.0]], dtype=torch.float64)
EXACT = Tolerance(1e-300)


def count_down(steps: int, halting: Halting = EXACT, compact: bool = True) -> tuple[Trace, Counting]:
    g = Counting(countdown, NUMBERS)
    return iterate(g, NUMBERS, NUMBERS, Picard(), halting, steps, compact), g


@pytest.mark.parametrize("compact", [True, False])
def test_step_counts_are_exact(compact: bool) -> None:
    trace, g = count_down(7, compact=compact)
    assert trace.steps.tolist() == [4, 1, 2, 7, 6]
    assert torch.equal(trace.evaluations, trace.steps)
    assert g.tally.tolist() == ([4, 1, 2, 7, 6] if compact else [7] * 5)
    done, most = Status.converged, Status.max_steps
    assert trace.status.tolist() == [done, done, done, most, done]
    assert trace.value[:, 0].tolist() == [0, 0, 0, 2, 0]
    assert trace.point[:, 0].tolist() == [0, 0, 0, 3, 0]


@pytest.mark.parametrize("compact", [True, False])
def test_what_a_finished_sample_had_last_stands_for_its_remaining_steps(compact: bool) -> None:
    trace, _ = count_down(7, compact=compact)
    outputs, moved = torch.stack(trace.outputs)[:, :, 0].T, torch.stack(trace.moved).T
    assert outputs.tolist() == [
        [2, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [8, 7, 6, 5, 4, 3, 2],
        [4, 3, 2, 1, 0, 0, 0],
    ]
    assert moved.tolist()[0] == [1, 1, 1, 0, 0, 0, 0]
    assert torch.stack(trace.residuals).T[3].tolist() == pytest.approx(
        [1 / 8, 1 / 7, 1 / 6, 1 / 5, 1 / 4, 1 / 3, 1 / 2]
    )
    assert torch.stack(trace.residuals).T[2].tolist() == [torch.inf, 0, 0, 0, 0, 0, 0]


def test_nothing_is_computed_when_all_are_done() -> None:
    trace, g = count_down(50)
    assert g.tally.tolist() == [4, 1, 2, 10, 6]
    assert len(trace.outputs) == len(trace.residuals) == len(trace.moved) == 50
    assert all(output is trace.output for output in trace.outputs[10:])
    trace, g = count_down(12, halting=Never())
    assert g.tally.tolist() == trace.steps.tolist() == [12] * 5


class Stubborn(Counting):
    """A map whose samples cannot be taken out, or only so often."""

    willing = 0

    def select(self, index: Tensor) -> Counting:
        if not self.willing:
            raise NotSelectableError
        self.willing -= 1
        return super().select(index)


@pytest.mark.parametrize("willing", [0, 1, 2])
@pytest.mark.parametrize("name", SOLVERS)
def test_samples_that_cannot_be_taken_out_stay_frozen(name: str, willing: int) -> None:
    known = mixed() if name == "picard" else kepler()
    traces = []
    for kind in (Counting, Stubborn):
        g = kind(known.f, known.start, known.theta)
        if isinstance(g, Stubborn):
            g.willing = willing
        traces.append(iterate(g, known.start, known.start, SOLVERS[name](), Tolerance(1e-6), 30))
    for field in ("steps", "evaluations", "status"):
        assert torch.equal(getattr(traces[0], field), getattr(traces[1], field))
    for field in ("outputs", "residuals", "moved"):
        for one, other in zip(getattr(traces[0], field), getattr(traces[1], field), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert len(set(traces[0].steps.tolist())) > 1


def test_divergence_is_measured_against_the_start_of_each_sample() -> None:
    rates = torch.tensor([[0.0], [10.0], [-10.0], [0.5]], dtype=torch.float64)
    start = torch.tensor([[1.0], [1e-6], [1e6], [1.0]], dtype=torch.float64)
    # |G(s) - s| = 9 (or 11) 10^(t - 1) |s_0| passes 100 (1 + 9) |s_0| at t = 4, and 100 (1 + 11) |s_0| as well
    for compact in (True, False):
        trace = fixed_point(lambda s, a: a * s, start, [rates], solver="picard", gradient="bptt", steps=20,
                            halting=EXACT, compact=compact)  # fmt: skip
        assert trace.steps.tolist() == [2, 4, 4, 20]
        diverged = Status.diverged
        assert trace.status.tolist() == [Status.converged, diverged, diverged, Status.max_steps]
    all_steps = fixed_point(lambda s, a: a * s, start, [rates], solver="picard", gradient="bptt", halting=None, steps=6)
    assert all_steps.steps.tolist() == [6] * 4
    assert all_steps.status.tolist() == [Status.converged, diverged, diverged, Status.max_steps]


@pytest.mark.parametrize("compact", [True, False])
def test_non_finite_samples_end_at_once(compact: bool) -> None:
    start = torch.tensor([[1.0], [2.0], [torch.inf]], dtype=torch.float64)
    g = Counting(lambda s: torch.where(s > 3, torch.nan, s + 1) * 1.0, start)
    trace = iterate(g, start, start, Picard(), EXACT, 9, compact)
    assert trace.steps.tolist() == [4, 3, 1]
    assert trace.status.tolist() == [Status.non_finite] * 3


class Reading(Map):
    """A map with an output of its own: of another shape and precision than the state."""

    def __init__(self, rates: Tensor) -> None:
        self.rates = rates

    def __call__(self, s: Tensor, step: int = 1) -> Evaluation:
        y = torch.stack([s[:, 0], -s[:, 0]], dim=1).bfloat16()
        return Evaluation(self.rates * s, y, {"logits": y})

    def select(self, index: Tensor) -> Reading:
        return Reading(self.rates[index])


def test_outputs_are_those_of_the_step() -> None:
    rates, start = torch.tensor([[0.5], [0.25], [0.9]]), torch.tensor([[8.0], [8.0], [8.0]])
    trace = iterate(Reading(rates), start, torch.zeros(3, 2).bfloat16(), Picard(), Confidence(0.99), 4)
    expected = [start * rates**tau for tau in range(4)]
    assert trace.outputs[0][:, 0].tolist() == [8.0] * 3
    assert trace.steps.tolist() == [1, 1, 1]
    trace = iterate(Reading(rates), start, torch.zeros(3, 2).bfloat16(), Picard(), Tolerance(1.5), 4)
    assert trace.steps.tolist() == [1, 4, 1]
    assert trace.outputs[3][1, 0] == expected[3][1, 0].bfloat16()
    assert trace.output.dtype == torch.bfloat16
    assert trace.last is None
    whole = iterate(Reading(rates), start, torch.zeros(3, 2).bfloat16(), Picard(), Never(), 4)
    assert whole.last is not None
    assert whole.last.returned["logits"] is whole.output  # type: ignore[index]


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_none_and_one(name: str, compact: bool, batch: int) -> None:
    known = symmetric()
    theta = [value[:batch] for value in known.theta]
    for gradient in ("bptt", "truncated", "checkpointed", "phantom", "implicit"):
        trace = fixed_point(known.f, known.start[:batch], theta, solver=name, gradient=gradient, compact=compact,
                            halting=Tolerance(1e-12), steps=300)  # fmt: skip
        assert trace.output.shape == (batch, 4)
        assert torch.stack(trace.residuals).shape == (300, batch)
        assert trace.steps.shape == trace.status.shape == trace.evaluations.shape == (batch,)
        torch.testing.assert_close(trace.output, known.answer()[:batch], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("gradient", ["bptt", "truncated", "checkpointed", "phantom", "implicit"])
def test_no_steps(gradient: str) -> None:
    start = random(3, 2, 2)
    trace = fixed_point(torch.cos, start, gradient=gradient, steps=0)
    assert torch.equal(trace.output, start)
    assert trace.outputs == trace.residuals == []
    assert trace.path().residuals.shape == (0, 3)
    assert trace.steps.tolist() == trace.evaluations.tolist() == [0] * 3


def test_states_of_any_layout() -> None:
    start = random(2, 5, 3).transpose(1, 2)
    trace = fixed_point(lambda s: 0.5 * s.cos(), start, solver=Anderson(), halting=Tolerance(1e-12))
    plain = fixed_point(lambda s: 0.5 * s.cos(), start.contiguous(), solver=Anderson(), halting=Tolerance(1e-12))
    assert trace.output.shape == (2, 3, 5)
    assert torch.equal(trace.output, plain.output)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_sample_that_is_done_at_the_first_step_leaves_before_the_solver_sees_it(name: str) -> None:
    known = mixed()
    start = known.start.clone()
    start[4] = known.answer()[4]
    solver = SOLVERS[name]()
    trace = fixed_point(known.f, start, known.theta, solver=solver, gradient="bptt", halting=Tolerance(1e-8), steps=9)
    assert trace.steps[4] == trace.evaluations[4] == 1
    torch.testing.assert_close(trace.output[4], known.answer()[4], rtol=1e-12, atol=0)


def test_first_step_is_told_to_the_map() -> None:
    seen = []

    class Timed(FunctionMap):
        def __call__(self, s: Tensor, step: int = 1) -> Evaluation:
            seen.append(step)
            return super().__call__(s, step)

    start = random(2, 2)
    iterate(Timed(torch.cos, start.shape), start, start, Picard(), Never(), 3, first=4)
    assert seen == [4, 5, 6]


@pytest.mark.parametrize(("start", "message"), [
    (torch.zeros(3), r"start must be a floating-point tensor \(B, ...\) of at least two axes, got torch.float32"),
    (torch.zeros(3, 2, dtype=torch.long), r"start must be a floating-point tensor .* got torch.int64 \(3, 2\)"),
    ([1.0], "start must be a floating-point tensor .* got list"),
])  # fmt: skip
def test_starts_are_checked(start: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fixed_point(torch.cos, start)  # type: ignore[arg-type]


class Wide(Map):
    """A map whose state is the first number of its output, in the same memory."""

    def __call__(self, s: Tensor, step: int = 1) -> Evaluation:
        y = torch.stack([s[:, 0] / 2, torch.where(s[:, 0] < 0.3, torch.nan, s[:, 0])], dim=1)
        return Evaluation(y[:, :1], y)

    def select(self, index: Tensor) -> Wide:
        return self


def test_outputs_that_are_more_than_the_state_are_looked_at_whole() -> None:
    start = torch.tensor([[1.0], [4.0]])
    trace = iterate(Wide(), start, torch.zeros(2, 2), Picard(), Tolerance(1e-6), 9)
    assert trace.steps.tolist() == [3, 5]
    assert trace.status.tolist() == [Status.non_finite] * 2


class Wrong(Halting):
    def __init__(self, answer: object) -> None:
        self.answer = answer

    def done(self, progress: Progress, memory: object) -> tuple[Tensor, object]:
        return self.answer(progress), memory  # type: ignore[operator]


def test_stopping_rules_must_answer_for_each_sample() -> None:
    for answer, got in [
        (lambda p: p.output > 0, r"torch.bool \(2, 3\)"),
        (lambda p: p.residual, r"torch.float32 \(2,\)"),
    ]:
        with pytest.raises(ValueError, match=rf"Wrong.done returned {got}, expected one boolean per sample, \(2,\)"):
            fixed_point(torch.cos, torch.zeros(2, 3), halting=Wrong(answer))


@pytest.mark.parametrize("solver", ["picard", "anderson"])
def test_a_map_must_not_write_into_its_state(solver: str) -> None:
    with pytest.raises(ValueError, match="the map writes into the state that it is given.*clone it first"):
        fixed_point(lambda s: s.mul_(0.5).add_(1), torch.zeros(2, 2), solver=solver)


def test_transforms_of_torch_func_pass_through() -> None:
    a = torch.tensor([[0.5]], dtype=torch.float64)

    def solve(a: Tensor) -> Tensor:
        trace = fixed_point(lambda s, a: a * s + 1, torch.zeros_like(a), [a], gradient="bptt", solver="picard",
                            halting=Tolerance(1e-12))  # fmt: skip
        return trace.output.sum()

    torch.testing.assert_close(torch.func.grad(solve)(a), 1 / (1 - a) ** 2)
    torch.testing.assert_close(torch.func.jvp(solve, (a,), (torch.ones_like(a),))[1], (1 / (1 - a) ** 2).sum())


def test_known_problems_say_what_they_are() -> None:
    known = mixed()
    assert isinstance(known, Known)
    torch.testing.assert_close(known.f(known.answer(), *known.theta), known.answer())
