"""A self-contained page from a template: no network, one style sheet and one script, text from outside as text."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from lq_plugin.errors import require
from lq_plugin.printing import MISSING, brief, line, plain
from lq_plugin.report.formats import FORMATS
from lq_plugin.report.plots import STYLE

LONGEST = 100_000  # characters of one text on a page
TEMPLATES = Path(__file__).parent / "templates"


def rendered(template: str, purpose: str, **content: Any) -> str:
    """Return a page.

    Args:
        template: name of the file.
        purpose: what the page is for, in the message if jinja2 is missing.
        content: what the template shows.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", "report", purpose)
    style, script = _read("style.css") + STYLE, _read("script.js")
    markup = require("markupsafe", "report", purpose).Markup
    page = _environment(jinja2, markup).get_template(template)
    return str(page.render(style=markup(style), script=markup(script), policy=_policy(style, script), **content))


def _policy(style: str, script: str) -> str:
    """What a browser may do with the page: show our style, run our script, and nothing else."""
    sums = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{sums[0]}'; script-src 'sha256-{sums[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


@cache
def _environment(jinja2: ModuleType, markup: Callable[[str], Any]) -> Any:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=_text,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "brief": lambda text: line(brief(text)),
        "markup": markup,
        "shown": partial(_shown, markup),
        "zip": zip,
    }
    return environment


def _text(value: Any) -> Any:
    """Every text as it is: a browser, too, obeys characters that change the direction of writing."""
    is_markup = hasattr(value, "__html__")  # made by us: an SVG
    return plain(value[:LONGEST], keep="\n\t") if isinstance(value, str) and not is_markup else value


def _shown(markup: Any, value: float | None, form: str, *options: Any) -> Any:
    """A number as people read it, with the whole number in ``<data>``, which the page sorts by."""
    text = FORMATS[form](value, *options)
    if value is None or not math.isfinite(value) or text == MISSING:
        return text
    return markup('<data value="{}">{}</data>').format(value, text)
