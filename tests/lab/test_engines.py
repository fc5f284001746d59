"""Engines: whatever does the runs of a study, the records are the same."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from torchcbl.lab import worker
from torchcbl.lab.arms import find_arm
from torchcbl.lab.checkpoints import DurableCheckpointIO
from torchcbl.lab.data import load_dataset
from torchcbl.lab.engines import ENGINE_NAMES, Plan, make_engine
from torchcbl.lab.engines.gpus import visible_gpus
from torchcbl.lab.engines.journal import Begun, Ended, Journal
from torchcbl.lab.engines.local import LocalEngine
from torchcbl.lab.engines.ray_member import member
from torchcbl.lab.engines.team import LostError, RunError, Team, follow, start_method
from torchcbl.lab.experiment import Experiment
from torchcbl.lab.inspection import rebuild
from torchcbl.lab.locks import hold
from torchcbl.lab.machine import num_cores
from torchcbl.lab.progress import Display
from torchcbl.lab.ranks import ALONE, Rank, Spread, ranks_on
from torchcbl.lab.recipe import Recipe, load_recipe
from torchcbl.lab.records import Record, read_record
from torchcbl.lab.runs import Run, RunState
from torchcbl.lab.scores import Scores
from torchcbl.lab.study import locked, run_study
from torchcbl.lab.training import train
from torchcbl.lab.worker import Problem

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
needs_submitit = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")
TINY = {"width": "4", "batch_size": "100", "validation_size": "100", "seeds": "1", "halve_every": "0"}
STEPS = 6


def tiny(*arms: str, **changes: str) -> Recipe:
    listed = ", ".join(f'"{arm}"' for arm in arms)
    return load_recipe("demo", {**TINY, "epochs": str(STEPS), "arms": f"[{listed}]", **changes})


def numbers(record: Record) -> Record:
    """A record without what differs between two sittings."""
    epochs = tuple(replace(epoch, seconds=0.0) for epoch in record.epochs)
    return replace(record, epochs=epochs, seconds={}, finished="")


def weights(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.model.iterdir()}


class Watching(Display):
    """Keep what is shown, and disturb each arm once, in its third epoch, when two are safe.

    It is printed too, for pytest to show of a test that fails.
    """

    def __init__(self, disturb: Mapping[str, Callable[[Run], None]] | None = None) -> None:
        super().__init__(Console(highlight=False, soft_wrap=True, record=True))
        self.waiting, self.epochs = dict(disturb or {}), list[tuple[str, int]]()

    def update(self, run: Run, state: RunState) -> None:
        super().update(run, state)
        if state.epoch_finished:
            self.epochs.append((run.name, state.epoch))
        if state.epoch >= 3 and run.arm in self.waiting:
            self.waiting.pop(run.arm)(run)

    @property
    def text(self) -> str:
        return self.console.export_text(clear=False)


def process_of(run: Run) -> int:
    """The process that trains a run, by its log."""
    return int(run.log.read_text().rpartition("process ")[2].split(",")[0])


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def kill_parent(number: int) -> Callable[[Run], None]:
    """Send a signal to the process that has started the one that trains a run."""
    return lambda run: os.kill(parent_of(process_of(run)), number)


def assert_went_on(run: Run, display: Watching) -> None:
    """Two processes have worked at a run, and the second did not start anew."""
    begun = [line for line in run.log.read_text().splitlines() if ", process " in line]
    assert len(begun) == 2
    assert "goes on from its checkpoint" in begun[1]
    assert display.epochs.count((run.name, 1)) == 1
    assert display.epochs.count((run.name, STEPS)) == 1


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """Fail rather than wait for ever, as for a run whose cluster has no node left."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError("this test has waited for five minutes")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The runs of two arms, trained without any engine and without interruption, in one thread."""
    out, recipe = tmp_path_factory.mktemp("whole"), tiny("standard", "cbl", "cbl-gate")
    torch.set_num_threads(1)
    runs = {arm: Run(recipe, arm, 0, out) for arm in ("standard", "cbl")}
    for run in runs.values():
        train(run)
    torch.use_deterministic_algorithms(False)  # the Trainer has switched them on
    return runs


