"""Methods of torch's classes that stand in for others while a forward is captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced_method(cls: type, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Give a class another method; its subclasses inherit it.

    Args:
        cls: the class.
        name: of the method, which may be one of a base class.
        function: what replaces it.
    """
    own = vars(cls).get(name)
    setattr(cls, name, function)
    try:
        yield
    finally:
        if own is None:
            delattr(cls, name)
        else:
            setattr(cls, name, own)
