"""What Lightning needs to know of one run: batches, losses, scores at every step, and the history."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from torchcbl.lab.arms import derive_seed, find_arm
from torchcbl.lab.data import Dataset, EpochBatches
from torchcbl.lab.distributed import shard, share_buffers, sum_over_ranks
from torchcbl.lab.ranks import ALONE, Rank, Spread
from torchcbl.lab.recipe import differences
from torchcbl.lab.records import EpochRecord, TestRecord
from torchcbl.lab.runs import Run
from torchcbl.lab.scores import Scores


class Experiment(LightningModule):
    """Train, validate and test one run; the epochs' history rides in the checkpoint.

    Everything by chance within an epoch is derived from (seed, epoch), so no generator's state need be kept.

    Args:
        run: What to train.
        dataset: The data.
        rank: Which of the run's processes this is: each takes its share of every batch.
    """

    def __init__(self, run: Run, dataset: Dataset, rank: Rank = ALONE) -> None:
        super().__init__()
        self.run, self.dataset, self.rank = run, dataset, rank
        self.arm = find_arm(run.arm).adjusted(run.recipe)
        self.model = self.arm.build(run.recipe, dataset.form.shape, dataset.form.num_classes, run.seed)
        # About a quarter faster on CPUs, and the same for every arm.
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.epochs: list[EpochRecord] = []
        self.test_record: TestRecord | None = None
        self.earlier_seconds = 0.0
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall-clock time spent on the run, earlier sittings up to their last checkpoint included."""
        return self.earlier_seconds + time.monotonic() - self._begun

    @property
    def train_loss(self) -> float:
        """Mean training loss over the epoch so far."""
        return float(self._loss_sum) / max(1, self._own_samples)

    def configure_model(self) -> None:
        """Share the weights out, where the strategy says so."""
        if self.rank.spread.size > 1 and self.rank.spread.strategy == "fsdp":
            shard(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the paper's optimiser."""
        return torch.optim.Adam(self.model.parameters(), lr=self.run.recipe.learning_rate)

    def train_dataloader(self) -> EpochBatches:
        """Shuffle by (seed, epoch): the same order in every arm."""
        self._train_batches = self._batches("train", self.run.seed)
        return self._train_batches

    def val_dataloader(self) -> EpochBatches:
        """Go through the validation part in order."""
        return self._batches("validation")

    def test_dataloader(self) -> EpochBatches:
        """Go through the test part in order."""
        return self._batches("test")

    def on_train_epoch_start(self) -> None:
        """Set what depends on the epoch alone: the order, the generator and the step size."""
        recipe, epoch = self.run.recipe, self.current_epoch
        self._train_batches.set_epoch(epoch)
        torch.manual_seed(derive_seed(self.run.seed, epoch, *([] if self.rank.leads else [self.rank.number])))
        halvings = epoch // recipe.halve_every if recipe.halve_every else 0
        self._learning_rate = recipe.learning_rate * 0.5**halvings
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self._learning_rate
        self._epoch_begun = time.monotonic()
        self._loss_sum, self._own_samples, self.samples_seen = torch.zeros((), device=self.device), 0, 0

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Compute the loss of one batch; the mean of all processes' gradients is then that of the whole batch."""
        x, target = batch
        loss = self.arm.loss(self.model, x, target)
        own, whole = self._num_samples("train", index)
        if own:
            self._loss_sum += loss.detach() * own
        self._own_samples += own
        self.samples_seen += whole
        return loss if self.rank.spread.size == 1 else loss * (self.rank.spread.size * own / whole)

    def on_validation_epoch_start(self) -> None:
        """Begin to count."""
        self._loss_sum, self._own_samples = sum_over_ranks(self._loss_sum), self.samples_seen
        self._begin_to_score()

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Score one batch at every step tau."""
        self._score(batch, self._num_samples("validation", index)[0])

    def on_validation_epoch_end(self) -> None:
        """Write the epoch into the history: Lightning validates after the last batch, and saves next."""
        self._scores.sum_up(sum_over_ranks)
        self.epochs.append(
            EpochRecord(
                epoch=self.current_epoch + 1,
                learning_rate=self._learning_rate,
                train_loss=self.train_loss,
                validation_loss=self._scores.loss,
                validation_accuracy=self._scores.accuracy,
                seconds=time.monotonic() - self._epoch_begun,
            )
        )
        self._log(self.epochs[-1])

    def on_test_epoch_start(self) -> None:
        """Begin to count."""
        self._begin_to_score()

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Score one batch at every step tau."""
        self._score(batch, self._num_samples("test", index)[0])

    def on_test_epoch_end(self) -> None:
        """Keep the test result."""
        scores = self._scores
        scores.sum_up(sum_over_ranks)
        self.test_record = TestRecord(scores.n, scores.loss, scores.accuracy, scores.confusion)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the history and the time spent."""
        checkpoint["history"] = {
            "recipe": self.run.recipe.as_dict(),
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "seconds": self.seconds,
            "threads": torch.get_num_threads(),
            "spread": self.rank.spread.describe(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history up again, and the number of threads, which the last bits may depend on."""
        history = checkpoint["history"]
        differing = differences(history["recipe"], self.run.recipe)
        if differing:
            found = f"{self.run.checkpoint} is of another recipe: {'; '.join(differing)}"
            raise ValueError(f"{found}. Delete it, or choose another --out.")
        self.rank.spread.check(Spread.of(history.get("spread", {})), f"{self.run.checkpoint}")
        if history["threads"] != torch.get_num_threads():
            print(f"{self.run.name} goes on with {history['threads']} threads a process, as it was begun", flush=True)
        torch.set_num_threads(history["threads"])
        self.epochs = [EpochRecord(**epoch) for epoch in history["epochs"]]
        self.earlier_seconds = history["seconds"]

    def on_fit_start(self) -> None:
        """Log the epochs of earlier sittings, since each sitting begins its logs anew, one with none left to do too."""
        for epoch in self.epochs:
            self._log(epoch)

    def _batches(self, part: str, seed: int | None = None) -> EpochBatches:
        size = self.run.recipe.batch_size
        batches = self.dataset.batches(part, size, seed=seed, memory_format=torch.channels_last)
        batches.take_share(self.rank.number, self.rank.spread.size)
        return batches

    def _num_samples(self, part: str, index: int) -> tuple[int, int]:
        """How many samples of a batch are this process's, and how many it has in all."""
        size = self.run.recipe.batch_size
        whole = min(size, self.dataset.size(part) - index * size)
        return self.rank.num_samples(whole), whole

    def _begin_to_score(self) -> None:
        share_buffers(self.model)
        self._scores = Scores()

    def _score(self, batch: tuple[Tensor, Tensor], own: int) -> None:
        x, target = batch
        self._scores.add([y[:own] for y in self.arm.outputs(self.model, x, target)], target[:own])

    def _log(self, epoch: EpochRecord) -> None:
        metrics = {"learning_rate": epoch.learning_rate, "train_loss": epoch.train_loss}
        for step, (loss, accuracy) in enumerate(zip(epoch.validation_loss, epoch.validation_accuracy, strict=True)):
            metrics[f"validation_loss/step{step}"] = loss
            metrics[f"validation_accuracy/step{step}"] = accuracy
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=epoch.epoch)
