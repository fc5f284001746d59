"""What processes are given: an end with their parent, memory that they keep, and no part in Ctrl-C as they start."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import multiprocessing, os, sys, time
from torchcbl.lab import processes

def child(pipe):
    processes.end_with_parent()
    pipe.send(os.getpid())
    while True:  # busy, as in training
        sum(range(1000))

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    receiver, sender = context.Pipe(duplex=False)
    context.Process(target=child, args=(sender,)).start()
    print(receiver.recv(), flush=True)
    time.sleep(60)
"""


def alive(process: int) -> bool:
    """Whether a process is there and not just waiting to be reaped."""
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_worker_dies_with_its_parent_even_by_sigkill(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    for method in ("forkserver", "spawn"):
        parent = subprocess.Popen([sys.executable, str(script), method], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 10
        while alive(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(child)


FREED = """
import sys
import torch
from torchcbl.lab.processes import keep_memory

def resident():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1])

print(keep_memory() if sys.argv[1] == "keep" else None)
torch.set_num_threads(1)
held = torch.ones(7 * 2**20)  # 28 MiB: more than anything before, so that it is not among what is kept by default
before = resident()
del held
print(before - resident())
"""


def freed(*, keep: bool, **environment: str) -> tuple[str, int]:
    """Run `FREED` on its own: what `keep_memory` said, and how many pages went back to the system."""
    free = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", FREED, "keep" if keep else "leave"]
    done = subprocess.run(command, env={**free, **environment}, capture_output=True, text=True, check=True)
    said, count = done.stdout.split()
    return said, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the GNU C library alone has mallopt")
def test_memory_of_freed_tensors_is_kept() -> None:
    assert freed(keep=False)[1] > 7000  # of 4 KiB
    said, pages = freed(keep=True)
    assert said == "True"
    assert pages < 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere it is False in any case")
def test_what_the_user_says_of_malloc_goes_first() -> None:
    said, _ = freed(keep=True, MALLOC_ARENA_MAX="4")
    assert said == "False"


FILLED = """
import torch
from torchcbl.lab.processes import use_threads

torch.use_deterministic_algorithms(True)
use_threads(1)
assert not torch.empty(2**20).isnan().all()  # before anything is filled, whose memory could come again
torch.utils.deterministic.fill_uninitialized_memory = True
assert torch.empty(2**20).isnan().all()
"""


def test_new_tensors_are_not_filled_before_they_are_written_to() -> None:
    subprocess.run([sys.executable, "-c", FILLED], check=True)


INTERRUPTED = """
import os, signal, time
from torchcbl.lab.engines.team import start_method

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # whatever started this may have blocked some
    signal.signal(signal.SIGINT, signal.default_int_handler)
    context = start_method()
    try:
        os.killpg(0, signal.SIGINT)  # as Ctrl-C, to the whole group
        time.sleep(60)
    except KeyboardInterrupt:
        pass
    process = context.Process(target=print, args=("still there",))
    process.start()
    process.join()
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no server starts processes here")
def test_ctrl_c_while_the_server_of_processes_starts_leaves_no_traceback(tmp_path: Path) -> None:
    script = tmp_path / "study.py"
    script.write_text(INTERRUPTED)
    done = subprocess.run([sys.executable, str(script)], start_new_session=True, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "still there\n", "")
