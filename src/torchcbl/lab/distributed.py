"""Training one run in several processes: what Lightning is told, and sums over all of them."""

from __future__ import annotations

import gc
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from torchcbl.lab.ranks import Rank


class RankEnvironment(ClusterEnvironment):
    """Tell Lightning which of a run's processes this is; whatever cluster it runs on has no say in it.

    Args:
        rank: This process.
    """

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self.rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning starts none itself."""
        return True

    @property
    def main_address(self) -> str:
        """Where the first process is."""
        return self.rank.address

    @property
    def main_port(self) -> int:
        """Where it listens."""
        return self.rank.port

    @staticmethod
    def detect() -> bool:
        """It is chosen by name alone."""
        return False

    def world_size(self) -> int:
        """How many processes there are."""
        return self.rank.spread.size

    def set_world_size(self, size: int) -> None:
        """It is given."""

    def global_rank(self) -> int:
        """The number of this one."""
        return self.rank.number

    def set_global_rank(self, rank: int) -> None:
        """It is given."""

    def local_rank(self) -> int:
        """Its number on this machine."""
        return self.rank.device

    def node_rank(self) -> int:
        """The number of this machine."""
        return self.rank.node


def trainer_options(rank: Rank) -> dict[str, Any]:
    """Say to a `Trainer` how a run is spread."""
    spread = rank.spread
    options: dict[str, Any] = {"devices": spread.devices, "num_nodes": spread.nodes}
    if spread.size == 1:
        return options
    if spread.strategy == "ddp":
        # an arm may have parameters without a gradient, as `literal` has
        options["strategy"] = DDPStrategy(find_unused_parameters=True)
    else:
        options["strategy"] = ModelParallelStrategy(
            data_parallel_size=spread.size, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return {**options, "use_distributed_sampler": False}


def shard(module: LightningModule) -> None:
    """Give each process a part of every tensor of `module`; once is enough.

    All steps of a loop use the same weights, so they are gathered once for a batch, and kept until its gradients are
    done; gradients and the optimiser's state stay in parts.
    """
    if isinstance(module, FSDPModule):
        return
    module.strict_loading = False  # a parameter without a gradient, as `literal` has, has no state in the optimiser
    module.to(memory_format=torch.contiguous_format)
    fully_shard(module)
    for step in ("training_step", "validation_step", "test_step"):
        register_fsdp_forward_method(module, step)


def whole(model: nn.Module) -> dict[str, Tensor]:
    """Gather the state of a model from all processes, on the CPU; every process must call it."""
    return {name: _gathered(value) for name, value in model.state_dict().items()}


def _gathered(value: Tensor) -> Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()


def sum_over_ranks(value: Tensor) -> Tensor:
    """Add up what each process has; a single one keeps what it has."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def share_buffers(module: nn.Module) -> None:
    """Take over the buffers of the first process, batch norm's running statistics above all."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def leave() -> None:
    """Take leave of the other processes."""
    if dist.is_initialized():
        gc.collect()  # what still holds the group would abort the process at its end (torch with gloo)
        dist.destroy_process_group()
