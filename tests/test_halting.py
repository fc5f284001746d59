"""Stopping rules: what each lets go, alone and combined, with finished samples leaving the batch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from problems import random
from subject import awaken
from torchcbl.halting import Agreement, Both, Confidence, Either, Halting, Never, Progress, Tolerance
from torchcbl.refinement import Status
from torchcbl.solvers import Anderson, Broyden, Evaluation, Map, Newton, Picard, Solver, Trace, iterate
from torchcbl.solvers.base import NotSelectableError


class Script(Map):
    """A map whose outputs are written down, (B, T + 1, ...), and whose residuals too, (B, T)."""

    def __init__(self, outputs: Tensor, residuals: Tensor, stuck: bool = False) -> None:
        self.outputs, self.residuals, self.stuck = outputs, residuals, stuck

    def __call__(self, s: Tensor, step: int = 1) -> Evaluation:
        return Evaluation(s / (1 - self.residuals[:, step - 1 : step]), self.outputs[:, step])

    def select(self, index: Tensor) -> Script:
        if self.stuck:
            raise NotSelectableError
        return Script(self.outputs[index], self.residuals[index])

    def run(self, halting: Halting, compact: bool = True) -> Trace:
        batch, steps = self.residuals.shape
        start = torch.ones(batch, 1, dtype=torch.float64)
        return iterate(self, start, self.outputs[:, 0], Picard(), halting, steps, compact)


def say(answers: list[list[int]], sure: float = 3.0) -> Tensor:
    """Outputs (B, T + 1, K) with these answers."""
    return sure * torch.nn.functional.one_hot(torch.tensor(answers), 3).double()


def done(rule: Halting, output: Tensor, residual: Tensor | None = None) -> list[bool]:
    residual = torch.ones(len(output)) if residual is None else residual
    return rule.done(Progress(1, residual, output, output), rule.begin())[0].tolist()


def test_tolerance() -> None:
    residual = torch.tensor([1e-4, 0.99e-4, 1.01e-4, 0.0, torch.inf, torch.nan], dtype=torch.float64)
    assert done(Tolerance(1e-4), residual, residual) == [True, True, False, True, False, False]
    assert done(Never(), residual, residual) == [False] * 6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_confidence_is_of_the_least_confident_position(dtype: torch.dtype) -> None:
    sure, unsure = torch.tensor([5.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])  # 0.987 and 0.576
    flat = torch.stack([sure, unsure, sure.nan_to_num() * torch.nan]).to(dtype)
    assert done(Confidence(0.95), flat) == [True, False, False]
    assert done(Confidence(0.5), flat) == [True, True, False]
    positions = torch.stack([torch.stack([sure, sure]), torch.stack([sure, unsure])]).to(dtype)
    assert done(Confidence(0.95), positions) == [True, False]
    pixels = positions.permute(0, 2, 1)[..., None].expand(-1, -1, -1, 2)
    assert done(Confidence(0.95), pixels) == [True, False]
    assert done(Confidence(0.5), pixels.contiguous()) == [True, True]


def test_confidence_keeps_double_precision() -> None:
    output = torch.tensor([[18.0, 0.0], [25.0, 0.0]], dtype=torch.float64)  # 1 - 1.5e-8 and 1 - 1.4e-11
    assert done(Confidence(1 - 1e-9), output) == [False, True]


def test_agreement_counts_repetitions_in_a_row() -> None:
    answers = [[0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 1], [0, 1, 2, 0, 1, 2], [1, 1, 0, 0, 0, 0]]
    script = Script(say(answers), torch.full((5, 5), 0.5, dtype=torch.float64))
    assert script.run(Agreement(1)).steps.tolist() == [1, 2, 3, 5, 1]
    assert script.run(Agreement(2)).steps.tolist() == [2, 3, 4, 5, 4]
    assert script.run(Agreement(3)).steps.tolist() == [3, 4, 5, 5, 5]
    status = script.run(Agreement(2)).status.tolist()
    assert status == [Status.halted] * 3 + [Status.max_steps] + [Status.halted]


def test_what_is_not_finite_agrees_with_nothing() -> None:
    output = torch.tensor([[1.0, 2.0], [torch.nan, 2.0], [1.0, torch.inf]])
    assert done(Agreement(1), output) == [True, False, False]
    assert done(Confidence(0.5), output) == [True, False, False]


def test_agreement_is_of_all_positions() -> None:
    answers = torch.tensor([[[0, 0], [0, 0], [0, 0]], [[0, 1], [0, 0], [0, 0]]])
    outputs = torch.nn.functional.one_hot(answers, 3).double()
    residuals = torch.full((2, 2), 0.5, dtype=torch.float64)
    assert Script(outputs, residuals).run(Agreement(1)).steps.tolist() == [1, 2]
    pixels = outputs.movedim(-1, 2)[..., None].expand(-1, -1, -1, -1, 2)
    assert Script(pixels, residuals).run(Agreement(1)).steps.tolist() == [1, 2]
    spoilt = outputs.clone()
    spoilt[0] = torch.nan
    assert Script(spoilt, residuals).run(Agreement(1)).status.tolist() == [Status.non_finite, Status.halted]


RULES = [
    Agreement(2),
    Agreement(1) | Agreement(3),
    Agreement(3) & Confidence(0.6),
    (Agreement(2) & Tolerance(0.3)) | Confidence(0.97),
    Tolerance(0.05) | (Agreement(1) & (Agreement(2) | Confidence(0.9))),
    Never() | Agreement(2),
    Never() & Agreement(2),
]


def by_hand(rule: Halting, outputs: Tensor, residuals: Tensor) -> int:
    """Steps of one sample, from the definition of each rule."""

    def ends(rule: Halting, tau: int) -> bool:
        if isinstance(rule, Tolerance):
            return bool(residuals[tau - 1] <= rule.residual)
        if isinstance(rule, Confidence):
            return bool(outputs[tau].softmax(-1).max() >= rule.probability)
        if isinstance(rule, Agreement):
            said = outputs.argmax(-1)
            return tau >= rule.steps and len(set(said[tau - rule.steps : tau + 1].tolist())) == 1
        if isinstance(rule, Either):
            return ends(rule.first, tau) or ends(rule.second, tau)
        if isinstance(rule, Both):
            return ends(rule.first, tau) and ends(rule.second, tau)
        return False

    return next((tau for tau in range(1, len(residuals) + 1) if ends(rule, tau)), len(residuals))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_combinations_remember_per_sample_when_others_leave(rule: Halting) -> None:
    generator = torch.Generator().manual_seed(5)
    outputs = 2.0 * random(40, 9, 3, seed=3)
    outputs[:, 3:] = torch.where(torch.rand(40, 1, 1, generator=generator) < 0.5, outputs[:, 3:4], outputs[:, 3:])
    residuals = 0.6 * torch.rand(40, 8, generator=generator, dtype=torch.float64)
    expected = [by_hand(rule, *one) for one in zip(outputs, residuals, strict=True)]
    for compact, stuck in itertools.product((True, False), (True, False)):
        trace = Script(outputs, residuals, stuck).run(rule, compact)
        assert trace.steps.tolist() == expected
        assert torch.equal(trace.output, outputs[torch.arange(40), trace.steps])
        last = residuals[torch.arange(40), trace.steps - 1]
        torch.testing.assert_close(trace.residuals[-1], last)
    if rule != (Never() & Agreement(2)):
        assert len(set(expected)) > 2


def test_which_tolerance_says_converged() -> None:
    assert (Tolerance(1e-2) | Tolerance(1e-4) & Confidence(0.9)).tolerance == 1e-4
    assert (Confidence(0.9) | Agreement(2)).tolerance is None
    residuals = torch.tensor([[0.5, 1e-5], [0.5, 1e-3], [1e-3, 1e-3]], dtype=torch.float64)
    script = Script(say([[0, 1, 2]] * 3), residuals)
    halted, converged, most = Status.halted, Status.converged, Status.max_steps
    assert script.run(Confidence(0.9)).status.tolist() == [halted] * 3
    assert script.run(Tolerance(1e-2)).status.tolist() == [converged] * 3
    assert script.run(Never()).status.tolist() == [converged, most, most]
    assert script.run(Tolerance(1e-2)).steps.tolist() == [2, 2, 1]


def test_rules_are_checked() -> None:
    for make, message in [
        (lambda: Tolerance(0.0), "Tolerance's residual must be finite and above 0, got 0.0"),
        (lambda: Tolerance(float("nan")), "Tolerance's residual must be finite and above 0, got nan"),
        (lambda: Confidence(1.5), r"Confidence's probability must lie in \(0, 1\], got 1.5"),
        (lambda: Agreement(0), "Agreement's steps must be at least 1, got 0"),
        (lambda: done(Confidence(), torch.ones(2, 1)), r"Confidence compares classes, and y of shape \(2, 1\) has one"),
        (
            lambda: done(Agreement(), torch.ones(2, 1, 4, 4)),
            r"Agreement compares classes, and y of shape \(2, 1, 4, 4\)",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    for other in (1e-3, Tolerance, None):
        with pytest.raises(TypeError, match="halting must be a stopping rule such as"):
            _ = Tolerance(1e-3) | other if other is not None else Tolerance(1e-3) & 1  # type: ignore[operator]


class Tagger(nn.Module):
    """One answer per position; padding is kept from the real positions, and never settles."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.site, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        h = torch.tanh(self.site(torch.tanh(self.embed(x))))
        mean = (h * attention_mask[..., None]).sum(1, keepdim=True) / attention_mask.sum(1)[:, None, None]
        noise = torch.sin(50 * h) * (1 - attention_mask[..., None])
        return self.head(h + mean + 9 * noise)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("dim", [2, 6])
