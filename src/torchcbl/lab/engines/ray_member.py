"""What a node of a Ray cluster does for a run: starts its processes there, and passes on what they send."""

from __future__ import annotations

import multiprocessing
import os
import platform
from collections.abc import Iterator, Mapping

from torchcbl.lab.engines.team import RunError, Team, follow, free_port
from torchcbl.lab.ranks import Spread, ranks_on
from torchcbl.lab.runs import Run, RunState


def meet() -> tuple[str, int]:
    """Say where the first machine of a run can be reached by the others, and at which port."""
    import ray

    return ray.util.get_node_ip_address(), free_port()  # type: ignore[no-untyped-call]


def member(
    run: Run,
    threads: int,
    spread: Spread,
    node: int,
    place: tuple[str, int] | None,
    environment: Mapping[str, str],
) -> Iterator[RunState | str]:
    """Train a run, or a machine's part of it, in processes of their own.

    Args:
        run: What to train.
        threads: Threads of each process.
        spread: Over how many devices and machines.
        node: Which of the run's machines this is.
        place: Where the first one is; None where there is no other.
        environment: Variables that say where data are.

    Yields:
        The machine's name, and then the run's states as they come.

    Raises:
        RunError: The run failed, or this node does not see the study's folder.
        LostError: A process was killed.
    """
    yield platform.node()
    if not (run.out / "recipe.toml").is_file():
        raise RunError(
            f"node {platform.node()} does not see {run.out}: put the study (--out) into a folder that every node of "
            "the cluster shares."
        )
    os.environ.update(environment)
    address, port = place or ("127.0.0.1", free_port("127.0.0.1"))
    # spawned, not forked from a server, which would keep the GPU of the run before
    team = Team(run, threads, ranks_on(spread, node, address, port), multiprocessing.get_context("spawn"))
    for state in follow(team):  # noqa: UP028
        yield state  # Ray sends values into this generator, which `yield from` would hand on to one that takes none
