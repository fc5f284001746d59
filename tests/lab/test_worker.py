import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PARENT = """
import multiprocessing, os, sys, time
from torchcbl.lab import worker

def child(pipe):
    import threading
    threading.Thread(target=worker._die_with_parent, daemon=True).start()
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
