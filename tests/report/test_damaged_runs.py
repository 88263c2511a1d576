"""One bad run is one line of a report, whatever is wrong with it, and the line says what that is."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage.manifests import BAD, BOMB, DELETED, GOOD, NASTY, cases, good
from rich.console import Console

from lq_plugin.apps.report import main, show
from lq_plugin.printing import plain
from lq_plugin.report import manifest
from lq_plugin.report.board import Leaderboard
from lq_plugin.report.environment import environment
from lq_plugin.report.leaderboard import leaderboard, save
from lq_plugin.report.limits import DEEPEST, LONGEST_NAME, MOST
from lq_plugin.report.manifest import Entry, Manifest


def put(run: Path, content: Any) -> Path:
    """Write a manifest; bytes and text as they are."""
    (run / "quantized").mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, bytes | str) else json.dumps(content)
    (run / "quantized" / "manifest.json").write_bytes(text.encode() if isinstance(text, str) else text)
    return run


def changed(*place: str | int, to: Any) -> dict[str, Any]:
    """Copy the good manifest, with another value at a place, or none."""
    content = json.loads(json.dumps(good()))
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    if to is DELETED:
        del parent[place[-1]]
    else:
        parent[place[-1]] = to
    return dict(content)


def reported(folder: Path) -> Leaderboard:
    """Make every form of the report of a folder with a good run and a bad one."""
    put(folder / GOOD, good())
    board = leaderboard(folder)
    show(board, Console(file=io.StringIO()))
    save(board, folder / "out")
    assert [row.label for row in board.artifacts if row.run == GOOD] == ["static/onnx", "static/pt2"]
    return board


METRIC = ("artifacts", 0, "metrics", "val/acc")
TIME = ("artifacts", 0, "latency_ms", "median")
BY_FIELD: dict[str, tuple[Any, str]] = {
    "nested": ("[" * 100_000 + "]" * 100_000, "manifest.json is nested too deeply"),
    "nested in config": (
        '{"config":' * 500 + "1" + "}" * 500,
        f"objects and lists are nested more than {DEEPEST} deep",
    ),
    "list as a metric": (changed(*METRIC, to=[1]), "artifacts[0].metrics['val/acc'] is a list, not a number, null"),
    "text as a metric": (changed(*METRIC, to="0.5"), "artifacts[0].metrics['val/acc'] is '0.5', not a number, null"),
    "bool as a metric": (changed(*METRIC, to=True), "artifacts[0].metrics['val/acc'] is true, not a number, null"),
    "huge metric": (changed(*METRIC, to=10**400), "artifacts[0].metrics['val/acc'] is 1000000000000000"),
    "infinite metric": (json.dumps(good()).replace("0.7,", "1e999,"), "manifest.json is not valid JSON (1e999 is too"),
    "nan": (json.dumps(good()).replace("0.7,", "NaN,"), "manifest.json is not valid JSON (NaN is not a JSON number)"),
    "delta": (changed("artifacts", 0, "delta", to=[0.1]), "artifacts[0].delta is a list, not an object"),
    "negative latency": (changed(*TIME, to=-1), "artifacts[0].latency_ms.median is -1, not a duration in milliseconds"),
    "no latency": (changed(*TIME, to=0), "artifacts[0].latency_ms.median is 0, not a duration in milliseconds"),
    "denormal latency": (changed(*TIME, to=1e-320), "artifacts[0].latency_ms.median is 1e-320, not a duration"),
    "latency of FP32": (changed("fp32", "latency_ms", "torch", to=0.0), "fp32.latency_ms['torch'] is 0.0, not a"),
    "text as a batch": (changed("artifacts", 0, "latency_ms", "batch_size", to="1"), "latency_ms.batch_size is '1'"),
    "renamed key": (changed("artifacts", 0, "size_bytes", to=DELETED), "artifacts[0].size_bytes is missing"),
    "no size": (changed("artifacts", 0, "size_bytes", to=0), "artifacts[0].size_bytes is 0, not a number of bytes"),
    "negative size": (changed("fp32", "size_bytes", to=-1), "fp32.size_bytes is -1, not a number of bytes"),
    "half a byte": (changed("artifacts", 0, "size_bytes", to=0.5), "artifacts[0].size_bytes is 0.5, not a number of"),
    "bool as a size": (changed("artifacts", 0, "size_bytes", to=True), "artifacts[0].size_bytes is true, not a"),
    "speedup": (changed("artifacts", 0, "speedup", "vs_best_fp32", to="2"), "speedup.vs_best_fp32 is '2', not a ratio"),
    "fidelity": (changed("artifacts", 0, "sqnr_db", to={}), "artifacts[0].sqnr_db is an empty object, not a number"),
    "no FP32": (changed("fp32", to=None), "manifest.json: fp32 is null, not an object"),
    "FP32 of an artifact": (
        changed("artifacts", 0, "fp32", to={"metrics": {}}),
        "artifacts[0].fp32.size_bytes is missing",
    ),
    "no list": (changed("artifacts", to={}), "manifest.json: artifacts is an empty object, not a list of at least one"),
    "empty list": (
        changed("artifacts", to=[]),
        "manifest.json: artifacts is an empty list, not a list of at least one",
    ),
    "null in the list": (changed("artifacts", to=[None]), "manifest.json: artifacts[0] is null, not an object"),
    "many bins": (
        changed("ranges", "static", 0, "bins", to=[1] * 33),
        "ranges['static'][0].bins has 33 entries; at most 32 are read",
    ),
    "very long list": (changed("artifacts", to=[1] * 10_000), f"artifacts has 10000 entries; at most {MOST} are read"),
    "status": (changed("artifacts", 0, "status", to="great"), "artifacts[0].status is 'great', not one of ok, over"),
    "candidate": (changed("artifacts", 0, "candidate", to=5), "artifacts[0].candidate is 5, not a name of up to"),
    "long name": (changed("artifacts", 0, "format", to="x" * 300), f"not a name of up to {LONGEST_NAME} characters"),
    "surrogate": (changed("artifacts", 0, "error", to="\ud800"), r"manifest.json: '\ud800' is not Unicode text"),
    "surrogate in a key": (changed("config", "run", to={"\udfff": 1}), r"manifest.json: '\udfff' is not Unicode text"),
    "budget": (changed("budget", "max_drop", to="0.1"), "budget.max_drop is '0.1', not a number, 0 or more"),
    "budget of old": (
        {**good(), "budget": {"metric": "val/acc", "max_loss": 0.1, "relative": True, "mode": "max"}},
        "manifest.json: budget.max_drop is missing; max_loss, its old name, is no longer read",
    ),
    "lenient budget": (changed("budget", "relative", to=1), "budget.relative is 1, not true or false"),
    "environment": (changed("environment", to=DELETED), "manifest.json: environment is missing"),
    "config": (changed("config", to=[]), "manifest.json: config is an empty list, not an object"),
    "run of a list": (changed("config", "run", to=["a"]), "manifest.json: config.run is a list, not an object"),
    "long key": (changed("config", "run", to={"k" * 300: 1}), f"a key is longer than {LONGEST_NAME} characters"),
    "huge config": (
        changed("config", "run", to={f"option{n}": "x" * 900 for n in range(400)}),
        "config takes more than",
    ),
    "version of text": (changed("schema_version", to="1"), "schema_version is '1', not a version, such as 1"),
    "no version": (changed("schema_version", to=DELETED), "manifest.json: schema_version is missing"),
    "null version": (changed("schema_version", to=None), "schema_version is null, not a version, such as 1"),
    "version 0": (changed("schema_version", to=0), "schema_version is 0, not a version, such as 1"),
    "newer": (
        changed("schema_version", to=2),
        "its schema_version 2 is newer than 1, the newest that this lq_plugin",
    ),
}


@pytest.mark.parametrize(("content", "said"), BY_FIELD.values(), ids=BY_FIELD)
def test_a_manifest_that_is_wrong_is_one_line_that_names_the_field(content: Any, said: str, tmp_path: Path) -> None:
    put(tmp_path / BAD, content)
    (failed,) = reported(tmp_path).failed
    assert failed.run == BAD
    assert failed.error.startswith("manifest.json")
    assert said in failed.error
    assert failed.error.isprintable()
    assert len(failed.error) < 400


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def linked(path: Path) -> None:
    (path.parent / "elsewhere").write_text(json.dumps(good()))
    path.symlink_to("elsewhere")


def sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(1 << 36)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (pipe, "is not a regular file"),
        (endless, "is a link"),
        (linked, "is a link"),
        (Path.mkdir, "is not a regular file"),
        (sparse, "is larger than"),
        (Path.touch, "is not valid"),
    ],
)
@pytest.mark.parametrize("name", ["quantized/manifest.json", "failure.json", ".hydra/overrides.yaml"])
def test_what_is_no_ordinary_file_is_not_read(
    name: str, make: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    put(tmp_path / BAD, good())
    file = tmp_path / BAD / name
    file.unlink(missing_ok=True)
    file.parent.mkdir(exist_ok=True)
    make(file)
    board = reported(tmp_path)
    said_of = [job.error for job in board.failed if job.run == BAD]
    if file.suffix == ".yaml":
        said_of = [text for row in board.artifacts if row.run == BAD for text in row.overrides][:1]
        if make is Path.touch:  # a job without overrides
            assert said_of == []
            return
    (text,) = said_of
    assert text.startswith(f"{file.name} {said}")


def test_half_of_the_report_does_not_depend_on_the_other(tmp_path: Path) -> None:
    """A job that stopped after its manifest was written counts as both."""
    put(tmp_path / BAD, good())
    (tmp_path / BAD / "failure.json").write_text('{"error": ["no text"]}')
    board = reported(tmp_path)
    assert [(job.run, job.error) for job in board.failed] == [(BAD, "failure.json holds no text under 'error'")]
    assert [row.run for row in board.artifacts] == [BAD, BAD, GOOD, GOOD]


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "- &a x=1\n- *a\n",
        "[" * 50_000,
        "- " * 30_000,
        "a: 1",
        "x=1",
        "- [a]\n- [b]\n",
        "- !!python/object/apply:os.system ['exit 1']\n",
        "- a\n---\n- b\n---\n{}",
    ],
    ids=["bomb", "alias", "nested", "blocks", "mapping", "text", "lists", "object", "documents"],
)
def test_overrides_are_a_list_of_texts_and_nothing_else(text: str, tmp_path: Path) -> None:
    put(tmp_path / BAD, good())
    (tmp_path / BAD / ".hydra").mkdir()
    (tmp_path / BAD / ".hydra" / "overrides.yaml").write_text(text)
    board = reported(tmp_path)
    assert {row.overrides for row in board.artifacts if row.run == BAD} == {
        ("overrides.yaml is not a list of overrides",)
    }


@pytest.mark.parametrize(
    "name",
    [
        b"caf\xe9",
        b"\xff\xfe",
        b"a\x1b[2Jb",
        b"a\nb",
        b"[red]",
        b"[/red]",
        b"<script>",
        b"=1+1",
        b"\xe2\x80\xaegnp",
        b":car:",
    ],
)
def test_a_folder_may_have_any_name(name: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / os.fsdecode(name), "{")
    put(tmp_path / "named" / os.fsdecode(name), changed("artifacts", 0, "error", to="why"))
    reported(tmp_path)
    shown = plain(os.fsdecode(name))
    main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert f"Run {shown}: failed. manifest.json is not valid JSON" in printed
    assert f"Run named/{shown}, static/onnx: ok. why" in printed
    assert "\x1b" not in printed
    found = json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))
    assert {row["run"] for row in found["artifacts"]} == {f"named/{shown}", GOOD}
    with (tmp_path / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
        assert {line["run"] for line in csv.DictReader(file)} == {f"named/{shown}", GOOD}
    assert (tmp_path / "leaderboard.html").read_text(encoding="utf-8").count("<script") == 1


def test_two_folders_that_are_printed_alike_are_both_listed(tmp_path: Path) -> None:
    put(tmp_path / os.fsdecode(b"caf\xe9"), "{")
    put(tmp_path / r"caf\udce9", good())
    board = reported(tmp_path)
    assert len({job.run for job in board.jobs}) == 3
    assert len(board.artifacts) == 4


def test_links_are_not_followed(tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere" / "run", good())
    folder = tmp_path / "runs"
    put(folder / BAD, "{")
    (folder / BAD / "up").symlink_to(folder)
    (folder / "other").symlink_to(elsewhere)
    (folder / "stopped").mkdir()
    (folder / "stopped" / "failure.json").write_text('{"error": "why"}')
    (folder / "stopped" / "quantized").symlink_to(elsewhere / "quantized")
    board = reported(folder)
    assert {row.run for row in board.artifacts} == {GOOD}
    assert [job.error.partition("(")[0] for job in board.failed] == [
        "manifest.json is not valid JSON ",
        "why",
        "manifest.json is below a link; put the folder quantized itself in its place",
    ]


def test_a_tree_deeper_than_a_path_can_be_is_noted(tmp_path: Path) -> None:
    put(tmp_path / BAD, "{")
    here, name, made = os.getcwd(), "d" * 250, 0
    os.chdir(tmp_path)
    try:
        for made in range(1, 21):  # noqa: B007
            os.mkdir(name)
            os.chdir(name)
        board = reported(tmp_path)
    finally:
        for _ in range(made):
            os.chdir("..")
            os.rmdir(name)
        os.chdir(here)
    assert [job.run for job in board.failed] == [BAD]
    assert board.notes[-1].startswith("1 folder cannot be read, and may hold more runs: ")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_looked_into_is_noted(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    put(tmp_path / BAD, "{")
    (tmp_path / BAD / "quantized" / "manifest.json").chmod(0)
    board = reported(tmp_path)
    assert [job.error for job in board.failed] == ["manifest.json cannot be read (Permission denied)"]
    assert board.notes[-1].startswith("1 folder cannot be read, and may hold more runs: ")


def test_a_file_that_was_laid_in_the_way_is_not_written_to(tmp_path: Path) -> None:
    put(tmp_path / BAD, good())
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for name in ("json", "csv", "html"):
        (tmp_path / f"leaderboard.{name}").symlink_to(victim)
        (tmp_path / f".leaderboard.{name}.{os.getpid()}").symlink_to(victim)
    save(leaderboard(tmp_path), tmp_path)
    assert victim.read_text() == "untouched"
    assert not list(tmp_path.glob(".leaderboard*"))


@pytest.mark.parametrize(
    ("value", "delta"), [(1e300, -1e300), (1e-310, 1.0), (1.7e308, 1e-308), (0, 0), (1e16, 2.0), (5e-324, 5e-324)]
)
def test_figures_at_the_end_of_what_floats_hold_are_shown_and_not_reckoned_with(
    value: float, delta: float, tmp_path: Path
) -> None:
    content = changed(*METRIC, to=value)
    content["artifacts"][0]["delta"]["val/acc"] = delta
    put(tmp_path / BAD, content)
    board = reported(tmp_path)
    assert board.failed == ()
    assert board.artifacts[0].entry.metrics["val/acc"] == value


@pytest.mark.parametrize("key", ["metric", "candidate", "runtime", "error", "cpu", "model", "override", "failure"])
def test_no_name_becomes_a_tag_of_the_page_or_a_formula_of_the_table(key: str, tmp_path: Path) -> None:
    content = json.loads(json.dumps(good()).replace('"val/acc"', json.dumps(NASTY))) if key == "metric" else good()
    if key in ("candidate", "runtime", "error"):
        content = changed("artifacts", 0, key, to=f"={NASTY}")
    elif key == "cpu":
        content = changed("environment", "cpu", to=NASTY)
    elif key == "model":
        content = changed("config", "run", "model", "_target_", to=NASTY)
    put(tmp_path / BAD, content)
    (tmp_path / BAD / ".hydra").mkdir()
    (tmp_path / BAD / ".hydra" / "overrides.yaml").write_text(json.dumps([NASTY] if key == "override" else []))
    if key == "failure":
        (tmp_path / BAD / "failure.json").write_text(json.dumps({"error": NASTY}))
    reported(tmp_path)
    page, table = ((tmp_path / "out" / f"leaderboard.{name}").read_text("utf-8") for name in ("html", "csv"))
    assert page.count("<script") == 1  # ours
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert all(character.isprintable() or character in "\n\t" for character in page + table)
    cells = [cell for line in csv.reader(io.StringIO(table)) for cell in line]
    assert not any(cell.lstrip("\r\n\t").startswith(tuple("=+@-")) for cell in cells if not cell.startswith("-0."))


@pytest.mark.parametrize("text", ["=1", "+1", "-x", "@a", "\t=1", "\r=1", "\n=1", "  =1", "\uff1d1", "\x1b=1"])
def test_no_cell_begins_like_a_formula(text: str, tmp_path: Path) -> None:
    put(tmp_path / BAD, changed("artifacts", 0, "error", to=text))
    reported(tmp_path)
    with (tmp_path / "out" / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
        cell = next(line["error"] for line in csv.DictReader(file) if line["error"] != "why")
    assert cell.startswith((" ", r"\x1b", r"\t", r"\r"))


def test_what_a_run_writes_is_what_a_report_reads(tmp_path: Path) -> None:
    file = manifest.write(tmp_path / "quantized", Manifest.from_json(good()))
    assert manifest.read(file).to_json() == good()
    failed = Entry("a", "static", "onnxruntime", "onnx", status="failed", error="why")
    unmeasured = Manifest(artifacts=(failed,), environment=environment())
    assert manifest.read(manifest.write(tmp_path / "quantized", unmeasured)) == unmeasured


def test_a_sample_of_all_damages_is_survived(tmp_path: Path) -> None:
    """The rest of them is in the test of everything that comes from outside."""
    chosen = list(cases())
    assert len(chosen) > 500
    for n, (name, prepare, read) in enumerate(chosen[::5]):
        prepare(tmp_path / str(n))
        try:
            read(tmp_path / str(n))
        except Exception as error:
            raise AssertionError(name) from error
