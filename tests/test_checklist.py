"""The behavioural checklist, over every adapter x schedule x backbone; the other cut meets every two of them."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import torchcbl as cbl
from backbones import CASES, Case, Recurrent, Transformer
from torchcbl.adapters import ADAPTERS
from torchcbl.backbone.observation import Unfused
from torchcbl.schedules import SCHEDULES

KINDS = [(name, cut) for name, case in CASES.items() for cut in dict.fromkeys((case.cut, "replayed"))]


@pytest.fixture(params=sorted(SCHEDULES))
def schedule(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=KINDS, ids="-".join)
def kind(request: pytest.FixtureRequest) -> tuple[Case, str]:
    name, cut = request.param
    return CASES[name], cut


def build(case: Case, cut: str, **options: object) -> cbl.ContextLoop:
    torch.manual_seed(3)
    settings = {"steps": 3, "context": cbl.Context(dim=5), "allow_dead": True, **options}
    return cbl.ContextLoop(case.build(), case.sites, case.example(), cut=cut, **settings)  # type: ignore[arg-type]


def awaken(net: cbl.ContextLoop) -> None:
    """Move the adapters away from the identity."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in net.adapters.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def alpha_of(case: Case, adapter: str, schedule: str) -> float:
    """One alpha for each combination, so that every two of its choices meet both."""
    places = (list(CASES.values()).index(case), sorted(ADAPTERS).index(adapter), sorted(SCHEDULES).index(schedule))
    return (0.0, 0.3)[sum(places) % 2]


def combinations() -> Iterator[object]:
    """Every backbone, adapter and schedule; where a backbone is cut otherwise than by itself, a schedule in turn."""
    for i, (name, cut) in enumerate(KINDS):
        for j, adapter in enumerate(sorted(ADAPTERS)):
            for k, schedule in enumerate(sorted(SCHEDULES)):
                if cut == CASES[name].cut or (i + j + k) % len(SCHEDULES) == 0:
                    yield pytest.param(CASES[name], cut, adapter, schedule, id=f"{name}-{cut}-{adapter}-{schedule}")


@pytest.mark.parametrize(("case", "cut", "adapter", "schedule"), combinations())
def test_family(case: Case, cut: str, adapter: str, schedule: str) -> None:
    if adapter == "token" and case.build is not Transformer:
        with pytest.raises(ValueError, match=r"no attention layer that torch computes .* runs between it"):
            build(case, cut, adapter=adapter, allow_dead=False)
        return
    net = build(case, cut, adapter=adapter, schedule=schedule, alpha=alpha_of(case, adapter, schedule))
    backbone = copy.deepcopy(net.backbone).eval()
    x = case.example()
    assert net.plan.kind == cut

    net.eval()
    plain = backbone(x)
    reference = output_of(plain)
    for steps in (0, 3):
        for output in net.refine(x, steps=steps).outputs:
            assert torch.equal(output, reference), "the identity start changes the output"

    awaken(net)
    outputs = net.refine(x).outputs
    assert torch.equal(outputs[0], reference)
    assert not torch.equal(outputs[-1], reference), "awake adapters leave the output as it was"
    returned = net(x)
    assert torch.equal(output_of(returned), outputs[-1])
    assert type(returned) is type(plain), "the loop returns another type than its backbone"
    assert torch.equal(net.refine(x, steps=0).output, reference)

    live = [found.live for found in net.audit().adapters]
    assert live == [schedule != "literal"] * (len(live) - 1) + [True]

    net.train()
    loss = cbl.refinement_loss(net.refine(x), _target(outputs[0]), criterion=_cross_entropy)
    loss.backward()
    for is_live, module in zip(live, net.adapters.values(), strict=True):
        moved = any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
        assert moved == is_live, "the audit and the gradient disagree"
    assert all(p.grad is not None for p in net.backbone.parameters())


def output_of(returned: object) -> torch.Tensor:
    output = returned["out"] if isinstance(returned, dict) else returned
    assert isinstance(output, torch.Tensor)
    return output


def _target(output: torch.Tensor) -> torch.Tensor:
    return torch.zeros(_classes_last(output).shape[:-1], dtype=torch.long)


def _cross_entropy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(_classes_last(output).flatten(0, -2), target.flatten())


def _classes_last(output: torch.Tensor) -> torch.Tensor:
    return output.movedim(1, -1) if output.ndim > 3 else output


def test_both_cuts_agree(schedule: str) -> None:
    for name in (name for name, case in CASES.items() if case.cut == "traced"):
        results = []
        for cut in ("traced", "replayed"):
            net = build(CASES[name], cut, schedule=schedule, alpha=0.2)
            awaken(net)
            net.train()
            torch.manual_seed(11)  # dropout draws the same masks
            r = net.refine(CASES[name].example())
            grads = torch.autograd.grad(r.output.square().sum(), list(net.backbone.parameters()), allow_unused=True)
            results.append([*r.outputs, r.residuals, *(g for g in grads if g is not None), *net.buffers()])
        assert len(results[0]) == len(results[1])
        for traced, replayed in zip(*results, strict=True):
            torch.testing.assert_close(traced, replayed, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("name", "cut", "schedule"), [(*kind, sorted(SCHEDULES)[i % len(SCHEDULES)]) for i, kind in enumerate(KINDS)]
)
def test_copies_answer_alike(name: str, cut: str, schedule: str, tmp_path: Path) -> None:
    case = CASES[name]
    net = build(case, cut, schedule=schedule)
    awaken(net)
    net.eval()
    x = case.example()
    expected = output_of(net(x))
    net.save(str(tmp_path / "whole"), include_backbone=True)
    copies = {
        "deepcopy": copy.deepcopy(net),
        "pickle": pickle.loads(pickle.dumps(net)),
        "load": cbl.load(str(tmp_path / "whole"), case.build().eval()),
    }
    for how, twin in copies.items():
        assert torch.equal(output_of(twin(x)), expected), how
        with torch.no_grad():
            next(twin.backbone.parameters()).add_(1.0)
        assert torch.equal(output_of(net(x)), expected), f"{how} shares weights with the original"
        assert not torch.equal(output_of(twin(x)), expected), f"{how} does not run its own backbone"


