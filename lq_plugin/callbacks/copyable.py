"""Callbacks that can be copied and pickled at any time, in the middle of a validation too."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback

# The Trainer gives each of its callbacks these methods of the LightningModule, and another Trainer gives its own. With
# them, a copy of a callback would be one of the whole run.
_OF_THE_MODULE = ("log", "log_dict")


class CopyableCallback(Callback):
    """Base of callbacks whose copies hold nothing of a running fit.

    A subclass leaves out, in ``__getstate__``, what only the original may have: what it shadows, graphs, modules.
    """

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has, be it by ``copy`` or by ``pickle``: libraries make both, whenever they like."""
        return {name: value for name, value in vars(self).items() if name not in _OF_THE_MODULE}