def assert_same(out: Path, whole: dict[str, Run]) -> None:
    for run in whole.values():
        there = replace(run, out=out)
        assert numbers(read_record(there.record)) == numbers(read_record(run.record))
        assert weights(there) == weights(run)


# names and plans


def test_unknown_engines_and_options_that_nobody_reads() -> None:
    assert ENGINE_NAMES == ("local", "ray", "slurm")
    with pytest.raises(ValueError, match="unknown engine 'rey': did you mean 'ray'"):
        make_engine("rey", Plan())
    with pytest.raises(ValueError, match=r"options of Slurm \(partition\) need --engine slurm, got --engine local"):
        make_engine("local", Plan(), {"partition": "gpu"})


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda found: None)
    with pytest.raises(ImportError, match=rf"engine '{name}' needs {package}: pip install 'torchcbl\[{name}\]'"):
        make_engine(name, Plan())


def test_engines_by_name_import_nothing_heavy() -> None:
    program = (
        "import sys; from torchcbl.lab.engines import Plan, make_engine; make_engine('local', Plan());"
        "heavy = {'torch', 'ray', 'submitit', 'lightning', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Plan(jobs=0), "jobs must be >= 1, got 0"),
        (lambda: Plan(threads=0), "threads must be >= 1, got 0"),
        (lambda: Spread(devices=0), "devices must be >= 1, got 0"),
        (lambda: Spread(nodes=-1), "nodes must be >= 1, got -1"),
        (lambda: Spread(2, 1, "dpp"), "strategy must be one of ddp, fsdp, got 'dpp'"),
        (lambda: LocalEngine(Plan(spread=Spread(1, 2))), "this machine alone, got --nodes 2: take --engine ray or"),
    ],
)
def test_wrong_plans(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_all_ranks_together_take_every_sample_once() -> None:
    ranks = [rank for node in range(2) for rank in ranks_on(Spread(3, 2), node)]
    assert [rank.number for rank in ranks] == list(range(6))
    for batch in range(1, 20):
        assert sum(rank.num_samples(batch) for rank in ranks) == batch
    assert Spread().describe() == {}
    assert Spread(2, 3, "fsdp").describe() == {"devices": 2, "nodes": 3, "strategy": "fsdp"}


# locks and journals


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    with hold(tmp_path / ".lock"):
        begun = time.monotonic()
        with pytest.raises(BlockingIOError), hold(tmp_path / ".lock", seconds=0.3):
            pass
        assert time.monotonic() - begun >= 0.3
    with hold(tmp_path / ".lock"), locked(tmp_path / "other"):
        pass


def test_a_journal_gives_whole_messages_once(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "states.jsonl"
    state = RunState(1, 0.5, 10.0, float("inf"), None, True)
    writer, reader = Journal(path), Journal(path)
    assert reader.read() == []
    writer.append(Begun("node1"))
    writer.append(state)
    assert reader.read() == [Begun("node1"), state]
    with path.open("a") as stream:
        stream.write('{"Begun": {"ho')
        stream.flush()
        assert reader.read() == []
        stream.write('st": "node2"}}\n')
    with path.open("a") as stream:
        stream.write('{"Ended": {"pro')  # cut off by a full disk
    writer.append(Ended(Problem("memory full", lost=True)))
    writer.append(Ended())
    assert reader.read() == [Begun("node2"), Ended(Problem("memory full", lost=True)), Ended()]
    assert reader.read() == []


def test_a_message_that_a_full_disk_cuts_off_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda descriptor, line: len(line) - 1)
    with pytest.raises(OSError, match=r"could not write .*states\.jsonl: the disk is full"):
        Journal(tmp_path / "states.jsonl").append(Ended())


# teams


def team_of(run: Run) -> Team:
    return Team(run, 1, ranks_on(Spread()), start_method())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 0)])
