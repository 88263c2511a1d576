"""What an artifact says of itself: figures beside FP32's, names as text, and a call that fits its signature."""

from __future__ import annotations

import dataclasses
import enum
import html
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage.manifests import NASTY, good
from markdown import Markdown
from markdown_it import MarkdownIt
from torch import Tensor

from lq_plugin.artifacts.description import Artifact
from lq_plugin.graph.signature import Signature, describe
from lq_plugin.graph.structure import flatten
from lq_plugin.report import formats, markdown, readme
from lq_plugin.report.manifest import Config, Entry, Manifest
from lq_plugin.selection import Budget


class Mode(enum.Enum):
    FAST = 1


def of(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Signature:
    """The signature of a call, with a first dimension that is dynamic."""
    made = Signature(describe(forward, args, kwargs), flatten(forward(*args, **kwargs), "output", [], of_output=True))
    for _, structure in made.tensors():
        structure["shape"] = [None, *structure["shape"][1:]]
    return made


def artifact(signature: Signature | None, **changes: Any) -> Artifact:
    made = Artifact(Path(), "static", "static", "onnx", "onnxruntime", signature, {"model.onnx": "0" * 64}, [], [])
    return dataclasses.replace(made, **changes)


def cells(text: str) -> Iterator[list[str]]:
    for row in text.splitlines():
        if row.startswith("| "):
            yield [cell.strip().strip("`") for cell in row.strip("|").split("|")]


def test_figures_stand_beside_those_of_fp32() -> None:
    content = Manifest.from_json(good())
    entry = content.artifacts[0]
    assert entry.path is not None
    text = readme.render(artifact(None), entry, content)
    table, fp32 = {row[0]: row[1:] for row in cells(text)}, content.fp32_of(entry)
    for name, value in entry.metrics.items():
        assert table[name][:2] == [f"{fp32.metrics[name]:.4f}", f"{value:.4f}"]
    assert table["SQNR of the outputs in dB"][1] == f"{entry.sqnr_db:.1f}"
    assert table["size"][1] == formats.size(entry.size_bytes)
    assert "Budget: `val/acc` may get worse by" in text
    assert f"Status: `{entry.status}`." in text


def test_what_was_not_measured_is_left_out() -> None:
    content = Manifest.from_json(good())
    entry = Entry("static", "static", "onnxruntime", "onnx", path="static/onnx")
    assert "Metrics" not in readme.render(artifact(None), entry, content)


def test_no_name_is_markup() -> None:
    nasty = f"{NASTY} `**a** | [b](http://c) ![d](e) ``` $f$\n# g\n```"
    entry = dataclasses.replace(Manifest.from_json(good()).artifacts[0], metrics={nasty: 1.0}, delta={nasty: 0.1})
    content = dataclasses.replace(
        Manifest.from_json(good()),
        budget=Budget(nasty, 0.1),
        calibration={"static": {"checkpoint": nasty, nasty: 3}},
        config=Config(run={"model": {"_target_": nasty}}),
    )
    signature = of(lambda batch: {"logits": batch[nasty]}, {nasty: torch.ones(1, 2)})
    shown, parser = artifact(signature, candidate=nasty), MarkdownIt("commonmark").enable("table")
    tame = artifact(of(lambda batch: {"logits": batch["x"]}, {"x": torch.ones(1, 2)}))
    other = dataclasses.replace(
        content,
        budget=Budget("x", 0.1),
        calibration={"static": {"checkpoint": "x", "y": 3}},
        config=Config(run={"model": {"_target_": "x.y"}}),
    )
    kinds = [  # in a table, a name with "|" is text
        [
            (inner.type.replace("code_inline", "text"), inner.tag.replace("code", ""))
            for token in parser.parse(text)
            for inner in (token, *(token.children or ()))
        ]
        for text in (
            readme.render(dataclasses.replace(shown, candidate="static"), entry, content),
            readme.render(tame, dataclasses.replace(entry, metrics={"x": 1.0}, delta={"x": 0.1}), other),
        )
    ]
    assert kinds[0] == kinds[1]
    assert all(character.isprintable() or character == "\n" for character in readme.render(shown, entry, content))


@pytest.mark.parametrize("cell", [markdown.text, markdown.code])
@pytest.mark.parametrize("name", ["val_acc_x", "a|b", r"a\|b", r"\*a\*", "`a`|*b*", "a`b", "<b>&lt;</b>", "![a](b)"])
def test_tables_show_a_name_as_it_is(cell: Callable[[Any], str], name: str) -> None:
    shown = markdown.table({"name": "left", "value": "right"}, [(name, 1)], cell)
    github, tensorboard = MarkdownIt("commonmark").enable("table"), Markdown(extensions=["tables"])
    for rendered in (github.render(shown), tensorboard.convert(shown)):
        cells = re.findall("<td[^>]*>(.*?)</td>", rendered)
        assert [html.unescape(re.sub("</?code>", "", each)) for each in cells] == [name, "1"]


CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "tensors": (lambda x, y: x + y, (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.float64)), {}),
    "defaults": (lambda x, mode="a", *, gain=2.0: x * gain, (torch.ones(2),), {}),
    "after a default": (lambda x, mode="a", mask=None: x, (torch.ones(2),), {"mask": torch.ones(2, dtype=torch.bool)}),
    "constants": (lambda x, limit, name: x, (torch.ones(2), float("inf"), 'a"\n```'), {}),
    "containers": (lambda b: b["a"][0], ({"a": [torch.ones(2)], 3: (torch.ones(1, dtype=torch.int32),)},), {}),
    "any number": (lambda x, *more, **named: x, (torch.ones(1), 1, torch.ones(2)), {"z": torch.ones(1)}),
}


