"""How figures are written, the same in the terminal's tables and on the pages; what is missing is a dash."""

from __future__ import annotations

from collections.abc import Callable

from lq_plugin.printing import figure


def metric(value: float | None) -> str:
    """Return the value of a metric."""
    return figure(value)


def change(value: float | None) -> str:
    """Return a difference from FP32, with its sign unless nothing is left of it.

    Example:
        >>> change(0.00012), change(-0.00001)
        ('+0.0001', '0.0000')
    """
    text = figure(value, "+.4f")
    return text[1:] if text in ("+0.0000", "-0.0000") else text


def milliseconds(value: float | None) -> str:
    """Return a duration in milliseconds."""
    return figure(value, ".3f")


def seconds(value: float | None) -> str:
    """Return a duration in seconds."""
    return figure(value, ".1f")


def size(value: float | None) -> str:
    """Return a number of bytes in MB, or in KB below 0.01 MB.

    Example:
        >>> size(152961), size(4321), size(None)
        ('0.15 MB', '4.3 KB', '–')
    """
    return figure(value, ".1f", 1e-3, " KB") if (value or 0) < 10_000 else figure(value, ".2f", 1e-6, " MB")


def times(value: float | None) -> str:
    """Return how many times as fast something is.

    Example:
        >>> times(2.0429)
        '2.04×'
    """
    return figure(value, ".2f", unit="×")


def decibels(value: float | None) -> str:
    """Return an SQNR in dB."""
    return figure(value, ".1f")


def percent(value: float | None) -> str:
    """Return a share, such as that of an error.

    Example:
        >>> percent(0.4338)
        '43.4 %'
    """
    return figure(value, ".1f", 100, " %")


def whole_percent(value: float | None) -> str:
    """Return a share without digits behind the point, such as that of a size."""
    return figure(value, ".0f", 100, " %")


def small_percent(value: float | None) -> str:
    """Return a share that may be tiny, such as that of clipped values.

    Example:
        >>> small_percent(0.0000213), small_percent(0.0), small_percent(0.12)
        ('0.0021 %', '0 %', '12 %')
    """
    return figure(value, ".2g", 100, " %")


def plain_number(value: float | None) -> str:
    """Return a number of any size with four digits.

    Example:
        >>> plain_number(-0.000123456), plain_number(6.0)
        ('-0.0001235', '6')
    """
    return figure(value, ".4g")


def count(value: float | None) -> str:
    """Return a number of things."""
    return figure(value, ".0f")


def drop(value: float | None, relative: bool) -> str:
    """Return the drop of a metric as a budget states it: a share of FP32's, or an amount.

    Example:
        >>> drop(0.0125, relative=True), drop(0.0125, relative=False), drop(0.00002, relative=False)
        ('1.25 %', '0.0125', '2e-05')
    """
    if relative:
        return figure(value, ".2f", 100, " %")
    return figure(value, ".2g" if 0 < abs(value or 0) < 0.00005 else ".4f")


_OF_NUMBERS = (metric, change, milliseconds, seconds, size, times, decibels, percent, small_percent, whole_percent)
FORMATS: dict[str, Callable[..., str]] = {each.__name__: each for each in (*_OF_NUMBERS, plain_number, count, drop)}
"""Each of them by its name, as templates use it."""