@pytest.mark.parametrize("rule", [Tolerance(1e-4), Confidence(0.34) & Tolerance(1e-4), Agreement(4), Never()], ids=repr)
def test_padding_says_nothing_about_a_sample(rule: Halting, dim: int, alpha: float) -> None:
    x, mask = random(3, 6, 5), torch.ones(3, 6, dtype=torch.float64)
    mask[0, 3:], mask[2, 5:] = 0, 0
    context = cbl.Context(dim=dim, per="position")
    net = cbl.ContextLoop(Tagger().double(), "site", {"x": x, "attention_mask": mask}, "additive", context, alpha=alpha)
    awaken(net).eval()
    for gradient in ("bptt", "checkpointed"):
        check_without_padding(net, x, mask, halting=rule, gradient=gradient)


def check_without_padding(net: cbl.ContextLoop, x: Tensor, mask: Tensor, **options: object) -> cbl.Refinement:
    """See that each sample of a padded batch fares as it does by itself, without its padding."""
    together = net.refine(x=x, attention_mask=mask, steps=25, **options)  # type: ignore[arg-type]
    for sample, length in enumerate(mask.sum(1).int().tolist()):
        one = slice(sample, sample + 1)
        alone = net.refine(x=x[one, :length], attention_mask=mask[one, :length], steps=25, **options)  # type: ignore[arg-type]
        assert torch.equal(alone.steps, together.steps[one])
        torch.testing.assert_close(alone.residuals, together.residuals[:, one], rtol=1e-7, atol=1e-12)
        y = together.output[sample]
        torch.testing.assert_close(alone.output[0], y[:length] if y.ndim > 1 else y, rtol=1e-9, atol=1e-12)
        assert torch.equal(alone.status, together.status[one])
    return together


