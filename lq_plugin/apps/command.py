"""How a command ends: a user error is one line, everything else keeps its traceback."""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lq_plugin import renamed
from lq_plugin.apps import multirun, resolvers
from lq_plugin.errors import LqError
from lq_plugin.interruption import account
from lq_plugin.printing import counted, line
from lq_plugin.progress import note
from lq_plugin.report import leaderboard
from lq_plugin.report.manifest import FILE as MANIFEST
from lq_plugin.report.runs import FAILURE, JOB, QUANTIZED, below, reason

FULL_ERROR = "HYDRA_FULL_ERROR"
INTERRUPTED = 130  # what shells report of a process that Ctrl+C has ended: 128 and SIGINT
KEY = "KEY.pem"  # in manifests, in place of the path of a private key
_PRIVATE = re.compile(r"""(^[+~]*callbacks\b.*?\bsign\s*(?:=|:\s*))('[^']*'|"[^"]*"|[^,}]+)""")
MISTAKES = (LqError, HydraException, OmegaConfBaseException, MisconfigurationException)


def run(name: str, task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run a task with the configuration that Hydra composes from the command line.

    A user error ends a run with one line and exit code 1, Ctrl+C with exit code 130. With ``HYDRA_FULL_ERROR=1`` in the
    environment every error keeps its full traceback. In a multirun the errors of jobs are passed on, because the
    sweeper decides what a failed job means; a sweep in which no job succeeded is an error in any case.

    Args:
        name: the command's, with which the line begins.
        task: what to do; its result is the objective of a sweep.
        config_name: root configuration, in ``lq_plugin.conf``.
    """
    full = os.environ.get(FULL_ERROR) == "1"

    @functools.wraps(task)
    def job(config: DictConfig) -> Any:
        resolvers.register()  # the process of a job may have composed nothing itself
        swept = HydraConfig.get().mode == RunMode.MULTIRUN
        with _traced(swept):
            try:
                return task(config)
            except MISTAKES as error:
                if swept or full:
                    raise
                sys.exit(f"{name}: {one_line(error)}")

    _import_from_here()
    os.environ[FULL_ERROR] = "1"  # Hydra itself would print several lines and exit; with this it raises
    try:
        hydra.main(version_base="1.3", config_path="pkg://lq_plugin.conf", config_name=config_name)(job)()
        if (folder := _swept_folder()) is not None and (reason := _reason_of_all(folder)):
            sys.exit(f"{name}: every job of the sweep failed, the last one with: {reason}")
    except Exception as error:
        if full or (_left_a_job(error) and not isinstance(error, MISTAKES)):
            raise
        sys.exit(f"{name}: {one_line(error)}")
    except (KeyboardInterrupt, SystemExit) as error:
        _end_if_interrupted(name, error)
        raise
    finally:
        if not full:
            del os.environ[FULL_ERROR]
        if (folder := _swept_folder()) is not None and _is_first_process():
            _write_leaderboard(folder)  # even where a job failed


def _end_if_interrupted(name: str, error: BaseException) -> None:
    """End with 130, as a process that Ctrl+C has ended; a Trainer, which has told what was made, ends with 1."""
    if isinstance(error, KeyboardInterrupt):
        print(f"{name}: {account(error)}", file=sys.stderr)
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        sys.exit(INTERRUPTED)


def again(name: str) -> Sequence[str]:
    """Return the command that repeats this job alone, word by word; none where Hydra does not run it.

    The path of a private key is left out: manifests are handed over.

    Args:
        name: the command's.
    """
    if not HydraConfig.initialized():
        return ()
    hydra_config = HydraConfig.get()
    sources = [f"--config-dir={s.path}" for s in hydra_config.runtime.config_sources if s.provider == "command-line"]
    paths = [override for override in hydra_config.overrides.hydra if override.startswith("hydra.searchpath")]
    words = [_PRIVATE.sub(rf"\g<1>{KEY}", word) for word in hydra_config.overrides.task]
    return (name, *sources, *words, *paths)


def _swept_folder() -> Path | None:
    """Return where a multirun wrote; ``None`` for a single run."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir)


@contextmanager
def _traced(swept: bool) -> Iterator[None]:
    """Make a job's folder describe this job only and, in a sweep, say why it has no figures, even if it is killed."""
    if not _is_first_process():
        yield
        return
    folder = Path(HydraConfig.get().runtime.output_dir)
    failure = folder / FAILURE
    (folder / QUANTIZED / MANIFEST).unlink(missing_ok=True)
    for left in (failure, folder / JOB):
        left.unlink(missing_ok=True)
    if swept:
        failure.write_text(json.dumps({"error": "the job did not finish; most likely its process was killed"}))
    try:
        yield
    except BaseException as error:
        if swept:
            said = one_line(error) if isinstance(error, Exception) else "the job was interrupted"
            failure.write_text(json.dumps({"error": said}))
        raise
    failure.unlink(missing_ok=True)


def _is_first_process() -> bool:
    """Whether this is the main process of a distributed fit, or the only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _import_from_here() -> None:
    """Find modules in the working folder, as ``python -m`` does, in processes of a sweep or of a fit as well."""
    here, paths = os.getcwd(), os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if here not in sys.path:
        sys.path.insert(0, here)
    if here not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, *paths)))


def _reason_of_all(folder: Path) -> str | None:
    """Return why the last job failed where every job of a sweep did."""
    failures = sorted(below([folder], [FAILURE]), key=lambda file: file.lstat().st_mtime)
    if not failures or len(failures) < len(list(below([folder], [".hydra"]))):
        return None
    return reason(failures[-1])


def _write_leaderboard(folder: Path) -> None:
    if gone := [each for each in multirun.elsewhere if not each.is_dir()]:
        note(f"{counted(len(gone), 'earlier job')} of this sweep cannot be listed, because {gone[0]} is gone")
    try:
        note(f"leaderboard in {leaderboard.write(folder, *multirun.elsewhere)}")
    except Exception as error:  # jobs that export nothing have none, and a sweep that ran must not fail for lack of one
        known = isinstance(error, LqError | OSError)
        note(f"no leaderboard: {error if known else f'{type(error).__name__}: {error}'}")


def one_line(error: BaseException) -> str:
    """Say in one line which option is wrong, what was given and what is allowed."""
    for cause in _causes(error):
        if isinstance(cause, LqError):
            return _placed(error, str(cause))
        if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and isinstance(cause.parent_node, DictConfig):
            return _unknown_option(str(cause.full_key), cause.parent_node)
        if isinstance(cause, MissingConfigException) and (old := cause.missing_cfg_file) and old in renamed.CHOICES:
            return f"{old}: this option was renamed. Write {renamed.CHOICES[old]}."
    *_, origin = _causes(error)
    if isinstance(error, InstantiationException):
        return _placed(error, f"{origin} ({FULL_ERROR}=1 shows the traceback.)")
    if isinstance(origin, OmegaConfBaseException) and origin is not error:
        said = str(origin).splitlines()[0].rstrip(".")
        hint = " Write a list, such as [head,op:add]." if "is not a ListConfig" in said else ""
        return line(f"{error}: {said}.{hint}")
    return line(str(error).partition("\nConfig search path:")[0])


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _placed(error: BaseException, message: str) -> str:
    """Put the section of the configuration before a message; an argument that begins the message continues its path."""
    section = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
    if not section:
        return line(message)
    return line(f"{section[1]}{'.' if re.match(r'[a-z_]+: ', message) else ': '}{message}")


def _unknown_option(key: str, parent: DictConfig) -> str:
    section, _, option = key.rpartition(".")
    options = sorted(str(name) for name in parent if not str(name).startswith("_"))
    nearest = difflib.get_close_matches(option, options, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    moved = renamed.SECTIONS.get(section)
    if moved is not None and option in (OmegaConf.select(parent._get_root(), moved) or ()):
        return f"{key}: this option was moved. Write {moved}.{option}=VALUE."
    if renamed.OPTIONS.get(option) in options:
        return line(f"{key}: this option was renamed. Write {section}.{renamed.OPTIONS[option]}=VALUE.")
    return line(f"{key}: there is no such option.{hint} Options of {section or 'the command'}: {', '.join(options)}.")


def _left_a_job(error: BaseException) -> bool:
    return any(frame.name == "run_job" for frame in traceback.extract_tb(error.__traceback__))