def test_a_process_that_is_killed_is_lost_not_at_fault(number: int, code: int, tmp_path: Path) -> None:
    run = Run(tiny("standard", epochs="500"), "standard", 0, tmp_path)
    states = follow(team_of(run))
    next(states)
    os.kill(process_of(run), number)
    with pytest.raises(LostError, match=f"ended before the run, with code {code} "):
        list(states)
    assert not run.record.exists()


def test_a_run_that_another_process_is_at_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tiny("standard"), "standard", 0, tmp_path)
    monkeypatch.setattr(worker, "LOCK_SECONDS", 0.0)
    with hold(run.folder / ".lock"):
        refused = worker._alone(run)
        with pytest.raises(BlockingIOError, match="another process has been at work in .*: end it, then run again"):
            refused.__enter__()


# GPUs


@pytest.mark.parametrize(
    ("hidden", "count", "expected"),
    [(None, 2, ["0", "1"]), ("3,GPU-1f", 2, ["3", "GPU-1f"]), ("", 0, []), (None, 0, [])],
)
def test_gpus_are_those_that_are_visible(
    hidden: str | None, count: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert visible_gpus() == expected


def test_runs_side_by_side_share_the_gpus_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes with names of GPUs that nobody has: each sees one, and two are never given the same."""
    monkeypatch.setattr("torchcbl.lab.engines.local.visible_gpus", lambda: ["70", "90"])
    recipe = tiny("standard", seeds="3", epochs="1")
    engine = LocalEngine(Plan(threads=1))
    assert run_study(recipe, tmp_path, Watching(), engine=engine) == []
    assert engine.jobs == 2
    logs = [Run(recipe, "standard", seed, tmp_path).log.read_text() for seed in range(3)]
    found = [log.splitlines()[0].rpartition(", GPU ")[2] for log in logs]
    assert found[:2] == ["70", "90"]
    assert found[2] in found[:2]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


# one run over several devices


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("arm", ["as-released-cbl", "as-released-standard-no-dropout"])
def test_the_mean_of_all_ranks_gradients_is_that_of_the_whole_batch(arm: str, batch: int, tmp_path: Path) -> None:
    """In float64, and without batch norm; with fewer samples than ranks, some count for nothing."""
    recipe = tiny(arm, batch_size=str(batch))
    dataset, run = load_dataset(recipe), Run(recipe, arm, 0, tmp_path)

    def gradients(rank: Rank) -> dict[str, torch.Tensor]:
        experiment = Experiment(run, dataset, rank).double()
        experiment._loss_sum, experiment._own_samples, experiment.samples_seen = torch.zeros(()), 0, 0
        x, target = next(iter(experiment.train_dataloader()))
        experiment.training_step((x.double(), target), 0).backward()
        assert (experiment.samples_seen, experiment._own_samples) == (batch, rank.num_samples(batch))
        return {name: p.grad for name, p in experiment.named_parameters() if p.grad is not None}

    whole = gradients(ALONE)
    parts = [gradients(rank) for rank in ranks_on(Spread(3))]
    for name, gradient in whole.items():
        mean = torch.stack([part[name] for part in parts]).mean(0)
        torch.testing.assert_close(mean, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_the_shares_of_all_ranks_are_the_batches(part: str, tmp_path: Path) -> None:
    recipe = tiny("cbl", batch_size="433", augment="true")
    dataset, seed = load_dataset(recipe), 3 if part == "train" else None

    def batches(share: int, num_shares: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        found = dataset.batches(part, 433, seed=seed)
        found.set_epoch(2)
        found.take_share(share, num_shares)
        return list(found)

    for whole, *parts in zip(batches(0, 1), *(batches(share, 3) for share in range(3)), strict=True):
        for share, samples in enumerate(parts):
            if own := Rank(Spread(3), device=share).num_samples(len(whole[1])):
                assert torch.equal(samples[0], whole[0][share::3])
                assert torch.equal(samples[1], whole[1][share::3])
                assert len(samples[1]) == own
            else:
                assert torch.equal(samples[0], whole[0][:2])
    with pytest.raises(ValueError, match=r"share must be in \[0, 2\), got 2"):
        batches(2, 2)


def results(record: Record) -> tuple[torch.Tensor, tuple[object, ...]]:
    losses = [loss for epoch in record.epochs for loss in (epoch.train_loss, *epoch.validation_loss)]
    return torch.tensor([*losses, *record.test.loss], dtype=torch.float64), (record.test.n, record.test.confusion)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [Spread(3, 1, "ddp"), Spread(2, 1, "fsdp")], ids=str)
def test_several_processes_train_as_one_does_also_after_one_was_killed(spread: Spread, tmp_path: Path) -> None:
    """Without batch norm the sums are the same but for their order; the last batch has one sample, less than ranks."""
    recipe = tiny("as-released-cbl", epochs="4", batch_size="433")
    one, parts = (Run(recipe, "as-released-cbl", 0, tmp_path / name) for name in ("one", "parts"))
    expected = train(one)
    (one.out / "recipe.toml").write_text(recipe.as_toml())
    torch.use_deterministic_algorithms(False)
    assert Experiment(one, load_dataset(recipe))._num_samples("train", 3) == (1, 1)

    engine = make_engine("local", Plan(jobs=1, threads=1, spread=spread))
    display = Watching({one.arm: lambda run: os.kill(process_of(run), signal.SIGKILL)})
    (failure,) = run_study(recipe, parts.out, display, engine=engine)
    assert "with code -9 (memory full, or killed?)" in failure.reason
    assert run_study(recipe, parts.out, Watching(), engine=engine) == []

    found = read_record(parts.record)
    (losses, counts), (wanted, wanted_counts) = results(found), results(expected)
    torch.testing.assert_close(losses, wanted, rtol=0, atol=2e-5)
    assert counts == wanted_counts
    assert (found.parameters, found.flops) == (expected.parameters, expected.flops)
    assert found.machine == {**expected.machine, **spread.describe()}
    assert "goes on from its checkpoint" in parts.log.read_text()
    kept, scores = rebuild(parts.folder).eval(), Scores()
    with torch.no_grad():
        for x, target in Experiment(parts, load_dataset(recipe)).test_dataloader():
            scores.add(find_arm(parts.arm).outputs(kept, x), target)
    assert scores.confusion == found.test.confusion
    assert scores.loss == pytest.approx(found.test.loss, rel=1e-5)


def test_runs_of_one_process_and_of_several_do_not_mix(whole: dict[str, Run], tmp_path: Path) -> None:
    run = whole["standard"]
    with pytest.raises(
        ValueError, match=r"record cbl-seed0 in .* was trained in 1 processes a run, here it would be 2"
    ):
        run_study(run.recipe, run.out, Watching(), engine=LocalEngine(Plan(spread=Spread(2))))

    class Stopped(BaseException):
        pass

    def stop(state: RunState) -> None:
        if state.epoch == 2:
            raise Stopped

    begun = Run(tiny("standard"), "standard", 0, tmp_path)
    with pytest.raises(Stopped):
        train(begun, stop)
    checkpoint = DurableCheckpointIO().load_checkpoint(begun.checkpoint)
    experiment = Experiment(begun, load_dataset(begun.recipe), Rank(Spread(2)))
    with pytest.raises(ValueError, match=r"checkpoint.ckpt was trained in 1 processes .*: give the same --devices"):
        experiment.on_load_checkpoint(checkpoint)
    torch.use_deterministic_algorithms(False)


# Ray


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[object]:
    """A Ray cluster whose head does no runs, and two nodes with a core each."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def remove_node_of(run: Run, cluster: object) -> None:
    """Take the node away on which a run is at work: the raylet there has started the worker of its process."""
    raylet = parent_of(parent_of(process_of(run)))
    (node,) = [node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.pid == raylet]
    cluster.remove_node(node)


@needs_ray
@pytest.mark.slow
def test_a_run_goes_on_elsewhere_when_its_worker_is_killed_or_its_node_is_lost(
    two_nodes: object, whole: dict[str, Run], tmp_path: Path
) -> None:
    recipe = tiny("standard", "cbl", "cbl-gate")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cbl-gate-seed0").write_text("in the way of a run that fails by its own fault")

    display = Watching({"cbl": kill_parent(signal.SIGKILL), "standard": lambda run: remove_node_of(run, two_nodes)})
    (failure,) = run_study(recipe, tmp_path, display, engine=make_engine("ray", Plan()))
    assert failure.run.name == "cbl-gate-seed0"
    assert "FileExistsError" in failure.reason
    assert "cbl-gate-seed0 was lost" not in display.text, "a run that fails by its own fault is not taken up again"
    assert_same(tmp_path, whole)
    for arm, cause in (("cbl", "WorkerCrashedError"), ("standard", "NodeDiedError")):
        assert_went_on(Run(recipe, arm, 0, tmp_path), display)
        assert f"{arm}-seed0 was lost on" in display.text
        assert cause in display.text


@needs_ray
@pytest.mark.slow
def test_a_cluster_without_room_for_a_run_says_so(two_nodes: object) -> None:
    with pytest.raises(ValueError, match="has 0 nodes with 64 CPU, but a run needs 1: ask for fewer --threads"):
        make_engine("ray", Plan(threads=64)).start(1)
    with pytest.raises(ValueError, match=r"has \d nodes with 1 CPU, but a run needs 9"):
        make_engine("ray", Plan(threads=1, spread=Spread(1, 9))).start(1)


def test_a_node_that_does_not_see_the_study_says_so(tmp_path: Path) -> None:
    messages = member(Run(tiny("cbl"), "cbl", 0, tmp_path), 1, Spread(), 0, None, {})
    next(messages)
    with pytest.raises(
        RunError, match="does not see .*: put the study .* into a folder that every node of the cluster"
    ):
        next(messages)


@needs_ray
def test_rays_remote_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from torchcbl.lab.engines.ray import connect

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "ray://somewhere:10001")
    with pytest.raises(ValueError, match="run the command on a node of the cluster, with RAY_ADDRESS=auto"):
        connect()