class Classifier(Tagger):
    """One answer per sample."""

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        h = torch.tanh(self.site(torch.tanh(self.embed(x))))
        return self.head((h * attention_mask[..., None]).sum(1) / attention_mask.sum(1)[:, None])


class Pooled(Tagger):
    """One answer per position, and a submodule that sees the mean of the real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Linear(8, 4)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        h = torch.tanh(self.site(torch.tanh(self.embed(x))))
        pooled = self.pool((h * attention_mask[..., None]).sum(1) / attention_mask.sum(1)[:, None])
        return self.head(h) + pooled.sum(-1)[:, None, None]


def padded() -> tuple[Tensor, Tensor]:
    """A batch whose first and third samples are padded, with numbers that are far out."""
    x, mask = random(3, 6, 5), torch.ones(3, 6, dtype=torch.float64)
    mask[0, 3:], mask[2, 5:] = 0, 0
    return torch.where(mask[..., None] == 0, 100 * x, x), mask


def padded_loop(backbone: nn.Module, mask: Tensor | None = None, **options: object) -> cbl.ContextLoop:
    """A loop around a backbone that mixes positions, awake; its example is padded unless a mask says otherwise."""
    torch.manual_seed(0)
    x, padding = padded()
    example = {"x": x, "attention_mask": padding if mask is None else mask}
    return awaken(cbl.ContextLoop(backbone.double(), "site", example, "additive", **options)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(("schedule", "alpha"), [("repropagate", 0.7), ("literal", 0.5), ("synchronous", 0.0)])
@pytest.mark.parametrize("rule", [Tolerance(1e-3), Never()], ids=repr)
def test_padded_hidden_states_of_a_classifier_say_nothing(rule: Halting, schedule: str, alpha: float) -> None:
    net = padded_loop(Classifier(), context=cbl.Context(dim=6), schedule=schedule, alpha=alpha)
    check_without_padding(net, *padded(), halting=rule)


@pytest.mark.parametrize("rule", [Confidence(0.36), Agreement(2)], ids=repr)
def test_padding_says_nothing_where_the_context_is_made_of_what_has_no_positions(rule: Halting) -> None:
    net = padded_loop(Pooled(), context=cbl.Context(dim=6, source="pool"))
    check_without_padding(net, *padded(), halting=rule)


class Masked(Tagger):
    """One answer per position, and none at all at padding."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.fill = fill

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(x, attention_mask).masked_fill(attention_mask[..., None] == 0, self.fill)


