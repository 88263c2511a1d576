"""A LightningModule's own validation and test loop, with the forward of its target replaced."""

from __future__ import annotations

import copy
import functools
import importlib
import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from lq_plugin.evaluation import memory
from lq_plugin.graph.copying import cpu_copy
from lq_plugin.graph.observation import Observation
from lq_plugin.graph.precision import OTHER_PRECISIONS, in_float32
from lq_plugin.graph.repeats import repeats_in
from lq_plugin.graph.torch_patches import process_group_hidden
from lq_plugin.targets import Forward, replaced_forward, resolve_target

SPLITS = ("validate", "test")
_LIGHTNING = ("lightning.pytorch.core.", "pytorch_lightning.core.")


@dataclass(frozen=True)
class Data:
    """Where the batches of a split come from.

    Args:
        datamodule: gives the loaders of splits not named in ``loaders``, and its batch transfer hooks.
        loaders: loaders that exist already, by split.
        limits: as ``limit_val_batches`` and ``limit_test_batches`` of the Trainer, by split.
        precision: of the Trainer. Batches of one that has all in half or double precision are cast to float32.
    """

    datamodule: Any = None
    loaders: Mapping[str, Any] | None = None
    limits: Mapping[str, int | float] | None = None
    precision: str = "32-true"

    def limited(self, split: str, batches: int) -> Data:
        """Return the same data with so many batches of each loader of a split."""
        return replace(self, limits={**(self.limits or {}), split: batches})


def splits_of(model: nn.Module, data: Data) -> tuple[str, ...]:
    """Return the splits that a LightningModule can be evaluated on with this data."""
    found = []
    for split, step, loader in (
        ("validate", "validation_step", "val_dataloader"),
        ("test", "test_step", "test_dataloader"),
    ):
        sources = [source for source in (data.datamodule, model) if source is not None]
        has_loader = split in (data.loaders or {}) or any(overrides(source, loader) for source in sources)
        if overrides(model, step) and has_loader:
            found.append(split)
    return tuple(found)


def overrides(instance: Any, method: str) -> bool:
    """Whether a LightningModule or LightningDataModule, of either namespace, defines a method itself."""
    base = next((kind for kind in type(instance).__mro__ if kind.__module__.startswith(_LIGHTNING)), object)
    given = getattr(type(instance), method, None)
    return given is not None and given is not getattr(base, method, None)


