"""Callbacks that can be copied and pickled at any time, even in the middle of a validation."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback

# The Trainer gives each of its callbacks these methods of the LightningModule, and another Trainer gives its own. With
# them, a copy of a callback would be a copy of the whole run.
_OF_THE_MODULE = ("log", "log_dict")


class CopyableCallback(Callback):
    """Base of callbacks whose copies hold nothing of a running fit.

    A subclass omits in ``__getstate__`` what only the original may have: what it shadows, graphs, modules.
    """

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, for ``copy`` and ``pickle`` alike: libraries use both, at any time."""
        return {name: value for name, value in vars(self).items() if name not in _OF_THE_MODULE}