@pytest.mark.parametrize("fill", [-torch.inf, torch.nan])
@pytest.mark.parametrize(("per", "source"), [("sample", "logits"), ("position", "logits"), ("sample", "probs")])
def test_padding_that_is_not_finite_spoils_no_sample(per: str, source: str, fill: float) -> None:
    context = cbl.Context(dim=4, per=per, source=source)
    net, (x, mask) = padded_loop(Masked(fill), torch.ones(3, 6).double(), context=context), padded()
    for rule in (Never(), Tolerance(1e-4), Agreement(3), Confidence(0.4)):
        r = check_without_padding(net, x, mask, halting=rule)
        assert not (r.status == Status.non_finite).any()
        net.zero_grad()
        r.output[mask == 1].sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)
    x[0, 0] = torch.nan
    assert net.refine(x=x, attention_mask=mask).status.tolist()[0] == Status.non_finite


@pytest.mark.parametrize("solver", [Anderson(5), Broyden(), Newton(), Picard(0.3)], ids=repr)
@pytest.mark.parametrize("backbone", [Tagger, functools.partial(Masked, -torch.inf)], ids=["noise", "inf"])
def test_padding_steers_no_solver(backbone: Callable[[], nn.Module], solver: Solver) -> None:
    net = padded_loop(backbone(), torch.ones(3, 6).double(), context=cbl.Context(dim=6, per="position"))
    r = check_without_padding(net, *padded(), halting=Tolerance(1e-6), solver=solver)
    assert (r.status == Status.converged).all()


def test_one_mask_may_stand_for_all_samples() -> None:
    net = padded_loop(Tagger(), context=cbl.Context(dim=4, per="sample"))
    x, mask = random(4, 6, 5) * torch.tensor([0.1, 1, 2, 4])[:, None, None], torch.ones(1, 6, dtype=torch.float64)
    mask[:, 4:] = 0
    for rule in (Never(), Tolerance(1e-3), Confidence(0.4)):
        one, each = (net.refine(x=x, attention_mask=m, halting=rule, steps=20) for m in (mask, mask.expand(4, 6)))
        assert torch.equal(one.output, each.output)
        assert torch.equal(one.steps, each.steps)
    assert len(set(one.steps.tolist())) > 1
