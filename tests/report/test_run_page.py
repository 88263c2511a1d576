"""The page of a run holds every figure of its manifest, takes every name for text, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from damage.manifests import NASTY, good

from lq_plugin.coverage import FloatOp, QuantizedOp
from lq_plugin.output_folder import remove_manifest, write_page
from lq_plugin.report import manifest, run_page
from lq_plugin.report.manifest import Config, Entry, Manifest

VOID = {"meta", "input"}


class Page(HTMLParser):
    """The elements of a page, its figures and the text of its cells; fails where elements are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, Mapping[str, str | None]]] = []
        self.figures: set[float] = set()
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "data":
            self.figures.add(float(dict(attrs)["value"] or ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture
def content() -> Manifest:
    return Manifest.from_json(good())


def page_of(content: Manifest) -> Page:
    return Page(run_page.render(content))


def figures(entry: Entry) -> Iterator[float | None]:
    yield from entry.metrics.values()
    yield from entry.delta.values()
    yield from (entry.size_bytes, entry.sqnr_db, entry.median)
    if entry.latency_ms and entry.speedup:
        yield from (entry.latency_ms.p90, entry.speedup.vs_best_fp32, entry.speedup.vs_torch_fp32)


def test_every_figure_of_the_manifest_is_on_the_page(content: Manifest) -> None:
    page, fp32 = page_of(content), content.fp32
    wanted = {value for entry in content.artifacts for value in figures(entry)}
    wanted |= {*fp32.metrics.values(), *fp32.latency_ms.values(), fp32.size_bytes}
    wanted |= {each.share for found in content.sensitivity.values() for each in found}
    finite = {value for value in wanted if value is not None and abs(value) < float("inf")}
    assert finite <= page.figures
    assert {-1.0, 2.0, -1.5, 2.5, 0.125} <= page.figures  # a range
    for said in ("net.1", "no kernel", "FusedConv", "a.ckpt", "static/pt2", "smoothing", "measured here", "m.Net"):
        assert said in page.text


def test_the_page_says_what_came_out(content: Manifest) -> None:
    failed = tuple(replace(entry, status="failed", error="why") for entry in content.artifacts)
    over = tuple(replace(entry, status="over_budget") for entry in content.artifacts)
    unjudged = tuple(replace(entry, status="not_evaluated") for entry in content.artifacts[:1])
    for change, said in (
        ({}, "Use static/onnx: 2.00× as fast as the fastest FP32, and val/acc is within the budget."),
        ({"artifacts": failed, "selected": None}, "Keep FP32: no artifact could be made."),
        ({"artifacts": over, "selected": None}, "Keep FP32: no artifact is within the budget."),
        ({"artifacts": unjudged, "selected": None, "budget": None}, "1 artifact was made, but it was not judged."),
        ({"selected": None, "unselected": None}, "Keep FP32: no artifact within the budget was selected."),
        ({"selected": None, "unselected": "FP32 is faster"}, "Keep FP32: it is faster than every artifact within"),
    ):
        assert said in page_of(replace(content, **change)).text  # type: ignore[arg-type]


def test_what_a_manifest_lacks_is_left_out(content: Manifest) -> None:
    bare = Manifest(
        artifacts=(Entry("dynamic", "dynamic", "torch", "torch", path="dynamic/torch"),),
        environment=content.environment,
    )
    page = page_of(bare)
    headings = [attributes["id"] for tag, attributes in page.elements if tag == "h2"]
    assert headings == ["compared", "load", "repeat"]
    assert "No latency was measured." in page.text
    assert "from my_package import MyModel" in page.text
    assert "No command made this run" in page.text
    assert not any(tag == "svg" for tag, _ in page.elements)


def test_the_page_repeats_the_command_and_the_model(content: Manifest) -> None:
    config = Config(run={"model": {"_target_": "my.nets.Net"}}, command=("lq-train", "recipe=x", "+a=b c"))
    entry = replace(content.artifacts[0], format="torch")
    text = page_of(replace(content, config=config, artifacts=(entry,))).text
    assert "lq-train recipe=x '+a=b c'" in text
    assert "from my.nets import Net model = lq_plugin.load('quantized/static/onnx', factory=Net)" in text
    hostile = replace(config, run={"model": {"_target_": "os; import x.Net"}})
    assert "from my_package import MyModel" in page_of(replace(content, config=hostile, artifacts=(entry,))).text


def everything_named(name: str) -> Manifest:
    """A manifest in which every text is a name, unless it is one of a few or leads somewhere."""
    named = ("metrics", "delta", "errors", "sensitivity", "calibration", "notes", "versions", "fell_back")

    def renamed(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name if key in named and n == 0 else k: renamed(v, k) for n, (k, v) in enumerate(value.items())}
        if isinstance(value, list):
            return [renamed(item, key) for item in value]
        fixed = key in ("path", "status", "mode", "format", "model.onnx", "val/loss")
        return name if isinstance(value, str) and not fixed else value

    return Manifest.from_json({key: renamed(value, key) for key, value in good().items()})


def test_no_name_becomes_a_part_of_the_page() -> None:
    hostile, tame = everything_named(f'{NASTY}"><img src=x onerror=alert(1)>'), everything_named("name")
    page, other = page_of(hostile), page_of(tame)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in other.elements]
    assert "<script>alert(1)</script>" in page.text  # as text
    assert all(character.isprintable() or character in "\n\t" for character in run_page.render(hostile))


def test_a_browser_may_run_nothing_but_our_script_and_load_nothing(content: Manifest) -> None:
    text = run_page.render(content)
    page = Page(text)
    (policy,) = [
        made["content"] or "" for _, made in page.elements if made.get("http-equiv") == "Content-Security-Policy"
    ]
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        ((inner,),) = [re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)]
        made = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{rule} 'sha256-{made}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert not {"link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not any(key in ("src", "style", "srcset", "action") or key.startswith("on") for key in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "://" not in text
    targets = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(targets) == len(set(targets))
    assert {(made["href"] or "")[1:] for tag, made in page.elements if tag == "a"} <= set(targets)


