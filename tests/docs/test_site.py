"""The documentation builds strictly, and needs no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import lq_plugin
from lq_plugin.algorithms import TABLE

ROOT = Path(__file__).parents[2]
LOADED = re.compile(r"<(?:script|img|source)[^>]* src=\"?https?:|<link[^>]* rel=\"?stylesheet[^>]* href=\"?https?:")


def test_the_site_builds_without_a_word_and_loads_nothing_from_the_network(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(
        build, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    pages = {page.relative_to(tmp_path).as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    assert {"reference/options.html", "reference/hydra.html", "results/accuracy.html"} <= pages.keys()
    assert not [name for name, page in pages.items() if LOADED.search(page)]
    options = re.sub("<[^>]+>", "", pages["reference/options.html"])
    assert re.search(r"weight_granularity\s+str\s+.*?\s+&#39;per_channel&#39;", options), "a default that is only named"
    assert ":class:" not in options, "a role of Sphinx"
    assert "observer=percentile" in pages["reference/hydra.html"]
    described = {name for page in pages.values() for name in re.findall(r'id="lq_plugin\.(\w+)"', page)}
    assert set(lq_plugin.__all__) - described == set()
    cards = re.findall(r'<h2 id="lq_plugin\.algorithms\.\w+"[^>]*>\s*(\w+)', pages["reference/algorithms.html"])
    assert set(cards) == set(TABLE)
