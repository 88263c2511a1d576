"""Two processes that form one group, as a launcher such as torchrun starts them, without importing everything anew."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import NamedTuple

import commands

# What a script begins with: it is forked for each process, and prints their exit codes. A process that hangs says
# where, and ends.
_FORKED = """
import faulthandler, os, sys

processes = []
for rank in range(2):
    processes.append(os.fork())
    if not processes[-1]:
        break
else:
    print([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes])
    sys.exit()
faulthandler.dump_traceback_later(240, exit=True)
os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
for descriptor, stream in enumerate(("stdout", "stderr"), start=1):
    os.dup2(os.open(f"{{stream}}{{rank}}", os.O_CREAT | os.O_WRONLY), descriptor)
sys.path.append({tests!r})
"""


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    stdout: str
    stderr: str


def two_processes(script: str, folder: Path) -> list[Ended]:
    """Run a script in two processes that meet through ``torch.distributed``.

    Args:
        script: its text. It may import the modules of the tests, and finds the number of its process in ``rank``.
        folder: for it and its output; its working directory.
    """
    (folder / "script.py").write_text(_FORKED.format(tests=str(Path(__file__).parent)) + script)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    done = commands.run("script.py", cwd=folder, environment=shared)
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout)
    return [
        Ended(code, *((folder / f"{stream}{rank}").read_text() for stream in ("stdout", "stderr")))
        for rank, code in enumerate(codes)
    ]
