"""One run: train, validate at every step, test once, leave a record; interrupted, go on where it was."""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.distributed.fsdp import FSDPModule

from torchcbl.lab.arms import example_of, find_arm
from torchcbl.lab.arms.contexts import told
from torchcbl.lab.arms.matched import training_flops
from torchcbl.lab.checkpoints import DurableCheckpointIO, usable_checkpoint
from torchcbl.lab.costs import count_flops, count_parameters
from torchcbl.lab.data import Dataset, load_dataset
from torchcbl.lab.distributed import RankEnvironment, leave, trainer_options, whole
from torchcbl.lab.experiment import Experiment
from torchcbl.lab.machine import describe_machine, versions
from torchcbl.lab.ranks import ALONE, Rank
from torchcbl.lab.records import SCHEMA, Record, TrialRecord, write_record
from torchcbl.lab.runs import Run, RunState
from torchcbl.lab.weights import save_weights

REPORT_SECONDS = 2.0


def train(run: Run, report: Callable[[RunState], None] = lambda state: None, rank: Rank = ALONE) -> Record:
    """Train one run to its end, from its checkpoint if there is one, and write its record and weights.

    With the same number of threads, a run that was interrupted, by whatever, ends with the same numbers as one
    that was not, bit for bit.

    Args:
        run: What to train and where its files lie.
        report: Called with the state of the training, every few seconds and at the end of each epoch.
        rank: Which of the run's processes this is, where several train it; the first alone reports and writes.

    Returns:
        The record, which has also been written to `run.record`.

    Raises:
        OSError: A file could not be written.
    """
    experiment = Experiment(run, load_dataset(run.recipe, run.data), rank)
    with _quiet():
        trainer = _fit(experiment, report)
        trainer.test(experiment, verbose=False)
    model = _whole_model(experiment)
    leave()
    assert experiment.test_record is not None
    trial = _describe(experiment, model, trainer.strategy.root_device.type)
    record = Record(**vars(trial), test=experiment.test_record)
    if rank.leads:
        save_model(run, model, experiment.dataset)
        write_record(run.out, record)
        run.checkpoint.unlink(missing_ok=True)
    return record


def train_untested(
    run: Run, report: Callable[[RunState], None] = lambda state: None, rank: Rank = ALONE
) -> TrialRecord:
    """Train and validate one run as `train` does, without a look at the test data.

    Args:
        run: What to train and where its files lie.
        report: As in `train`.
        rank: As in `train`.

    Returns:
        The record, which the caller is to write; weights are not kept, the checkpoint still is.

    Raises:
        OSError: A file could not be written.
    """
    experiment = Experiment(run, load_dataset(run.recipe, run.data), rank)
    with _quiet():
        trainer = _fit(experiment, report)
    model = _whole_model(experiment)
    leave()
    return _describe(experiment, model, trainer.strategy.root_device.type)


def _fit(experiment: Experiment, report: Callable[[RunState], None]) -> Trainer:
    """Train to the end, from the checkpoint if there is one."""
    if experiment.rank.leads:
        _tidy(experiment.run)
    checkpoint = usable_checkpoint(experiment.run.checkpoint)
    trainer = _trainer(experiment.run, report, experiment.rank)
    trainer.fit(experiment, ckpt_path=checkpoint)
    return trainer


def _tidy(run: Run) -> None:
    """Remove what an earlier sitting left behind and this one does not go on from."""
    for half_written in [*run.folder.glob(f".{run.checkpoint.name}.*"), *run.model.glob(".*")]:
        half_written.unlink()
    shutil.rmtree(run.folder / "logs", ignore_errors=True)


def _whole_model(experiment: Experiment) -> nn.Module:
    """Give the trained model, on the CPU and in one piece."""
    if not isinstance(experiment, FSDPModule):
        return experiment.model.to("cpu")
    state, form = whole(experiment.model), experiment.dataset.form
    model = experiment.arm.build(experiment.run.recipe, form.shape, form.num_classes, experiment.run.seed)
    model.load_state_dict(state)
    return model


def save_model(run: Run, model: nn.Module, dataset: Dataset) -> None:
    """Keep a run's weights in `run.model`, with the form of its data and what leads from raw data to its input."""
    save_weights(model, run.model)
    dataset.form.save(run.model)
    dataset.save_front_end(run.model)


class _Reporter(Callback):
    """Report every few seconds and at the end of each epoch."""

    def __init__(self, report: Callable[[RunState], None]) -> None:
        self.report = report
        self.since, self.samples_then, self.speed = time.monotonic(), 0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.since, self.samples_then = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if time.monotonic() - self.since >= REPORT_SECONDS:
            self._measure(module)
            self._send(module, epoch_finished=False)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._measure(module)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._send(module, epoch_finished=True)

    def _measure(self, module: LightningModule) -> None:
        assert isinstance(module, Experiment)
        now = time.monotonic()
        if module.samples_seen > self.samples_then:
            self.speed = (module.samples_seen - self.samples_then) / max(now - self.since, 1e-9)
        self.since, self.samples_then = now, module.samples_seen

    def _send(self, module: LightningModule, epoch_finished: bool) -> None:
        assert isinstance(module, Experiment)
        share = 1.0 if epoch_finished else module.samples_seen / module.dataset.size("train")
        self.report(
            RunState(
                epoch=module.current_epoch + 1,
                done=(module.current_epoch + share) / module.run.recipe.epochs,
                samples_per_second=self.speed,
                train_loss=module.train_loss,
                validation_accuracy=module.epochs[-1].validation_accuracy[-1] if module.epochs else None,
                epoch_finished=epoch_finished,
            )
        )


def _trainer(run: Run, report: Callable[[RunState], None], rank: Rank) -> Trainer:
    """Make a Trainer that keeps one checkpoint, the last finished epoch's, and prints nothing."""
    keep = ModelCheckpoint(
        dirpath=run.folder,
        filename=run.checkpoint.stem,
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    return Trainer(
        max_epochs=run.recipe.epochs,
        accelerator="auto",
        **trainer_options(rank),
        deterministic="warn",
        logger=[loggers(run.folder, name="logs", version="") for loggers in (CSVLogger, TensorBoardLogger)],
        callbacks=[keep, *([_Reporter(report)] if rank.leads else [])],
        plugins=[DurableCheckpointIO(), RankEnvironment(rank)],
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run.folder,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's tips to itself; warnings that are our own pass."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*not have many workers.*")
        try:
            yield
        finally:
            logger.setLevel(level)


def _describe(experiment: Experiment, model: nn.Module, device: str) -> TrialRecord:
    """Say everything of a trained run but what the test gave."""
    run = experiment.run
    shape, classes = experiment.dataset.form.shape, experiment.dataset.form.classes
    example, arm = example_of(shape), experiment.arm
    with told(torch.zeros(len(example), dtype=torch.long)):
        flops = count_flops(model, example)
    return TrialRecord(
        schema=SCHEMA,
        study=run.recipe.name,
        arm=run.arm,
        seed=run.seed,
        recipe=run.recipe.as_dict(),
        versions=versions(),
        machine={**describe_machine(torch.get_num_threads(), device), **experiment.rank.spread.describe()},
        parameters=count_parameters(model, arm.backbone(model)),
        flops={**flops, "training": training_flops(find_arm(run.arm), run.recipe, shape, len(classes))},
        epochs=tuple(experiment.epochs),
        seconds={"training": sum(epoch.seconds for epoch in experiment.epochs), "total": experiment.seconds},
        classes=classes,
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