# Slurm


@needs_submitit
@pytest.mark.slow
def test_a_run_goes_on_when_its_job_is_preempted_or_killed(whole: dict[str, Run], tmp_path: Path) -> None:
    recipe = tiny("standard", "cbl", "cbl-gate")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cbl-gate-seed0").write_text("in the way of a run that fails by its own fault")

    display = Watching({"cbl": kill_parent(signal.SIGUSR2), "standard": kill_parent(signal.SIGKILL)})
    engine = make_engine("slurm", Plan(jobs=2, threads=1), {"cluster": "local"})
    (failure,) = run_study(recipe, tmp_path, display, engine=engine)
    assert failure.run.name == "cbl-gate-seed0"
    assert "FileExistsError" in failure.reason
    assert "cbl-gate-seed0 was lost" not in display.text, "a run that fails by its own fault is not taken up again"
    assert_same(tmp_path, whole)
    for arm in ("standard", "cbl"):
        assert_went_on(Run(recipe, arm, 0, tmp_path), display)
    assert "standard-seed0 was lost: job" in display.text
    assert "cbl-seed0 was lost" not in display.text, "a preempted job comes back by itself"


RECORDED = {"one": "14_0|RUNNING\n14_1|PENDING\n13|CANCELLED\n", "two": "14_1|REQUEUED\n14_2|NODE_FAIL\n"}
"""What squeue of Slurm 22.05 printed."""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Commands by the names of Slurm's; the returned function says what squeue prints, or "" for its failure."""
    commands = tmp_path / "bin"
    commands.mkdir()
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")

    def say(text: str) -> None:
        body = f"printf '{text}'" if text else "exit 1"
        for name in ("squeue", "sbatch"):
            (commands / name).write_text(f"#!/bin/sh\n{body}\n")
            (commands / name).chmod(0o755)

    say(RECORDED["one"])
    return say


