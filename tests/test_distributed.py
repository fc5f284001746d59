"""Data parallel training: two real processes under torch's launcher against one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import torchcbl as cbl
from distributed_worker import ENGINES, EXAMPLE_ENGINES, TARGET, Network, X, make_net

WORKER = Path(__file__).parent / "distributed_worker.py"
EXAMPLE = Path(__file__).parent.parent / "examples" / "train_distributed.py"
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]  # --standalone finds a free port

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo to talk over"
)


def run(*arguments: str | Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            printed, _ = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            process.terminate()  # which the launcher passes on to its workers
            pytest.fail(f"{command} hangs; it printed:\n{process.communicate()[0]}")
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What one launch of the worker and, after it, of the example left in a folder and printed."""
    folder = tmp_path_factory.mktemp("launched")
    return folder, run(*LAUNCH, WORKER, folder, EXAMPLE)


@needs_gloo
@pytest.mark.slow
def test_two_processes_train_as_one_does(launched: tuple[Path, str]) -> None:
    folder, _ = launched
    for engine in ENGINES:
        net = cbl.load(folder / engine, Network().double()).eval()
        saved = torch.load(folder / f"{engine}.pt")
        for found, expected in zip(net.refine(X).outputs, saved, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert not torch.equal(saved[0], make_net().eval().refine(X).outputs[0]), "it was never trained"


@needs_gloo
@pytest.mark.slow
def test_the_example_reports_the_same_in_one_process_and_in_two(launched: tuple[Path, str], tmp_path: Path) -> None:
    folder, printed = launched
    alone = run(EXAMPLE, "--epochs", "1", "--out", tmp_path / "one")
    said = {"one": alone, **dict(zip(EXAMPLE_ENGINES, re.split(r"the example under \w+", printed)[1:], strict=True))}
    accuracies = {}
    for engine, text in said.items():
        accuracies[engine] = [float(value) for value in re.findall(r"accuracy ([\d.]+)%", text)]
        assert len(accuracies[engine]) == 1, f"{engine} should print once per epoch, by rank 0 alone:\n{text}"
    assert accuracies["one"][0] > 60  # of ten classes
    for engine in EXAMPLE_ENGINES:
        assert (folder / f"example-{engine}" / "adapters.safetensors").is_file()
        assert accuracies[engine] == pytest.approx(accuracies["one"], abs=1.0)  # the same batches, in another order


def sync_batch_norm() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(Network(nn.BatchNorm1d).double())


@pytest.mark.parametrize("mode", ["per_step", "shared"])
def test_sync_batch_norm_is_refused(mode: str) -> None:
    with pytest.raises(ValueError, match='\'blocks.2.norm\' is a SyncBatchNorm.*"frozen" or "shared_tracked"'):
        cbl.ContextLoop(sync_batch_norm(), "blocks.1", X, step_norm=mode)


@pytest.mark.parametrize("mode", ["frozen", "shared_tracked"])
def test_sync_batch_norm_trains_as_batch_norm_in_one_process(mode: str) -> None:
    found = []
    for convert in (False, True):
        net = make_net(norm=nn.BatchNorm1d)
        backbone = nn.SyncBatchNorm.convert_sync_batchnorm(net.backbone) if convert else net.backbone
        torch.manual_seed(3)
        loop = cbl.ContextLoop(backbone, ["blocks.1", "blocks.2"], X, step_norm=mode).train()
        cbl.refinement_loss(loop.refine(X), TARGET).backward()
        found.append([*(p.grad for p in loop.parameters()), *loop.buffers()])
    torch.testing.assert_close(found[0], found[1])


def test_converting_to_sync_batch_norm_after_building_is_refused() -> None:
    net = nn.SyncBatchNorm.convert_sync_batchnorm(make_net(norm=nn.BatchNorm1d))
    with pytest.raises(RuntimeError, match="'norm' of Block was replaced after the loop was built"):
        net(X)
