"""One run over several devices and machines: which process is which, and what share of a batch it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True)
class Spread:
    """Over how much one run is spread.

    Args:
        devices: Devices (GPUs; without any, processes) on each machine, >= 1.
        nodes: Machines, >= 1.
        strategy: "ddp" (every process holds the whole network) or "fsdp" (each keeps a part of every tensor).

    Raises:
        ValueError: A number is below 1, or the strategy is unknown.

    Example:
        >>> Spread(devices=4, nodes=2).size
        8
    """

    devices: int = 1
    nodes: int = 1
    strategy: str = "ddp"

    def __post_init__(self) -> None:
        for name, value in (("devices", self.devices), ("nodes", self.nodes)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}: what one run is spread over.")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got '{self.strategy}'.")

    @property
    def size(self) -> int:
        """How many processes train one run."""
        return self.devices * self.nodes

    @classmethod
    def of(cls, machine: Mapping[str, object]) -> Spread:
        """Read what `describe` gave, as it stands in a record's `machine`.

        Example:
            >>> Spread.of({"device": "cpu"}).size, Spread.of(Spread(2, 3).describe()).size
            (1, 6)
        """
        return cls(int(str(machine.get("devices", 1))), int(str(machine.get("nodes", 1))))

    def check(self, found: Spread, where: str) -> None:
        """Refuse to mix with what was spread over another number of processes: batch norm sees other batches there.

        Raises:
            ValueError: The numbers differ; the message begins with `where`.
        """
        if found.size != self.size:
            raise ValueError(
                f"{where} was trained in {found.size} processes a run, here it would be {self.size}, and batch norm "
                "would see other batches: give the same --devices and --nodes, or choose another --out."
            )

    def describe(self) -> dict[str, object]:
        """Say it for a record; nothing where one process trains."""
        if self.size == 1:
            return {}
        return {"devices": self.devices, "nodes": self.nodes, "strategy": self.strategy}


@dataclass(frozen=True)
class Rank:
    """One of the processes that train one run.

    Args:
        spread: All of them.
        node: Its machine, from 0.
        device: Its device there, from 0.
        address: Where the first process listens for the others.
        port: The port there.

    Example:
        >>> rank = Rank(Spread(devices=2, nodes=2), node=1, device=0)
        >>> rank.number, rank.leads
        (2, False)
    """

    spread: Spread = Spread()
    node: int = 0
    device: int = 0
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def number(self) -> int:
        """Its number among all, from 0."""
        return self.node * self.spread.devices + self.device

    @property
    def leads(self) -> bool:
        """Whether it is the one that reports and writes."""
        return self.number == 0

    def num_samples(self, batch: int) -> int:
        """Say how many samples of a batch of so many are its own: those at number, number + size, ...

        Example:
            >>> [Rank(Spread(devices=4), device=device).num_samples(6) for device in range(4)]
            [2, 2, 1, 1]
        """
        return len(range(self.number, batch, self.spread.size))


ALONE = Rank()
"""The only process of its run."""


def ranks_on(spread: Spread, node: int = 0, address: str = "127.0.0.1", port: int = 0) -> list[Rank]:
    """List the processes of a run on one machine."""
    return [Rank(spread, node, device, address, port) for device in range(spread.devices)]
