"""Train a network with feedback in one process or in many, on real handwritten digits.

python examples/train_distributed.py
torchrun --nproc-per-node 2 examples/train_distributed.py --engine fsdp
torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 examples/train_distributed.py

Needs torchcbl[lab].
"""

import argparse
import gc
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import torchcbl as cbl
from torchcbl.lab.data import load_data

RANK, WORLD, LOCAL = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
DEVICE = torch.device("cuda", LOCAL) if torch.cuda.is_available() else torch.device("cpu")


class Objective(nn.Module):
    """The loss of all steps, and y_T: DDP and FSDP2 look after what happens within one `forward`."""

    def __init__(self, net: cbl.ContextLoop) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        r = self.net.refine(x)
        return cbl.refinement_loss(r, target), r.output


def make_net() -> cbl.ContextLoop:
    sizes = ((1, 16), (16, 32), (32, 32))
    blocks = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(4, b), nn.ReLU()) for a, b in sizes]
    backbone = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    return cbl.ContextLoop(backbone, sites=["1", "2"], example=torch.zeros(2, 1, 8, 8))


def distribute(net: cbl.ContextLoop, engine: str) -> nn.Module:
    if engine == "ddp":
        return DistributedDataParallel(Objective(net))
    for block in list(net.backbone.children())[:3]:
        fully_shard(block)
    return fully_shard(Objective(net))


def main(engine: str, epochs: int, out: str, batch_size: int = 64, seed: int = 0) -> None:
    data = load_data("digits", validation_size=200)
    parts = [((part.images / 255 - data.mean[0]) / data.std[0], part.labels) for part in (data.train, data.validation)]
    world = max(WORLD, 1)
    sampler = DistributedSampler(train := TensorDataset(*parts[0]), world, RANK, seed=seed)
    loader = DataLoader(train, batch_size // world, sampler=sampler)
    x_val, target_val = (tensor[RANK::world].to(DEVICE) for tensor in parts[1])  # each image on one rank only

    torch.manual_seed(seed)  # the same weights on every rank: FSDP2 does not send them round
    net = make_net().to(DEVICE)
    objective = distribute(net, engine) if WORLD else Objective(net)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)  # another order in each epoch
        for x, target in loader:
            loss, _ = objective(x.to(DEVICE), target.to(DEVICE))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            correct = (objective.eval()(x_val, target_val)[1].argmax(1) == target_val).sum()
        objective.train()
        if WORLD:
            dist.all_reduce(correct)
        if RANK == 0:
            print(f"epoch {epoch + 1}: validation accuracy {int(correct) / len(parts[1][1]):.1%}")

    state = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True, cpu_offload=True))  # on all ranks
    if RANK == 0:
        (whole := make_net()).load_state_dict(state)
        whole.save(out, include_backbone=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", default="runs/distributed")
    if DEVICE.type == "cuda":
        torch.cuda.set_device(DEVICE)
    if WORLD:
        dist.init_process_group("nccl" if DEVICE.type == "cuda" else "gloo")
    main(**vars(parser.parse_args()))
    if WORLD:
        gc.collect()  # under gloo, what still holds tensors of the group could abort the process at its very end
        dist.destroy_process_group()
