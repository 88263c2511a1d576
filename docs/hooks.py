"""Hooks of mkdocs: results and recipes' cards as pages, Hydra groups as tables, and Sphinx's roles as links."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS, RECIPES = "benchmarks/results", "recipes"
# Links as they are right in the repository, where the pages are below docs/, and the cards and the results are not.
OUT_OF_DOCS = re.compile(rf"\]\(\.\./((?:\.\./)*)(?:{RESULTS}|{RECIPES})(?=/)")
INTO_DOCS = re.compile(r"\]\(((?:\.\./)+)docs/")
ROLE = re.compile(r":(?:class|data|func|meth|mod):<code>(~?)([\w.]+)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is kept outside of docs/: the results that benchmarks wrote, and the recipes' cards."""
    found = [*(ROOT / RESULTS).glob("*.*"), *(ROOT / RECIPES).glob("*/*.*")]
    for file in sorted(file for file in found if file.suffix in (".md", ".svg")):
        name = file.relative_to(ROOT).as_posix().removeprefix("benchmarks/")
        files.append(File.generated(config, name, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to them and from them, and write the tables of the Hydra groups."""
    markdown = OUT_OF_DOCS.sub(lambda link: link[0].replace("../", "", 1).replace("benchmarks/", ""), markdown)
    markdown = INTO_DOCS.sub(r"](\1", markdown)
    return markdown.replace("<!-- hydra groups -->", "\n".join(groups()))


def on_page_content(html: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Make Sphinx's roles, which docstrings are written with, links where the site has their target."""
    return ROLE.sub(_link, html)


def _link(role: re.Match[str]) -> str:
    short, path = role.groups()
    name = path.rsplit(".", 1)[-1] if short else path
    return _reference(path.removeprefix("lq_plugin."), name)


def _reference(path: str, name: str) -> str:
    """A link to what the reference says of a name of the package, if it does."""
    return f'<autoref optional identifier="lq_plugin.{path}"><code>{name}</code></autoref>'


def groups() -> Iterator[str]:
    """Each group with its choices, in the order of ``lq-train --help``, and what each of them sets."""
    listed = yaml.safe_load((ROOT / "conf" / "train.yaml").read_text())["defaults"]
    for group, default in (choice for entry in listed if entry != "_self_" for choice in entry.items()):
        folder = ROOT / "conf" / group
        purpose = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        purpose = re.sub(r"\S+=[\w.]+\w", r"`\g<0>`", str(purpose))
        yield from (f"## {group}", "", purpose, "", "| choice | what it sets |", "| --- | --- |")
        for file in sorted(folder.glob("*.yaml")):
            name = f"`{group}={file.stem}`" + (" (default)" if file.stem == default else "")
            yield f"| {name} | {'<br>'.join(_settings(file, group)) or 'nothing'} |"
        yield ""


def _settings(file: Path, group: str) -> Iterator[str]:
    """What a file sets: other choices first, then values under their full names."""
    text = file.read_text()
    header = re.search(r"# @package (\S+)", text)
    package = header[1].removeprefix("_global_") if header else group
    content = yaml.safe_load(text) or {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict):
            yield from (f"`{key.removeprefix('override /')}={value}`" for key, value in entry.items())
        elif match := re.fullmatch(r"/lq_plugin/(\w+)@_here_", entry):
            yield f"`{package}`: every option of {_reference(match[1], match[1])}"
        elif entry != "_self_":
            yield f"what `{group}={entry}` sets"
    yield from _values(content, package)


def _values(content: Any, path: str) -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _values(value, f"{path}.{key}".lstrip("."))
    else:
        yield f"`{path}: {_shown(content)}`"


def _shown(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
