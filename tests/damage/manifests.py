"""Runs that a report has to survive: damaged manifests, failures and overrides, and folders made to mislead.

Each case is one bad run beside a good one. Its reader makes the whole report and checks that the good run is in it,
that the bad one is not left out in silence, and that nothing in it obeys a control character.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.console import Console

from lq_plugin.apps.report import show, show_section
from lq_plugin.coverage import FloatOp, QuantizedOp
from lq_plugin.learning import AlgorithmStep, Sensitivity, Trial, ValueRange
from lq_plugin.report import manifest, run_page
from lq_plugin.report.environment import environment
from lq_plugin.report.leaderboard import details, leaderboard, save
from lq_plugin.report.manifest import Config, Entry, Fp32, Kernels, LatencyRecord, Manifest, Speedup
from lq_plugin.selection import Budget

Case = tuple[str, Callable[[Path], None], Callable[[Path], None]]
Keys = tuple[str | int, ...]

SEED = 9
GOOD, BAD = "good", "bad"
# Nine lists of nine times the one before: as text it would be larger than any memory.
BOMB = "- &l0 [x]\n" + "".join(f"- &l{n} [{','.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
NASTY = "<script>alert(1)</script>[red]\x1b[2J\r\n\x9b2J\u202e:car:=1+1"
DELETED = object()
# What stands in the place of a value; raw text of JSON where Python would not write it.
WRONG: tuple[Any, ...] = (
    DELETED,
    None,
    True,
    -1,
    0,
    1e308,
    5e-324,
    10**400,
    "text",
    "",
    NASTY,
    "\ud800",
    [],
    [[]],
    {},
    {"a": {"b": [None]}},
)
RAW = ("NaN", "-Infinity", "1e999", "1" * 5000, "[" * 20_000 + "]" * 20_000, '{"a":' * 900 + "1" + "}" * 900, "")


def cases() -> Iterator[Case]:
    """Return about 640 cases, the same ones every time: ``(name, prepare(folder), read(folder))``."""
    written = {
        **{f"manifest-{name}": partial(_put, "quantized/manifest.json", text) for name, text in _manifests()},
        **{f"failure-{name}": partial(_put, "failure.json", text) for name, text in _failures()},
        **{f"overrides-{name}": partial(_put, ".hydra/overrides.yaml", text) for name, text in _overrides()},
        **{
            f"{kind}-{file}": partial(_misplaced, file, kind)
            for file in ("quantized/manifest.json", "failure.json", ".hydra/overrides.yaml")
            for kind in ("pipe", "link", "dangling", "device", "folder", "sparse", "empty")
        },
        **{f"folder-{n}": partial(_named, name) for n, name in enumerate(_folders())},
        "links-in-circles": _circles,
        "quantized-is-a-link": _linked,
    }
    for name, prepare in written.items():
        yield name, partial(_prepared, prepare), read


def read(folder: Path) -> None:
    """Make every form of the report."""
    board = leaderboard(folder)
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    show(board, console)
    for section in (each for found in details(board).values() for each in found):
        show_section(section, console)
    page = save(board, folder / "out")
    assert [row.label for row in board.artifacts if row.run == GOOD] == ["static/onnx", "static/pt2"]
    assert len({job.run for job in board.jobs}) > 1
    json.loads(page.with_suffix(".json").read_text("utf-8"), parse_constant=_refuse)
    pages = [
        page.read_text("utf-8"),
        *(run_page.render(content) for run, content in board.manifests.items() if run != GOOD),
    ]
    for text in (printed.getvalue(), *pages, page.with_suffix(".csv").read_text("utf-8")):
        assert all(character.isprintable() or character in "\n\t" for character in text)
    assert all(each.count("<script") == 1 for each in pages)


@cache
def good() -> dict[str, Any]:
    """Return the content of a manifest with every field that a real one has, as it is read from a file."""
    fp32 = Fp32(
        {"val/acc": 0.75, "val/loss": float("inf")},
        size_bytes=4000,
        latency_ms={"torch": 2.0, "onnxruntime": 1.0},
        errors={"openvino": "why"},
    )
    made = Entry(
        "static",
        "static",
        "onnxruntime",
        "onnx",
        path="static/onnx",
        sha256={"model.onnx": "0" * 64},
        size_bytes=1200,
        metrics={"val/acc": 0.7, "val/loss": float("inf")},
        delta={"val/acc": -0.05, "val/loss": float("nan")},
        fp32=fp32,
        latency_ms=LatencyRecord(0.5, 0.6, batch_size=1, threads=2, rounds=3, calls=9, mode="onnxruntime"),
        speedup=Speedup(4.0, 2.0),
        sqnr_db=30.0,
        quantized_ops=(QuantizedOp("net.0", "conv2d"),),
        float_ops=(FloatOp("net.1", "gelu", "no kernel"),),
        kernels=Kernels({"QLinearConv": ("conv",)}, {"FusedConv": ("other",)}, {"conv2d": 1}),
        placement="measured here",
        status="ok",
    )
    content = Manifest(
        fp32=fp32,
        artifacts=(made, Entry("static", "static", "torch.compile", "pt2", status="failed", error="why")),
        selected="static/onnx",
        unselected="why",
        budget=Budget("val/acc", 0.1, relative=True, mode="max"),
        calibration={"static": {"checkpoint": "a.ckpt", "samples": 48}},
        notes={"static": ("the check of data in model.py:1 is left out of the graph",)},
        steps=(AlgorithmStep("static", "smoothing", "refused", "too little", {"torch": 9.0}, {"torch": 9.1}),),
        sensitivity={"static": (Sensitivity("net.0", "conv2d", "conv2d", 0.1, 0.9),)},
        ranges={"static": (ValueRange("net_0", -1.0, 2.0, -1.5, 2.5, 0.125, (1, 0, 7), ("onnxruntime",)),)},
        trials=(Trial("static", ("net.0",), 0.5, 0.02, True, 1.5),),
        environment=environment(),
        seed=0,
        config=Config(quantization={"static": {"skip": ["op:add"]}}, run={"model": {"_target_": "m.Net", "width": 8}}),
    )
    with tempfile.TemporaryDirectory() as scratch:
        return dict(json.loads(manifest.write(Path(scratch), content).read_bytes()))


def _manifests() -> Iterator[tuple[str, bytes]]:
    """Manifests with one thing wrong: each value replaced or renamed in turn, raw text, cuts and flipped bits."""
    places, chosen = list(_places(good())), random.Random(SEED)
    for n, place in enumerate(places):
        for wrong in {n % len(WRONG), (n // 3 + 7) % len(WRONG)}:
            yield f"{_name(place)}-{wrong}", _json(_changed(place, WRONG[wrong]))
    for place in (("artifacts", 0, "latency_ms", "median"), ("fp32", "latency_ms", "torch"), ("fp32",), ("artifacts",)):
        for wrong in range(len(WRONG)):
            yield f"{_name(place)}-every-{wrong}", _json(_changed(place, WRONG[wrong]))
    for n, raw in enumerate(RAW):
        for place in (("artifacts", 0, "metrics", "val/acc"), ("config", "run", "model", "width"), ("seed",)):
            yield f"{_name(place)}-raw-{n}", _json(_changed(place, "HERE")).replace(b'"HERE"', raw.encode())
    text = _json(good())
    for n in range(25):
        yield f"cut-{n}", text[: chosen.randrange(len(text))]
    for n in range(75):
        flipped = bytearray(text)
        for _ in range(1 + n % 3):
            flipped[chosen.randrange(len(text))] ^= 1 << chosen.randrange(8)
        yield f"bits-{n}", bytes(flipped)
    entry = good()["artifacts"][0]
    yield "many-artifacts", _json({**good(), "artifacts": [entry] * 3000})
    yield "equal-labels", _json({**good(), "artifacts": [entry, entry]})
    yield "many-metrics", _json(_changed(("artifacts", 0, "metrics"), {f"m{n}": 0.5 for n in range(5000)}))
    yield (
        "long-keys",
        _json(_changed(("config", "run"), _chain("k" * 5000, 200, dict.fromkeys(map(str, range(20_000)))))),
    )
    yield (
        "long-options",
        _json(_changed(("config", "run"), _chain("k" * 250, 20, dict.fromkeys(map(str, range(20_000)))))),
    )
    for version in (None, "1", 1.5, 0, -1, 2, 10**30, [1], True):
        yield f"version-{version}", _json({**good(), "schema_version": version})
    for n, (value, delta) in enumerate(((1e300, -1e300), (1e-310, 1.0), (1e308, 1e-308), (0.0, 0.0), (1e16, 2.0))):
        changed = _changed(("artifacts", 0, "metrics", "val/acc"), value)
        changed["artifacts"][0]["delta"]["val/acc"] = delta
        yield f"figures-{n}", _json(changed)
    shown: dict[Keys, tuple[str, str]] = {
        ("sensitivity", "static", 0): ("name", "share"),
        ("steps", 0): ("reason", "seconds"),
        ("trials", 0): ("candidate", "drop"),
    }
    for at, (text_of, figure_of) in shown.items():
        yield f"nasty-{at[0]}", _json(_changed((*at, text_of), NASTY))
        yield f"figure-{at[0]}", _json(_changed((*at, figure_of), 1e308))
    for key in ("candidate", "method", "runtime", "error"):
        yield f"nasty-{key}", _json(_changed(("artifacts", 0, key), NASTY))
    yield "nasty-metric", _json(good()).replace(b'"val/acc"', json.dumps(NASTY).encode())
    yield "nasty-cpu", _json(_changed(("environment", "cpu"), NASTY))


def _failures() -> Iterator[tuple[str, bytes]]:
    errors = [*(value for value in WRONG if value is not DELETED), "x" * 10_000_000, " " * 10_000_000]
    for n, error in enumerate(errors):
        yield f"error-{n}", _json({"error": error})
    for n, raw in enumerate((*RAW, "{", "[]", "{}", "null", '"text"', "\ufeff{}", '{"error": "a", "error": 1}')):
        yield f"raw-{n}", raw.encode()
    yield "bytes", b"\xff\xfe{"
    yield "huge", b'{"error": "' + b"x" * (1 << 25) + b'"}'


def _overrides() -> Iterator[tuple[str, bytes]]:
    yield "bomb", BOMB.encode()
    yield "bomb-in-a-mapping", BOMB.replace("- &l", "? &l").encode()
    yield "alias-of-text", b"- &a x=1\n- *a\n"
    yield "nested", b"[" * 30_000
    yield "nested-blocks", b"- " * 30_000
    yield "nested-mappings", b"{a: " * 15_000
    yield "object", b"- !!python/object/apply:os.system ['true']\n"
    yield "object-text", b"- !!python/name:os.system ''\n"
    yield "mapping", b"a: 1\n"
    yield "text", b"x=1\n"
    yield "number", b"5\n"
    yield "null", b"null\n"
    yield "documents", b"- a=1\n---\n- b=2\n"
    yield "two-lists", b"- [a]\n- [b]\n"
    yield "unclosed", b"- 'a=1"
    yield "bytes", b"- a=\xff\xfe\n"
    yield "zeros", b"\0" * 1000
    yield "utf16", "- a=1\n".encode("utf-16")
    yield "huge", b"- x=1\n" * 3_000_000
    yield "long", b"- x=" + b"1" * 60_000
    yield "nasty", json.dumps([NASTY]).encode()
    yield "surrogate", b'- "\\ud800"\n'
    yield "escapes", b'- "a=\\e[2J\\u202e"\n'
    yield "directive", b"%YAML 9.9\n--- [a]\n"
    yield "control", b"- a\x1b[2J\n"


def _folders() -> Iterator[bytes]:
    names = [
        "[red]",
        "=cmd|' calc'!A0",
        "a\x1b[2Jb",
        "a\rb\nc",
        "\u202egnp",
        "\x9b2J",
        "<script>",
        ":car:",
        " ",
        "-",
        "a" * 255,
    ]
    names += ["9" * 200, "\u0663", "good ", "..a", "{{ 7 * 7 }}", "%s", "caf\\xe9"]
    yield from (name.encode() for name in names)
    yield from (b"caf\xe9", b"\xff", b"\xed\xa0\x80", b"\xc0\xaf")


def _prepared(prepare: Callable[[Path], None], folder: Path) -> None:
    _put("quantized/manifest.json", _json(good()), folder / GOOD)
    _put("quantized/manifest.json", _json(good()), folder / BAD)
    prepare(folder / BAD)


def _put(file: str, text: bytes, run: Path) -> None:
    (run / file).parent.mkdir(parents=True, exist_ok=True)
    (run / file).write_bytes(text)


def _misplaced(file: str, kind: str, run: Path) -> None:
    """Put something that is no ordinary file in the place of one."""
    _put(file, b"", run)
    path = run / file
    if kind != "empty":
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as stream:
            stream.truncate(1 << 36)
    elif kind in ("link", "dangling", "device"):
        (run / "elsewhere").write_bytes(_json(good()))
        path.symlink_to({"link": run / "elsewhere", "dangling": "nowhere", "device": "/dev/zero"}[kind])


def _named(name: bytes, run: Path) -> None:
    """Give the bad run another name, and a manifest that is cut off."""
    _put("quantized/manifest.json", b"{", run)
    os.rename(run, os.path.join(os.fsencode(run.parent), name))


def _circles(run: Path) -> None:
    _put("quantized/manifest.json", b"{", run)
    (run / "quantized" / "up").symlink_to(run.parent)
    (run / "self").symlink_to(run)


def _linked(run: Path) -> None:
    _put("failure.json", b'{"error": "why"}', run)
    (run / "quantized").rename(run / "elsewhere")
    (run / "quantized").symlink_to("elsewhere")


def _places(value: Any, place: Keys = ()) -> Iterator[Keys]:
    """Every place inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*place, key)
        yield from _places(item, (*place, key))


def _changed(place: Keys, value: Any) -> dict[str, Any]:
    """Copy the good manifest, with another value at a place, or none."""
    content = copy.deepcopy(good())
    parent: Any = content
    for key in place[:-1]:
        parent = parent[key]
    if value is DELETED:
        removed = parent.pop(place[-1])
        if isinstance(parent, dict):
            parent[f"{place[-1]}_"] = removed
    else:
        parent[place[-1]] = value
    return content


def _chain(key: str, depth: int, innermost: Any) -> Any:
    for _ in range(depth):
        innermost = {key: innermost}
    return innermost


def _name(place: Keys) -> str:
    return ".".join(map(str, place))


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")
