"""The ``target`` option of a callback: a path, or what ``"auto"`` takes once a call of the model is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lq_plugin.graph.capture import Call
from lq_plugin.graph.choosing import Choice, OutermostCalls, Taken, choose, choose_among
from lq_plugin.progress import note
from lq_plugin.scheme import AUTO


class AutoTarget:
    """A target that ``"auto"`` leaves undecided until a call of the model, or of what its steps call, is known.

    Args:
        name: the candidate's, for messages.
        target: the option.
        else_whole: take the whole model where nothing of it can be captured.

    Attributes:
        choice: what ``"auto"`` takes, once that is known.
    """

    def __init__(self, name: str, target: str | None, else_whole: bool) -> None:
        self._name, self._target, self._else_whole = name, target, else_whole
        self._outermost: OutermostCalls | None = None
        self.choice: Choice | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, without what only the original shadows."""
        return vars(self) | {"_outermost": None}

    @property
    def undecided(self) -> bool:
        """Whether ``"auto"`` has taken nothing yet."""
        return self._target == AUTO and self.choice is None

    @property
    def path(self) -> str | None:
        """Path of the module that is quantized; ``None`` for the whole model, or while it is undecided."""
        if self._target == AUTO:
            return None if self.choice is None else self.choice.target
        return self._target

    def watch(self, model: nn.Module) -> None:
        """Keep, in a pass, the first calls of what steps may call in place of the model's own forward."""
        if self.undecided:
            self._outermost = OutermostCalls(model)

    def seen(self) -> Sequence[tuple[str, Call]]:
        """Stop watching, and return the calls."""
        outermost, self._outermost = self._outermost, None
        return () if outermost is None else outermost.close()

    def decide(self, model: nn.Module, call: Call | None, calls: Iterable[tuple[str, Call]] = ()) -> Taken:
        """Take the whole model or a part of it.

        Args:
            model: the LightningModule, or a copy.
            call: of it; ``None`` where its own forward is never called.
            calls: of its modules in this case; see :func:`~lq_plugin.graph.choosing.choose_among`.

        Raises:
            LqError: nothing of it can be captured.
        """
        whole = self._else_whole
        return self.take(choose_among(model, calls, whole) if call is None else choose(model, *call, whole))

    def take(self, taken: Taken) -> Taken:
        """Take what was found, and say so where it is a part."""
        self.choice = choice = taken.choice
        if choice.target is not None:
            said = f"{self._name!r}: target='auto' takes {choice.target!r} ({choice.share:.0%} of the parameters)"
            rank_zero_only(note)(f"{said}: {choice.reason}")
        return taken
