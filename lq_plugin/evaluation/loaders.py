"""The validation loaders of a running Trainer, for one process that goes through all data, and how long they are.

``trainer.val_dataloaders`` holds the loaders that a ``CombinedLoader`` combines, but not its mode, which says whether
batches come from one loader after the other or from all of them at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any

from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, DistributedSampler

from lq_plugin.evaluation.loop import ChosenBatches, Data, Enough, Observed, run
from lq_plugin.graph.observation import Begin
from lq_plugin.progress import note
from lq_plugin.targets import Forward

# Classes of Lightning, in either namespace: a sampler, and what it puts around any but a sequential or random one.
_LIGHTNINGS, _AROUND_ANOTHER = "UnrepeatedDistributedSampler", "_DatasetSamplerWrapper"
_SEQUENTIAL = "sequential"  # what Lightning makes of loaders that the user did not combine


def data_of(trainer: Any) -> Data:
    """Return where a running Trainer's batches come from."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    combined = _combined(loop, trainer.validate_loop)
    loaders = _not_yet_combined(loop) if combined is None else {"validate": _unsharded(combined)}
    limits = {"validate": trainer.limit_val_batches, "test": trainer.limit_test_batches}
    return Data(trainer.datamodule, loaders, limits, str(trainer.precision))


def numbers_of_batches(trainer: Any) -> Sequence[int | float]:
    """Return how many batches a validation pass takes from each loader in turn; from combined ones, in all."""
    numbers: Sequence[int | float] = trainer.num_val_batches
    loops = (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop)
    combined = _combined(*(loops if trainer.state.fn == "fit" else reversed(loops)))
    if combined is None or combined._mode == _SEQUENTIAL or not numbers:
        return numbers
    return [min(numbers) if combined._mode == "min_size" else max(numbers)]


def observed_pass(model: nn.Module, data: Data, begin: Begin) -> None:
    """Run one validation pass of a copy of a LightningModule, observed; see :func:`~lq_plugin.evaluation.loop.run`.

    Args:
        model: a LightningModule.
        data: its batches.
        begin: begins the observation of the copy.
    """
    observed = Observed(lambda trainer, module: begin(module, numbers_of_batches(trainer)))
    run(model, data, "validate", callbacks=[observed])


def chosen_batches(
    model: nn.Module,
    data: Data,
    target: str | None,
    choose: Callable[[Sequence[int | float]], Set[int]] | None,
    see: Callable[[Sequence[Any], Mapping[str, Any]], None],
) -> None:
    """Show the calls of a target in some batches of the validation data; other batches are loaded but not computed.

    Args:
        model: a LightningModule; a copy of it is run.
        data: its batches.
        target: dotted path of the module; the model itself for ``None``.
        choose: given the number of batches of each loader (infinite if unknown), returns the indices of those to run;
            ``None`` for all.
        see: called with the arguments and keyword arguments of each call.
    """

    def seen(original: Forward, *args: Any, **kwargs: Any) -> Any:
        see(args, kwargs)
        return original(*args, **kwargs)

    chosen = ChosenBatches(None if choose is None else lambda trainer: choose(numbers_of_batches(trainer)))
    with suppress(Enough):
        run(model, data, "validate", target=target, forward=seen, callbacks=[chosen])


def _combined(*loops: Any) -> Any:
    return next((loop._combined_loader for loop in loops if loop._combined_loader is not None), None)


def _not_yet_combined(loop: Any) -> dict[str, Any]:
    """The loaders that ``fit`` was given, where no validation has run; those of modules are asked for later."""
    source = loop._data_source
    return {} if source.instance is None or source.is_module() else {"validate": source.instance}


def _unsharded(combined: Any) -> Any:
    loaders = tree_map(_whole, combined.iterables)
    return loaders if combined._mode == _SEQUENTIAL else type(combined)(loaders, combined._mode)


def _whole(loader: Any) -> Any:
    """Undo the split of the data among processes, and nothing else: a loader may have a sampler of the user's own."""
    if not isinstance(loader, DataLoader):
        return loader
    batches = copy.copy(loader.batch_sampler)
    sampler = getattr(batches, "sampler", loader.sampler)
    if not isinstance(sampler, DistributedSampler):
        return loader
    try:
        whole = _joined(sampler, loader.dataset)
    except Exception as error:  # a sampler of the user's own may do anything
        note(
            f"{type(sampler).__name__} cannot say what other processes choose ({type(error).__name__}: {error}), so "
            "this process goes through its own share of the data"
        )
        return loader
    if batches is not None:
        batches.sampler = whole  # type: ignore[attr-defined]
    made = copy.copy(loader)
    vars(made).update(sampler=whole, batch_sampler=batches, _iterator=None)  # which __setattr__ forbids
    return made


def _joined(sampler: DistributedSampler[Any], data: Any) -> Any:
    """Return a sampler of what the samplers of all processes choose together, in the order of the data."""
    if type(sampler.dataset).__name__ == _AROUND_ANOTHER:
        return sampler.dataset._sampler  # type: ignore[attr-defined]
    chooses = next(kind for kind in type(sampler).__mro__ if "__iter__" in vars(kind))  # it may be the user's own
    of_all = sampler.dataset is data
    if of_all and (chooses is DistributedSampler or chooses.__name__ == _LIGHTNINGS):
        return range(len(data))
    chosen: set[int] = set()  # some indices are repeated to make shares equal
    for rank in range(sampler.num_replicas):
        share = copy.copy(sampler)
        share.rank = rank
        chosen.update(share)
    return sorted(chosen)
