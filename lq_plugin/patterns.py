"""What ``skip`` and ``only`` mean: globs over names of modules, and operator types written ``op:conv2d``."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Iterator, Sequence

from lq_plugin.errors import ConfigError, unknown_name
from lq_plugin.scheme import Scheme

_TYPE = "op:"


def is_type(pattern: str) -> bool:
    """Whether a pattern names a type of operator and not modules."""
    return pattern.startswith(_TYPE)


def check_modules(scheme: Scheme, modules: Sequence[str]) -> None:
    """Check that every pattern of modules matches something.

    Args:
        scheme: whose patterns are checked.
        modules: dotted names of the target's submodules.

    Raises:
        ConfigError: a pattern that matches nothing, with the nearest names that would.
    """
    for argument, pattern in _patterns(scheme):
        if not is_type(pattern) and not fnmatch.filter(modules, pattern):
            raise unknown_name(argument, pattern, modules)


def check_types(scheme: Scheme, present: Collection[str], known: Collection[str]) -> None:
    """Check that every pattern of operator types matches something.

    Args:
        scheme: whose patterns are checked.
        present: types of operators in the target.
        known: all types of operators there are.

    Raises:
        ConfigError: a pattern that matches nothing, with the nearest names that would.
    """
    for argument, pattern in _patterns(scheme):
        operator = pattern.removeprefix(_TYPE)
        if is_type(pattern) and operator not in known:
            raise unknown_name(argument, pattern, (f"{_TYPE}{name}" for name in known))
        if is_type(pattern) and operator not in present:
            raise ConfigError(
                f"{argument}: {pattern!r} matches no operator of this model. It has: "
                f"{', '.join(f'{_TYPE}{name}' for name in sorted(present)) or 'no such operator'}."
            )


def _patterns(scheme: Scheme) -> Iterator[tuple[str, str]]:
    for argument in ("skip", "only"):
        yield from ((argument, pattern) for pattern in getattr(scheme, argument))


def matches(pattern: str, operator: str, modules: Iterable[str]) -> bool:
    """Whether a pattern means an operator of a type, or one of the modules that it is in."""
    if is_type(pattern):
        return operator == pattern.removeprefix(_TYPE)
    return any(fnmatch.fnmatchcase(module, pattern) for module in modules)


def exclusion(scheme: Scheme, operator: str, modules: Collection[str]) -> str | None:
    """Return why a scheme leaves an operator out; ``None`` where it does not.

    Args:
        scheme: what is quantized.
        operator: its type.
        modules: dotted names of all modules that it is in.
    """
    skipping = next((pattern for pattern in scheme.skip if matches(pattern, operator, modules)), None)
    if skipping is not None:
        return f"skipped by {skipping!r}"
    if scheme.only and not any(matches(pattern, operator, modules) for pattern in scheme.only):
        return "not named by only"
    if operator.startswith("embedding") and not scheme.embeddings:
        return "embeddings=False"
    return None