def test_a_large_run_stays_a_small_page(content: Manifest) -> None:
    entry = replace(
        content.artifacts[0],
        quantized_ops=tuple(QuantizedOp(f"layers.{n}.attention.conv2d_{n}", "conv2d") for n in range(3000)),
        float_ops=tuple(FloatOp(f"layers.{n}.norm", "layer_norm", "no INT8 form " * 9) for n in range(3000)),
    )
    entries = tuple(replace(entry, candidate=f"c{n}", format=name) for n in range(3) for name in ("onnx", "pt2"))
    config = Config(run={"all": "x" * 200_000})
    text = run_page.render(replace(content, artifacts=entries, config=config))
    assert len(text.encode()) < 1_000_000
    assert text.count("more operators are in the manifest.") == 3
    assert "the rest is in the manifest" in text


def test_hundreds_of_candidates_stay_a_small_page_with_the_selected_one(content: Manifest) -> None:
    (made, *_), ((_, known), *_) = content.artifacts, content.ranges.items()
    (value, *_), costs = known, next(iter(content.sensitivity.values()))
    entry = replace(
        made,
        quantized_ops=tuple(QuantizedOp(f"layers.{n}.conv2d", "conv2d") for n in range(90)),
        float_ops=tuple(FloatOp(f"layers.{n}.norm", "layer_norm", "no INT8 form " * 9) for n in range(90)),
    )
    values = tuple(replace(value, name=f"conv2d_{n}", bins=(900, 50) * 16) for n in range(90))
    names = [f"candidate_{n}" for n in range(400)]
    large = replace(
        content,
        artifacts=tuple(replace(entry, candidate=name) for name in names),
        selected=f"{names[-1]}/onnx",
        ranges=dict.fromkeys(names, values),
        sensitivity=dict.fromkeys(names, costs[:1] * 90),
        calibration=dict.fromkeys(names, content.calibration["static"]),
    )
    text = run_page.render(large)
    assert len(text.encode()) < 1_000_000
    assert "Of 390 more candidates, details are in the manifest." in text
    assert f"Operators of {names[-1]}" in text
    assert text.count("more values are in the manifest.") == 10


def test_the_page_lies_beside_the_manifest_and_goes_with_it(tmp_path: Path, content: Manifest) -> None:
    manifest.write(tmp_path, content)
    write_page(tmp_path, content)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["manifest.json", "report.html"]
    remove_manifest(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_jinja2_one_line_names_the_extra(
    tmp_path: Path, content: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    write_page(tmp_path, content)
    assert list(tmp_path.iterdir()) == []
    (said,) = capsys.readouterr().out.splitlines()
    assert "no report.html: " in said
    assert "pip install 'lq_plugin[report]'" in said
