"""torch.export at fixed T, ONNX run in onnxruntime, and torch.compile."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from backbones import CASES, Case
from hub_models import MODELS
from torchcbl.adapters import ADAPTERS, Film
from torchcbl.sharing.export import export_onnx, export_program


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> None:
    import torch._dynamo  # not before it is needed: the library must run where it has not been imported

    torch._dynamo.reset()  # it compiles one and the same forward a limited number of times


def awake(net: cbl.ContextLoop) -> cbl.ContextLoop:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in net.adapters.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def build(case: Case, cut: str, adapter: str = "film", steps: int = 2) -> cbl.ContextLoop:
    torch.manual_seed(3)
    return awake(
        cbl.ContextLoop(
            case.build(), case.sites, case.example(), adapter, cbl.Context(dim=5), cut=cut, steps=steps, allow_dead=True
        )
    )


def run_onnx(path: Path, inputs: list[Tensor]) -> list[Tensor]:
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    feeds = {given.name: value.numpy() for given, value in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feeds)]


@pytest.mark.parametrize(
    ("name", "cut", "adapter", "steps"),
    [  # what takes torch long takes one step; replayed transformers follow below
        ("residual", "traced", "attention", 1),
        ("residual", "replayed", "film", 2),
        ("transformer", "traced", "token", 1),
        ("positions", "traced", "gate", 2),
        ("dense", "traced", "concat", 3),
        ("lstm", "traced", "recurrent", 1),
    ],
)
def test_exported_loops_agree(name: str, cut: str, adapter: str, steps: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    case = CASES[name]
    net = build(case, cut, adapter, steps)
    path = export_onnx(net, tmp_path / "net.onnx", case.example())
    for batch in (1, 3, 7):
        x = case.example(batch)
        expected = net.refine(x).output
        torch.testing.assert_close(run_onnx(path, [x])[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "cut"), [("residual", "traced"), ("transformer", "replayed")])
def test_exported_programs_agree(name: str, cut: str) -> None:
    case = CASES[name]
    net = build(case, cut)
    program = net.export().module()
    x = case.example(7)
    torch.testing.assert_close(program(x), net(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ViT", "BERT"])
def test_exported_transformers_agree(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = MODELS[name]
    net = awake(cbl.ContextLoop(model.build(), model.sites, model.batch(2), context=cbl.Context(dim=5), steps=1))
    path = net.export_onnx(tmp_path / "net.onnx", model.batch(2))
    for batch in (1, 5):
        inputs = model.batch(batch)
        expected = net(**inputs).logits
        torch.testing.assert_close(run_onnx(path, list(inputs.values()))[0], expected, rtol=0, atol=1e-5)


class FixesTheBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(3, -1) if x.shape[0] == 3 else x


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


def around(odd: nn.Module) -> cbl.ContextLoop:
    return cbl.ContextLoop(nn.Sequential(nn.Linear(6, 8), odd, nn.Linear(8, 4)), "0", torch.ones(3, 6), cut="replayed")


def test_what_cannot_be_exported_is_named() -> None:
    x = torch.ones(3, 6)
    with pytest.raises(ValueError, match=r"because of 'backbone\.1': .*dynamic_batch=False"):
        export_program(around(FixesTheBatch()), x)
    fixed = export_program(around(FixesTheBatch()), x, dynamic_batch=False)
    assert fixed.module()(x).shape == (3, 4)
    with pytest.raises(ValueError, match=r"because of 'backbone\.1': .*take what depends on the values of tensors"):
        export_program(around(Decides()), x, dynamic_batch=False)


def test_export_leaves_the_loop_as_it_was() -> None:
    net = around(nn.ReLU()).train()
    net.export()
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.slow
@pytest.mark.parametrize("adapter", sorted(ADAPTERS))
def test_a_traced_loop_compiles_without_a_graph_break(adapter: str) -> None:
    case = CASES["transformer" if adapter == "token" else "residual"]
    net = build(case, "traced", adapter)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    x = case.example()
    torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["film", "recurrent", "token"])
def test_a_compiled_loop_trains_as_it_does_uncompiled(adapter: str) -> None:
    case = CASES["transformer" if adapter == "token" else "residual"]
    net = build(case, "traced", adapter).train()
    compiled, x = torch.compile(net, fullgraph=True, backend="aot_eager"), case.example()
    torch.manual_seed(0)
    compiled(x).square().sum().backward()
    grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    torch.manual_seed(0)
    net(x).square().sum().backward()
    for one, other in zip(grads, (p.grad for p in net.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.head = nn.Linear(6, 8), Block(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.first(x)))


def test_a_compiled_loop_looks_at_its_backbone_once() -> None:
    x = torch.randn(4, 6)
    net = cbl.ContextLoop(Nested(), "first", x, adapter=functools.partial(Film, identity=False))
    assert net.plan.kind == "traced"
    expected, calls = net(x), []
    handle = net.backbone.block.register_forward_hook(lambda module, *_: calls.append(module))
    torch.testing.assert_close(torch.compile(net, backend="eager")(x), expected)
    assert len(calls) == 3, "a hook of a submodule that the trace looks into was passed over"
    handle.remove()
    torch._dynamo.reset()
    net.backbone.block = nn.Identity()
    with pytest.raises(RuntimeError, match="submodule 'block' of Nested was replaced after the loop was built"):
        torch.compile(net, backend="eager")(x)


@pytest.mark.slow
def test_a_replayed_loop_runs_compiled() -> None:
    case = CASES["transformer"]
    net = build(case, "replayed")
    compiled = torch.compile(net, backend="aot_eager")
    torch.testing.assert_close(compiled(case.example()), net(case.example()))
