"""At the end of fit one process works, and the others wait for it, however long that takes.

They wait in a gloo group of their own. A barrier of the training's process group ends with that group's timeout (10
minutes by default for NCCL), and export, evaluation and search may take longer than any timeout that suits training.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lq_plugin.errors import CalibrationError, ConfigError, ExportError
from lq_plugin.evaluation.loop import random_state_kept

logger = logging.getLogger("lq_plugin")

# Longer than any work at the end of fit; a process that dies is noticed at once, because its connections close.
LONGEST_WAIT = timedelta(hours=24)
_PAUSE = 0.1  # seconds

# The group to wait in, by the process group of the training. No callback holds it: they are copied and pickled.
_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def meet(trainer: Any) -> None:
    """Make the group in which processes wait for each other; all of them call this when a fit starts.

    Every process has to take part, so this cannot wait for the end of fit, when one of them may be hours behind.

    Args:
        trainer: of this process.

    Raises:
        CalibrationError: another process has ended.
        ConfigError: the processes cannot connect.
    """
    training = _training_group()
    if training is None or training in _groups or not torch.distributed.is_gloo_available():
        return
    of_every_process(trainer, None)  # what follows waits for one that has ended as long as for work: 24 hours
    try:
        _groups[training] = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
    except RuntimeError as error:
        raise ConfigError(
            f"strategy: the processes of this fit cannot connect through gloo, which they use to wait for each other "
            f"when fit ends ({_line(error)}). Set GLOO_SOCKET_IFNAME to the network interface that connects them."
        ) from error


@contextmanager
def on_one_process(trainer: Any) -> Iterator[bool]:
    """Tell whether this process does the work at the end of fit; the others wait for it at the end of the block.

    The random state and the training's grad mode are left as they are.

    Raises:
        ExportError: in a waiting process, if the working one has died.
    """
    try:
        with random_state_kept(), torch.inference_mode(False):
            yield trainer.is_global_zero
    finally:
        training = _training_group()
        group = None if training is None else _groups.get(training)
        if group is None:  # there is one process, or a strategy that is not torch.distributed's
            trainer.strategy.barrier("lq_plugin")
        else:
            _wait(group, works=trainer.is_global_zero)


def of_every_process(trainer: Any, own: Any) -> list[Any]:
    """Return what each process of a fit has, in the order of their ranks; all of them call this at the same place.

    Args:
        trainer: of this process.
        own: what this process has; it is pickled for the others.

    Raises:
        CalibrationError: another process has ended, or did not come here within the timeout of the training's group.
    """
    if trainer.world_size == 1:
        return [own]
    values = [own] * trainer.world_size
    try:
        torch.distributed.all_gather_object(values, own)
    except RuntimeError as error:
        raise CalibrationError(
            f"strategy: a process of this fit ended, or did not come as far as this one in time ({_line(error)}). "
            "The output of that process says what happened."
        ) from error
    return values


def _training_group() -> Any:
    return torch.distributed.group.WORLD if torch.distributed.is_available() else None


def _wait(group: Any, works: bool) -> None:
    try:
        work = torch.distributed.barrier(group, async_op=True)
        while not work.is_completed():  # a wait inside torch would ignore Ctrl+C and SIGTERM
            time.sleep(_PAUSE)
        work.wait()
    except RuntimeError as error:
        if works:  # its work is done and stored
            logger.error("another process of this fit ended early, while process 0 worked: %s", _line(error))
            return
        raise ExportError(
            "process 0, which exports and evaluates when fit ends, or another process ended too early "
            f"({_line(error)}). Training was complete; the output of process 0 says what happened."
        ) from error


def _line(error: RuntimeError) -> str:
    return " ".join(str(error).split())
