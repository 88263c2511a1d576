"""Commands as a user runs them, in a process each, without importing everything anew each time.

Importing torch, Lightning and Hydra takes longer than most of what is tested. One server process imports them, and is
forked for each command: a process of its own, with its own arguments, folder, environment, output and exit code.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

IMPORTED = (
    *("lq_plugin.apps.train", "lq_plugin.apps.quantize", "torchao.quantization.pt2e", "torch.onnx", "onnxscript"),
    *("onnxruntime", "mlxtend.data", "matplotlib.pyplot", "vega_datasets", "jsonargparse"),
)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(list(IMPORTED))


def run(
    program: str, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end.

    Args:
        program: a command of this package, such as ``"lq-train"``, or a script in ``cwd``, such as ``"train.py"``.
        arguments: of its command line.
        cwd: the folder that it runs in.
        environment: variables besides those of this process.
        timeout: seconds after which it is killed, which is an error.
    """
    with tempfile.TemporaryDirectory() as scratch:
        streams = Path(scratch, "stdout"), Path(scratch, "stderr")
        given = ([program, *arguments], str(cwd), dict(os.environ) | dict(environment or {}), [*map(str, streams)])
        process = _CONTEXT.Process(target=_become, args=given)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([program, *arguments], timeout, *(s.read_bytes() for s in streams))
        return subprocess.CompletedProcess([program, *arguments], process.exitcode, *(s.read_text() for s in streams))


def _become(argv: list[str], cwd: str, environment: dict[str, str], streams: list[str]) -> None:
    """Turn a forked process into the one that the command line would have started."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, file in enumerate(streams, start=1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), descriptor)
    sys.argv = argv
    if argv[0].endswith(".py"):
        sys.path.insert(0, cwd)
        runpy.run_path(argv[0], run_name="__main__")
    else:
        importlib.import_module(f"lq_plugin.apps.{argv[0].removeprefix('lq-')}").main()
