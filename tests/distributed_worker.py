"""What test_distributed.py runs in two processes: train on halves of a batch, compare with one process on all of it."""

from __future__ import annotations

import gc
import importlib
import itertools
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import torchcbl as cbl

ENGINES = ("ddp", "fsdp", "fsdp-root")
""""fsdp" shards the blocks and the loop, "fsdp-root" the loop as a whole."""
EXAMPLE_ENGINES = ("ddp", "fsdp")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
X = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGET = torch.arange(8) % 4
Run = Callable[[Tensor, Tensor], tuple[Tensor, tuple[Tensor, ...]]]


class Block(nn.Module):
    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm = norm(8)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(torch.tanh(self.norm(x)))


class Network(nn.Module):
    def __init__(self, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(Block(norm) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Objective(nn.Module):
    """The loss of all steps, and their outputs."""

    def __init__(self, net: cbl.ContextLoop) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        r = self.net.refine(x)
        return cbl.refinement_loss(r, target, weights="linear"), r.outputs


def make_net(
    cut: str = "traced",
    schedule: str = "repropagate",
    dtype: torch.dtype = torch.float64,
    frozen: bool = False,
    norm: type[nn.Module] = nn.LayerNorm,
) -> cbl.ContextLoop:
    torch.manual_seed(0)
    backbone = Network(norm).to(dtype)
    sites, context = ["blocks.1", "blocks.2"], cbl.Context(dim=8)
    net = cbl.ContextLoop(backbone, sites, X.to(dtype), "film", context, 3, 0.25, schedule, cut=cut)
    with torch.no_grad():
        for parameter in net.adapters.parameters():  # away from the identity, or no feedback reaches the output
            parameter.normal_(0, 0.1)
    backbone.requires_grad_(not frozen)
    return net.train()


def distribute(engine: str, net: cbl.ContextLoop) -> Run:
    if engine == "ddp":
        return DistributedDataParallel(Objective(net))
    for block in net.backbone.blocks if engine == "fsdp" else ():
        fully_shard(block)
    fully_shard(net)
    register_fsdp_forward_method(net, "refine")
    return Objective(net)


def train(net: cbl.ContextLoop, objective: Run, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Take two steps; return the gradients of both and the parameters after them."""
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    found = {}
    for step in range(2):
        optimiser.zero_grad()
        objective(x, target)[0].backward()
        optimiser.step()
        gradients = {name: p.grad for name, p in net.named_parameters()}
        assert [name for name, p in net.named_parameters() if p.requires_grad != (gradients[name] is not None)] == []
        found |= {f"gradient {step} of {name}": whole(g) for name, g in gradients.items() if g is not None}
    return found | {name: whole(p) for name, p in net.named_parameters()}


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def check_equal(engine: str, rank: int) -> None:
    half = slice(4 * rank, 4 * rank + 4)
    choices = (("traced", "replayed"), ("repropagate", "synchronous"), tuple(TOLERANCE), (False, True))
    for places in itertools.product((0, 1), repeat=4):
        if sum(places) % 2 != ENGINES.index(engine) % 2:  # half of the cases, with every three choices together
            continue
        cut, schedule, dtype, frozen = (choice[place] for choice, place in zip(choices, places, strict=True))
        one, parts, x = make_net(cut, schedule, dtype, frozen), make_net(cut, schedule, dtype, frozen), X.to(dtype)
        expected = train(one, Objective(one), x, TARGET)
        found = train(parts, distribute(engine, parts), x[half], TARGET[half])
        case, tolerance = (engine, cut, schedule, dtype, frozen), TOLERANCE[dtype]
        assert found.keys() == expected.keys(), case
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=0, atol=tolerance, msg=lambda m, name=name, case=case: f"{case}: {name}: {m}"
            )


def check_prefix_runs_once() -> None:
    net, calls = make_net("replayed"), []
    objective = distribute("fsdp", net)
    for block in net.backbone.blocks:
        block.register_forward_pre_hook(lambda module, _: calls.append(module))
    objective(X, TARGET)[0].backward()
    assert [calls.count(block) for block in net.backbone.blocks] == [1, 4, 4], "block 0 was gathered at every step"


def check_batch_norm(rank: int) -> None:
    """Each rank feeds its own statistics; the next forward of DDP takes over those of rank 0."""
    net, *alone = [make_net(norm=nn.BatchNorm1d) for _ in range(3)]
    objective = distribute("ddp", net)
    objective(X[4 * rank : 4 * rank + 4], TARGET[4 * rank : 4 * rank + 4])[0].backward()
    for other, plain in enumerate(alone):
        plain.refine(X[4 * other : 4 * other + 4])
    expected = [dict(plain.named_buffers()) for plain in alone]
    name = "step_norm.statistics.blocks/2/norm.running_mean"
    assert not torch.equal(expected[0][name], expected[1][name])
    torch.testing.assert_close(dict(net.named_buffers()), expected[rank])
    net.eval()
    objective(X, TARGET)
    torch.testing.assert_close(dict(net.named_buffers()), expected[0])


def save(engine: str, rank: int, folder: Path) -> None:
    net = make_net()
    objective = distribute(engine, net)
    train(net, objective, X, TARGET)
    net.eval()
    with torch.no_grad():
        _, outputs = objective(X, TARGET)
    state = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        if engine != "ddp":
            with pytest.raises(ValueError, match="is sharded.*get_model_state_dict"):
                net.save(folder / engine)
            net = make_net()
            net.load_state_dict(state)
        net.save(folder / engine, include_backbone=True)
        torch.save(outputs, folder / f"{engine}.pt")


def run_example(script: Path, folder: Path) -> None:
    """Run the example under each of its engines, here rather than in launches of its own, of which each takes long."""
    sys.path.insert(0, str(script.parent))
    example = importlib.import_module(script.stem)
    for engine in EXAMPLE_ENGINES:
        if dist.get_rank() == 0:
            print(f"the example under {engine}", flush=True)
        example.main(engine, epochs=1, out=str(folder / f"example-{engine}"))


def main(folder: Path, script: Path) -> None:
    rank = dist.get_rank()
    for engine in ENGINES:
        check_equal(engine, rank)
        save(engine, rank, folder)
    check_batch_norm(rank)
    check_prefix_runs_once()
    run_example(script, folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    main(*map(Path, sys.argv[1:]))
    gc.collect()  # what still holds the process group would abort the process at its end (torch with gloo)
    dist.destroy_process_group()
