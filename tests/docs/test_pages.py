"""Every code block of the documentation runs.

The rule, for who writes a page:

- Languages are ``python``, ``shell``, ``yaml`` and ``text``. ``text`` only shows: output, folders. All others run, from
  top to bottom, in one folder and one namespace for each page.
- A block with a title, such as ``yaml title="configs/experiment/int8.yaml"``, is written to that file, below the page's
  folder. YAML always has one, and a block after it uses the file. ``--8<-- "project.py"`` includes a file of ``docs/``.
- A page begins in the folder that the start page (``docs/index.md``) leaves behind: ``project.py`` and a finished run
  in ``lightning_logs``. Its namespace begins empty, so it imports what it uses.
- Shell lines begin with ``lq-…`` or ``python FILE.py`` and must exit with 0. ``pip install`` is not run: its extras
  must exist. ``make`` is asked with ``-n``. ``\\`` continues a line, ``#`` begins a comment.
- Blocks cost seconds: at most three epochs, one format, and one fit a page. Latency is measured only where a block asks
  for it: a callback's default is ``None`` here, and commands get ``callbacks.evaluation.latency=null``.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commands
import pytest
import yaml
from importing import forget
from packaging.requirements import Requirement

from lq_plugin import Int8Evaluation

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
START = DOCS / "index.md"
UNTIMED = "callbacks.evaluation.latency=null"
EXTRAS = {*importlib.metadata.metadata("lq_plugin").get_all("Provides-Extra", [])}
FENCE = re.compile(r'^( *)```(\w+)(?: title="([^"]+)")?[^\n`]*\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block, and after how many lines of its page its code begins."""

    language: str
    title: str
    code: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(found), "a block has no language, or does not end"
    for match in found:
        _, language, title, code = match.groups("")
        code = re.sub(r'^--8<-- "(.+)"$', lambda include: (DOCS / include[1]).read_text(), textwrap.dedent(code))
        yield Block(language, title, code, text[: match.start(4)].count("\n"))


PAGES = {str(page.relative_to(DOCS)): page for page in sorted(DOCS.rglob("*.md")) if any(blocks(page))}


def run(page: Path, folder: Path) -> None:
    """Run a page's blocks in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setattr(Int8Evaluation, "__init__", functools.partialmethod(Int8Evaluation.__init__, latency=None))
        namespace: dict[str, Any] = {"__name__": "__main__"}
        try:
            for block in blocks(page):
                run_block(block, page, folder, namespace)
        finally:
            forget(folder)


def run_block(block: Block, page: Path, folder: Path, namespace: dict[str, Any]) -> None:
    where = f"{page.name}, line {block.line}"
    if block.language == "yaml":
        assert block.title, f"{where}: YAML needs a title, the file that it is"
        yaml.safe_load(block.code)
    if block.title:
        file = folder / block.title
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.code, encoding="utf-8")
    elif block.language == "python":
        exec(compile("\n" * block.line + block.code, str(page), "exec"), namespace)
    elif block.language == "shell":
        for line in block.code.replace("\\\n", " ").splitlines():
            run_command(shlex.split(line, comments=True), folder, where)
    else:
        assert block.language == "text", f"{where}: {block.language}"


def run_command(words: list[str], folder: Path, where: str) -> None:
    match words:
        case []:
            return
        case ["pip", "install", *requirements]:
            for requirement in map(Requirement, requirements):
                assert requirement.name != "lq_plugin" or requirement.extras <= EXTRAS
            return
        case ["make", *targets]:
            subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True, capture_output=True)
            return
        case ["python", script, *arguments]:
            done = commands.run(script, *arguments, cwd=folder)
        case [("lq-train" | "lq-quantize") as program, *arguments] if "--help" not in arguments:
            timed = any("latency" in word for word in arguments)
            done = commands.run(program, *arguments, *([] if timed else [UNTIMED]), cwd=folder)
        case [program, *arguments]:
            done = commands.run(program, *arguments, cwd=folder)
    assert done.returncode == 0, f"{where}: {shlex.join(words)}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the start page leaves behind."""
    folder = tmp_path_factory.mktemp("start")
    run(START, folder)
    return folder


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:`Trainer.fit` stopped")
@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page: str, started: Path, tmp_path: Path) -> None:
    if PAGES[page] != START:
        run(PAGES[page], Path(shutil.copytree(started, tmp_path, dirs_exist_ok=True)))
