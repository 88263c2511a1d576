"""The end of fit without a fit, for weights that are already trained: no training loop is simulated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers.utilities import _log_hyperparams

from lq_plugin.callbacks.finishing import Origin, finish, finishing
from lq_plugin.callbacks.ranks import on_one_process
from lq_plugin.checkpoints import Checkpoint
from lq_plugin.evaluation.loop import Data, overrides
from lq_plugin.store import Store


def without_training(
    trainer: Any, module: Any, datamodule: Any, read: Callable[[str], Checkpoint], store: Store
) -> None:
    """Do what our callbacks do when fit ends. Other callbacks of the Trainer are not called.

    Data module and module are set up with the hooks of ``fit``, because some support no other stage.

    Args:
        trainer: whose callbacks and loggers these are; it fits nothing.
        module: the LightningModule.
        datamodule: gives the batches; ``None`` where the module has them.
        read: see :class:`~lq_plugin.callbacks.finishing.Origin`.
        store: see :class:`~lq_plugin.callbacks.finishing.Origin`.

    Raises:
        LqError: an option cannot work, or no candidate can be made.
    """
    trainer.strategy.connect(module)
    trainer._data_connector.attach_data(module, datamodule=datamodule)
    trainer._callback_connector._attach_model_callbacks()
    status = "failed"
    try:
        data = _set_up(trainer, module, datamodule)
        with on_one_process(trainer) as works:
            if works:
                finish(trainer, Origin(module, data, read, store), trained=False)
        _call("teardown", trainer, module, datamodule)
        status = "success"
    finally:
        for logger in trainer.loggers:
            logger.finalize(status)


def _set_up(trainer: Any, module: Any, datamodule: Any) -> Data:
    """Run the hooks with which a fit begins, in its order, and return the data."""
    trainer._data_connector.prepare_data()
    _call("setup", trainer, module, datamodule)
    module.configure_model()
    for callback in finishing(trainer):
        callback.on_fit_start(trainer, module)
    if trainer.enable_autolog_hparams:
        _log_hyperparams(trainer)
    giving = [owner for owner in (datamodule, module) if owner is not None and overrides(owner, "val_dataloader")]
    loaders = {"validate": giving[0].val_dataloader()} if giving else {}
    limits = {"validate": trainer.limit_val_batches, "test": trainer.limit_test_batches}
    return Data(datamodule, loaders, limits, str(trainer.precision))


def _call(hook: str, trainer: Any, module: Any, datamodule: Any) -> None:
    """Call a hook with the stage ``fit``, in the order of a fit."""
    if datamodule is not None:
        getattr(datamodule, hook)("fit")
    for callback in finishing(trainer):
        getattr(callback, hook)(trainer, module, "fit")
    getattr(module, hook)("fit")