@needs_submitit
def test_runs_wait_where_slurm_refuses_while_others_are_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchcbl.lab.engines.slurm import SlurmEngine

    def refuse(*given: object) -> None:
        raise OSError("Slurm did not take the jobs: busy")

    engine, display = SlurmEngine(Plan(), {"cluster": "local"}), Watching()
    monkeypatch.setattr(engine, "_submit", refuse)
    first, second, third = ((Run(tiny("standard"), "standard", seed, tmp_path), 2) for seed in range(3))
    waiting = [third]
    assert engine._submit_or_wait([first, second], waiting, {"x": object()}, display) > time.monotonic()  # type: ignore[dict-item]
    assert waiting == [third, second, first], "taken from the end, so in the same order"
    assert "busy; trying again in 60 s" in display.text
    with pytest.raises(OSError, match="busy"):
        engine._submit_or_wait([first], waiting, {}, display)


@needs_submitit
def test_the_queue_knows_what_became_of_jobs(slurm: Callable[[str], None], tmp_path: Path) -> None:
    import submitit

    from torchcbl.lab.engines import slurm_queue

    queue = slurm_queue.Queue({})
    jobs = {name: submitit.SlurmJob(tmp_path / "slurm", name) for name in ("13", "14_0", "14_1", "14_2")}

    def states() -> dict[str, str | None]:
        queue._looked = float("-inf")
        return {name: queue.over(job) for name, job in jobs.items()}

    assert states() == {"13": "CANCELLED", "14_0": None, "14_1": None, "14_2": "gone"}
    queue.remember(tmp_path, jobs)
    assert set(queue.find(tmp_path)) == {"14_0", "14_1"}
    slurm("")
    assert states() == {"13": "CANCELLED", "14_0": None, "14_1": None, "14_2": "gone"}, "no answer changes nothing"
    fresh = slurm_queue.Queue({})
    assert set(fresh.find(tmp_path)) == set(jobs), "no answer at all: they may be still there"
    queue._submitted["15"] = time.monotonic()
    jobs["15"] = submitit.SlurmJob(tmp_path / "slurm", "15")
    assert states()["15"] is None, "submitted since Slurm answered last"
    del jobs["15"]
    slurm(RECORDED["two"])
    assert states() == {"13": "gone", "14_0": "gone", "14_1": None, "14_2": "NODE_FAIL"}