def test_samples_are_independent(kind: tuple[Case, str], schedule: str) -> None:
    case, cut = kind
    net = build(case, cut, schedule=schedule)
    awaken(net)
    net.eval()
    x = case.example(batch=4)
    together = net.refine(x)
    for index in range(4):
        alone = net.refine(x[index : index + 1])
        torch.testing.assert_close(alone.output[0], together.output[index], rtol=1e-5, atol=1e-6)
    x[2] = float("nan")
    spoiled = net.refine(x)
    others = [0, 1, 3]
    assert torch.equal(spoiled.output[others], together.output[others])
    assert [int(s) == cbl.Status.non_finite for s in spoiled.status] == [False, False, True, False]


def test_the_prefix_runs_once(kind: tuple[Case, str]) -> None:
    case, cut = kind
    net = build(case, cut).eval()
    x = case.example()
    audit = net.audit(x)
    share = audit.flops_step / audit.flops_first
    assert share > 0
    added = sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Linear)) - sum(
        m.weight.numel() for m in net.backbone.modules() if isinstance(m, nn.Linear)
    )
    below = _flops_up_to_first_site(net, x)
    for steps in (0, 1, 4):
        # what torch fuses is not counted
        with Unfused(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            net.refine(x, steps=steps)
        total = counter.get_total_flops() / len(x)
        assert total == pytest.approx(audit.flops_first * (1 + steps * share), rel=0.01)
        if case.build in (Transformer, Recurrent):  # whose attention and recurrence are not counted by hand here
            continue
        positions = {"Positions": case.shape[0], "Dense": 64}.get(case.build.__name__, 1)
        by_hand = audit.flops_first + steps * (audit.flops_first - below + 2 * added * positions)
        assert total == pytest.approx(by_hand, rel=0.01)


def _flops_up_to_first_site(net: cbl.ContextLoop, x: torch.Tensor) -> float:
    """FLOPs of all that no site feeds, counted by stopping the backbone at each site in turn."""

    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopError

    first = net.backbone.get_submodule(net.sites[0].name)
    handle = first.register_forward_hook(stop)
    with FlopCounterMode(display=False) as counter, pytest.raises(StopError):
        net.backbone(x)
    handle.remove()
    parallel = any(site.name == "right" for site in net.sites)  # a branch that no site feeds, and that a replay
    beside = 2 * 6 * 8 if parallel and net.plan.kind == "traced" else 0  # runs again, since it comes after the site
    return counter.get_total_flops() / len(x) + beside


def test_threads_may_share_a_net(kind: tuple[Case, str]) -> None:
    share_between_threads(*kind, "film", threads=4, calls=8)


@pytest.mark.parametrize(
    ("name", "cut", "adapter"),
    [("mlp", "traced", "film"), ("branching", "replayed", "recurrent"), ("transformer", "replayed", "token")],
)
def test_many_threads_and_calls(name: str, cut: str, adapter: str) -> None:
    share_between_threads(CASES[name], cut, adapter, threads=8, calls=15)


def share_between_threads(case: Case, cut: str, adapter: str, threads: int, calls: int) -> None:
    net = build(case, cut, adapter=adapter)
    awaken(net)
    net.eval()
    inputs = [case.example() + shift for shift in range(threads)]
    with torch.no_grad():
        expected = [(output_of(net(x)), output_of(net.backbone(x))) for x in inputs]
    wrong: list[str] = []

    def work(index: int) -> None:
        for _ in range(calls):
            with torch.no_grad():
                if not torch.equal(output_of(net(inputs[index])), expected[index][0]):
                    wrong.append(f"net, input {index}")
                if not torch.equal(output_of(net.backbone(inputs[index])), expected[index][1]):
                    wrong.append(f"backbone, input {index}")

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert not any("forward" in vars(module) for module in net.backbone.modules()), "an interceptor was left behind"


def test_backbone_is_untouched(kind: tuple[Case, str], schedule: str) -> None:
    case, cut = kind
    torch.manual_seed(3)
    backbone = case.build().train()
    before = copy.deepcopy(backbone.state_dict())
    random_state = torch.get_rng_state()
    parameters = list(backbone.parameters())
    net = cbl.ContextLoop(backbone, case.sites, case.example(), schedule=schedule, cut=cut, allow_dead=True)
    torch.set_rng_state(random_state)
    net.audit()
    assert torch.equal(torch.get_rng_state(), random_state), "the audit draws random numbers"
    after = backbone.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [id(p) for p in backbone.parameters()] == [id(p) for p in parameters]
    assert all(p.grad is None for p in net.parameters())
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks for module in backbone.modules())


def test_train_and_eval_differ_where_they_should() -> None:
    net = build(CASES["residual"], "traced")
    x = CASES["residual"].example()
    net.eval()
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x)), "dropout is off in train mode"


@pytest.mark.parametrize(
    ("name", "cut", "adapter"), [(*kind, sorted(ADAPTERS)[i % len(ADAPTERS)]) for i, kind in enumerate(KINDS)]
)
def test_repr_tells_what_matters(name: str, cut: str, adapter: str) -> None:
    text = repr(build(CASES[name], cut, adapter=adapter))
    for part in (*CASES[name].sites, ADAPTERS[adapter].__name__, "live", "FLOPs per sample", "added", cut):
        assert part in text
