"""What the data path costs: milliseconds per batch of real images, against a training step of the same CNN.

    TORCHCBL_DATA=DIR python benchmarks/data_path.py

Printed: medians over an epoch's batches of CIFAR-10 at batch 128 on one thread, plain and augmented, and their share of
a training step of the `standard` arm (the cheapest one, so the largest share).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from torchcbl.lab.data import Batches, load_data
from torchcbl.lab.networks import StandardCNN


def seconds_per_batch(batches: Iterable[object]) -> float:
    times, iterator = [], iter(batches)
    while True:
        begin = time.perf_counter()
        if next(iterator, None) is None:
            return statistics.median(times)
        times.append(time.perf_counter() - begin)


def seconds_per_step(x: torch.Tensor, labels: torch.Tensor) -> float:
    model = StandardCNN(num_classes=10).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters())
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        optimiser.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimiser.step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(1)
    data = load_data("cifar10", validation_size=5000)
    options = {"mean": data.mean, "std": data.std, "batch_size": 128, "seed": 0}
    x, labels = next(iter(Batches(data.train, memory_format=torch.channels_last, **options)))
    step = seconds_per_step(x, labels)
    print(f"training step: {1e3 * step:.1f} ms")
    for augment in (False, True):
        batch = seconds_per_batch(Batches(data.train, augment=augment, memory_format=torch.channels_last, **options))
        print(f"batch, augment={augment}: {1e3 * batch:.2f} ms, {batch / step:.2%} of a step")


if __name__ == "__main__":
    main()