@pytest.mark.parametrize(("forward", "args", "kwargs"), CALLS.values(), ids=CALLS)
def test_the_call_fits_the_signature(forward: Any, args: Any, kwargs: Any) -> None:
    signature = of(forward, *args, **kwargs)
    text = readme.render(artifact(signature), Manifest.from_json(good()).artifacts[0], Manifest.from_json(good()))
    (call,) = [row for row in text.splitlines() if row.startswith("output = model(")]
    names: dict[str, Any] = {"torch": torch, "model": lambda *a, **k: signature.flatten(a, k)}
    exec(call, names)
    assert all(isinstance(value, Tensor) for value in names["output"])


def test_a_constant_of_a_class_is_shown_as_its_name() -> None:
    signature = of(lambda x, mode: x, torch.ones(2), Mode.FAST)
    content = Manifest.from_json(good())
    assert "mode='Mode.FAST'" in readme.render(artifact(signature), content.artifacts[0], content)


def test_every_flat_output_is_listed() -> None:
    outputs = {"a": torch.ones(2, 3), "b": [None, torch.ones(1)], "c": 1.5, "d": object()}
    signature = of(lambda x: outputs, torch.ones(2))
    content = Manifest.from_json(good())
    rows = [row for row in cells(readme.render(artifact(signature), content.artifacts[0], content)) if "output" in row]
    assert [row[1:] for row in rows] == [["output.a", "float32", "2 × 3"], ["output.b.1", "float32", "1"]]


def test_the_script_makes_inputs_of_every_kind(tmp_path: Path) -> None:
    script = runpy.run_path(str(readme.TEMPLATES / "run.py"))
    random, shape = np.random.default_rng(0), [None, 3]
    for dtype, kept in (("float32", None), ("float16", None), ("int64", 1), ("uint8", 1), ("bool", False)):
        made = script["made"]({"tensor": 0, "dtype": dtype, "shape": shape}, 4, random)
        assert (made.shape, made.dtype) == ((4, 3), np.dtype(dtype))
        assert kept is None or (made == kept).all()
    np.savez(tmp_path / "inputs.npz", x=np.ones((2, 3)))
    wanted = {"x": {"tensor": 0, "dtype": "float32", "shape": shape}}
    assert script["given"](tmp_path / "inputs.npz", wanted)[0].dtype == np.float32
    np.savez(tmp_path / "number.npz", n=3)
    (number,) = script["given"](tmp_path / "number.npz", {"n": {"tensor": 0, "dtype": "int64", "shape": []}})
    assert number.shape == ()
    with pytest.raises(SystemExit, match=r"lacks \['y'\]. It must hold an array for each of \['x', 'y'\]"):
        script["given"](tmp_path / "inputs.npz", wanted | {"y": wanted["x"]})
    with pytest.raises(SystemExit, match=r"'x' has the shape \[2, 3\]. The model takes \['any', 4\]"):
        script["given"](tmp_path / "inputs.npz", {"x": {**wanted["x"], "shape": [None, 4]}})
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "text.npz").write_text("no arrays")
    reasons = {"nowhere.npz": "No such file or directory", "array.npy": "it is none", "text.npz": "it is none"}
    for name, reason in reasons.items():
        with pytest.raises(SystemExit, match=rf"{name} cannot be read as a file of numpy.savez \({reason}\)"):
            script["given"](tmp_path / name, wanted)