@needs_submitit
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cluster": "sge"}, "--slurm cluster must be one of slurm, local, got 'sge'"),
        ({"cluster": "local", "partion": "gpu"}, "unknown option of Slurm 'partion': did you mean 'partition'"),
        ({"cluster": "local", "nodes": "2"}, "unknown option of Slurm 'nodes'"),
        ({"cluster": "local", "time": "1-00:00"}, "option of Slurm 'time' must be whole minutes, got '1-00:00'"),
        ({"cluster": "local", "mem_gb": "much"}, "option of Slurm 'mem_gb' must be a number, got 'much'"),
    ],
)
def test_wrong_options_of_slurm(options: Mapping[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_engine("slurm", Plan(), options)


@needs_submitit
def test_without_slurm_and_on_several_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cluster=local is this machine alone, got --nodes 2"):
        make_engine("slurm", Plan(spread=Spread(1, 2)), {"cluster": "local"})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no Slurm here .*--slurm cluster=local"):
        make_engine("slurm", Plan())


@needs_submitit
def test_threads_of_jobs(slurm: Callable[[str], None]) -> None:
    cores = num_cores()
    for plan, options, wanted in [
        (Plan(jobs=2), {}, max(1, cores // 2)),
        (Plan(threads=3), {}, 3),
        (Plan(), {"cpus_per_task": "8"}, 8),
        (Plan(spread=Spread(4, 1)), {"cpus_per_task": "8"}, 2),
    ]:
        engine = make_engine("slurm", plan, options)
        engine.start(5)
        assert engine.threads == wanted