def run(
    model: nn.Module,
    data: Data,
    split: str,
    *,
    target: str | None = None,
    forward: Forward | None = None,
    callbacks: Sequence[Any] = (),
) -> dict[str, float]:
    """Run a copy of a LightningModule through its own loop on the CPU and return what it logs.

    The model, its trainer, the datamodule and the random state are left as they are.

    Args:
        model: a LightningModule.
        data: its batches.
        split: ``"validate"`` or ``"test"``.
        target: dotted path of the module whose forward is replaced; the model itself by default.
        forward: what replaces it, see :func:`~lq_plugin.targets.replaced_forward`.
        callbacks: for the loop's Trainer.
    """
    module = cpu_copy(model)
    _settle(module, set_up=split in (data.loaders or {}) or data.datamodule is not None)
    limit = (data.limits or {}).get(split, 1.0)
    with ExitStack() as stack:
        stack.enter_context(_interruptible())
        stack.enter_context(_quiet())
        stack.enter_context(random_state_kept())
        stack.enter_context(process_group_hidden())
        stack.enter_context(memory.kept())
        if forward is not None:
            stack.enter_context(replaced_forward(resolve_target(module, target), forward))
        trainer = _trainer_class(model)(
            accelerator="cpu",
            devices=1,
            logger=[DummyLogger()],
            callbacks=list(callbacks),
            limit_val_batches=limit,
            limit_test_batches=limit,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if data.precision in OTHER_PRECISIONS:
            trainer.precision_plugin.convert_input = in_float32
        loop = trainer.validate if split == "validate" else trainer.test
        if data.datamodule is not None:
            loop(module, datamodule=_datamodule_copy(data, split), verbose=False)
        else:
            loop(module, dataloaders=(data.loaders or {}).get(split), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


class BatchEnd(Callback):
    """Calls a function with every batch of a validation or test loop, after its step."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self.function = function

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.function(batch)

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.function(batch)


class Observed(Callback):
    """Lets a validation loop be observed.

    Args:
        begin: called with the Trainer and its module when the loop starts.
    """

    def __init__(self, begin: Callable[[Any, Any], Observation]) -> None:
        self.begin = begin
        self.observation: Observation | None = None

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.observation = self.begin(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        assert self.observation is not None
        self.observation.next_batch(repeats_in(trainer.val_dataloaders, batch_idx, dataloader_idx))


class ChosenBatches(Callback):
    """Runs the validation step for some batches only, and ends the loop after the last of them by raising ``Enough``.

    Args:
        choose: called with the Trainer when the loop starts; returns the indices of the batches. ``None`` for all.
    """

    def __init__(self, choose: Callable[[Any], Set[int]] | None) -> None:
        self._choose = choose
        self._chosen: Set[int] = frozenset()
        self._position = -1

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self._choose is None:
            return
        self._chosen = self._choose(trainer)
        if not self._chosen:
            raise Enough
        for hook in ("on_validation_batch_start", "validation_step", "on_validation_batch_end"):
            setattr(pl_module, hook, self._only_for_chosen(getattr(pl_module, hook)))

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._position += 1

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self._choose is not None and self._position >= max(self._chosen):
            raise Enough

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        raise Enough  # before the module's own hook, which may need batches that were not chosen

    def _only_for_chosen(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """What Lightning calls in place of a hook of the copy; by ``wraps`` it sees the arguments that it takes."""

        @functools.wraps(hook)
        def called(*args: Any, **kwargs: Any) -> Any:
            return hook(*args, **kwargs) if self._position in self._chosen else None

        return called


class Enough(Exception):  # noqa: N818  (nothing is wrong)
    """All chosen batches have run."""


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random state when the block ends, also if it raises: ``isolate_rng`` alone does not do that."""
    failure: BaseException | None = None
    with isolate_rng():
        try:
            yield
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure


def _trainer_class(model: nn.Module) -> Any:
    """The Trainer of the namespace that a model belongs to: ``lightning.pytorch`` or ``pytorch_lightning``."""
    spaces = {kind.__module__.split(".")[0] for kind in type(model).__mro__}
    return importlib.import_module(
        "pytorch_lightning" if "pytorch_lightning" in spaces else "lightning.pytorch"
    ).Trainer


def _datamodule_copy(data: Data, split: str) -> Any:
    """A shallow copy that returns the loader of the split if there is one already."""
    datamodule = copy.copy(data.datamodule)
    datamodule.trainer = None
    _settle(datamodule, set_up=split in (data.loaders or {}))
    if split in (data.loaders or {}):
        loader = "val_dataloader" if split == "validate" else "test_dataloader"
        setattr(datamodule, loader, lambda: (data.loaders or {})[split])
    return datamodule


def _settle(owner: Any, set_up: bool) -> None:
    """Turn off the hooks that fit has called already; ``setup`` only if all that it prepares exists.

    A second ``setup`` or ``configure_model`` could split the data again, or build new layers with random weights. What
    a datamodule does on an exception is for those of the user's own run, not for a loop that ends early.
    """
    owner.configure_callbacks = list
    owner.configure_model = lambda: None
    owner.prepare_data = lambda: None
    owner.teardown = lambda stage=None: None
    owner.on_exception = lambda exception: None
    if set_up:
        owner.setup = lambda stage=None: None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl+C through: a Trainer makes the end of the process of it, and ignores it from then on."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        with suppress(ValueError):  # this is not the main thread, so nothing was changed
            signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)
        raise error.__context__ from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence a Trainer that the user did not make."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "pytorch_lightning", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
