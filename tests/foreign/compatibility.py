"""Trains models of third-party packages with all four callbacks, and writes docs/compatibility.md.

    python tests/foreign/compatibility.py [PACKAGE ...]

Each package gets an environment of its own, which is kept and used again, and so are the rows of packages that are not
named. Each model is trained twice in processes of their own, with and without the callbacks. Exits with 1 where too few
models have an artifact, or one of the promises is broken: training is bit-identical, metrics are close, nothing is
printed twice, the results are found.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGE = ROOT / "docs" / "compatibility.md"
# What lq_plugin is tested with. Everything else may be as the package wants it.
PINNED = "torch torchao lightning pytorch-lightning torchmetrics onnx onnx-ir onnxscript onnxruntime openvino".split()
DEADLINE = 900  # seconds for one training
SQNR = 20  # dB, of every artifact
CLOSE = 0.05  # of a metric, or absolute where it is below 1
WORKING = 0.9  # of all models have a static or dynamic artifact besides the torch one
COLUMNS = "static/onnx static/openvino static/pt2 dynamic/onnx dynamic/openvino dynamic/torch".split()

INTRODUCTION = """# Third-party packages

Models of packages that train with Lightning, unmodified and as their users train them, with all four callbacks:
`StaticQuantization()`, `DynamicQuantization()`, `ArtifactExport()` and `Int8Evaluation(latency=None)`. Data is
synthetic and training short: the figures show that models work, not how accurate they are. `make test-foreign` writes
this page. It also checks that the trained weights are bit-identical with and without the callbacks, that metrics are
close to FP32, that nothing is printed twice, and that `find_results` finds the results.
"""


@dataclass
class Row:
    """What became of one model of a package; of the package, if ``model`` is empty."""

    package: str
    model: str = ""
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    reason: str = ""  # why there is nothing
    broken: list[str] = field(default_factory=list)  # promises

    @property
    def works(self) -> bool:
        return any(e["status"] == "ok" for label, e in self.entries.items() if label != "dynamic/torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", nargs="*", help="names of scripts in packages/; all by default")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "foreign")
    options = parser.parse_args()
    environments = options.environments.resolve()
    environments.mkdir(parents=True, exist_ok=True)
    scripts = sorted((HERE / "packages").glob("*.py"))
    for script in scripts:
        if not options.packages or script.stem in options.packages:
            made = _rows(script, environments / script.stem)
            (environments / f"{script.stem}.json").write_text(json.dumps([asdict(row) for row in made]))
    files = [file for script in scripts if (file := environments / f"{script.stem}.json").exists()]
    rows = [Row(**row) for file in files for row in json.loads(file.read_text())]
    PAGE.write_text(page(rows))
    models = [row for row in rows if row.model]
    working = sum(row.works for row in models)
    print(f"{working} of {len(models)} models have an artifact")
    sys.exit(any(row.broken for row in rows) or working < WORKING * len(models))


def _rows(script: Path, environment: Path) -> list[Row]:
    given = _constants(script)
    package = [*given.get("NO_DEPS", []), *given["REQUIREMENTS"]][0].partition("[")[0]
    if reason := _installed(environment, given["REQUIREMENTS"], given.get("NO_DEPS", [])):
        return [Row(package, reason=f"not installed: {reason}")]
    importing = [_python(environment), "-c", f"import runpy; runpy.run_path({str(script)!r})"]
    imported = subprocess.run(importing, cwd=HERE, capture_output=True, text=True)  # training.py is found there
    if imported.returncode:
        return [Row(package, reason=f"not importable: {_last_line(imported.stderr)}")]
    if target := given.get("TARGET"):
        package += f' (`target="{target}"`)'
    rows = []
    for model in given["MODELS"]:
        rows.append(row := _row(package, script, model, environment))
        print("\n  ".join([f"{package} {model}: {'ok' if row.works else 'no artifact'}", *row.broken]), flush=True)
    return rows


def _constants(script: Path) -> dict[str, Any]:
    """What a script says of itself, and the names of its models: its package may not be there yet."""
    found: dict[str, Any] = {}
    for node in ast.parse(script.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in ("REQUIREMENTS", "NO_DEPS", "TARGET"):
                found[name] = ast.literal_eval(node.value)
            elif name == "MODELS" and isinstance(node.value, ast.Dict):
                found[name] = [ast.literal_eval(key) for key in node.value.keys if key is not None]
    return found


def _installed(environment: Path, requirements: list[str], no_deps: list[str]) -> str:
    """Install a package beside this lq_plugin and its pinned torch; returns why that is not possible."""
    done = environment / ".installed"
    if done.exists():
        return ""
    pins = [pin for pin in (ROOT / "constraints.txt").read_text().splitlines() if pin.partition("==")[0] in PINNED]
    environment.mkdir(parents=True, exist_ok=True)
    constraints = environment / "constraints.txt"
    constraints.write_text("\n".join(pins))
    pip = [_python(environment), *"-m pip install --quiet --disable-pip-version-check -c".split(), str(constraints)]
    steps = [
        [sys.executable, "-m", "venv", str(environment)],
        [*pip, "torch"],
        [*pip, "-e", f"{ROOT}[onnx,openvino]", *requirements],
        [*pip, "--no-deps", *no_deps] if no_deps else [],
    ]
    for step in filter(None, steps):
        finished = subprocess.run(step, capture_output=True, text=True)
        if finished.returncode:
            return _last_line("\n".join(line for line in finished.stderr.splitlines() if "ERROR" in line))
    done.touch()
    return ""


def _python(environment: Path) -> str:
    return str(environment / ("Scripts" if os.name == "nt" else "bin") / "python")


def _row(package: str, script: Path, model: str, environment: Path) -> Row:
    """Train a model with and without the callbacks, and look at what came out of it."""
    row = Row(package, model)
    with tempfile.TemporaryDirectory() as folder:
        plain, plain_text = _trained(script, model, environment, Path(folder, "plain"), "--plain")
        ours, text = _trained(script, model, environment, Path(folder, "ours"))
        if plain is None:
            row.reason = f"does not train: {_last_line(plain_text)}"
        elif ours is None:
            row.reason = _last_line(text)
            row.broken += [] if "UnsupportedError" in row.reason else ["training failed with the callbacks"]
        else:
            row.broken += [] if ours["weights"] == plain["weights"] else ["the trained weights differ"]
            row.broken += _repeated(text, plain_text)
            _look_at(ours["manifests"], row)
    return row


def _trained(script: Path, model: str, environment: Path, folder: Path, *options: str) -> tuple[Any, str]:
    folder.mkdir()
    command = [_python(environment), str(HERE / "one_run.py"), str(script), model, str(folder), *options]
    process = {**os.environ, "OMP_NUM_THREADS": "1"}
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    try:
        finished = subprocess.run(command, cwd=folder, env=process, timeout=DEADLINE, **piped)
    except subprocess.TimeoutExpired:
        return None, f"took longer than {DEADLINE} s"
    outcome = folder / "outcome.json"
    return json.loads(outcome.read_text()) if outcome.exists() else None, finished.stdout


def _repeated(text: str, plain: str) -> list[str]:
    """Lines that our callbacks print more than once; the rows of tables are indented."""
    counts = Counter(line for line in text.splitlines() if len(line) > 20 and not line.startswith((" ", "│", "┃")))
    repeated = {line: times for line, times in counts.items() if times > max(1, plain.count(line))}
    return [f"printed {times} times: {_one_line(line)[:100]}" for line, times in repeated.items()]


def _look_at(manifests: list[str], row: Row) -> None:
    if len(manifests) != 1:
        row.broken.append(f"{len(manifests)} results were found")
        return
    for entry in json.loads(Path(manifests[0]).read_text())["artifacts"]:
        label = f"{entry['candidate']}/{entry['format']}"
        row.entries[label] = {
            "status": entry["status"],
            "error": entry["error"],
            "sqnr_db": entry["sqnr_db"],
            "float": dict(Counter(operator["op"] for operator in entry["float_ops"])),
        }
        if entry["status"] not in ("failed", "unsupported"):
            row.broken += [f"{label}: {broken}" for broken in _broken(entry)]


def _broken(entry: dict[str, Any]) -> list[str]:
    found = []
    if entry["status"] == "not_evaluated":
        found.append(f"not judged: {entry['error']}")
    if entry["sqnr_db"] is not None and entry["sqnr_db"] < SQNR:
        found.append(f"{entry['sqnr_db']:.1f} dB")
    for name, delta in entry["delta"].items():
        if abs(delta) > CLOSE * max(1.0, abs(entry["fp32"]["metrics"][name])):
            found.append(f"{name} differs by {delta:.3g}")
    return found


def page(rows: list[Row]) -> str:
    """The tables of docs/compatibility.md."""
    models = [row for row in rows if row.model]
    working = sum(row.works for row in models)
    lines = [
        INTRODUCTION,
        f"{working} of {len(models)} models end in an artifact of a graph. Figures are the SQNR",
        "in dB; – is a pair that cannot be (see the README); numbers in brackets lead to the reasons below.",
        "",
        "| package | model | " + " | ".join(COLUMNS) + " | stays float (static/onnx) |",
        "| --- | --- |" + " ---: |" * len(COLUMNS) + " --- |",
    ]
    reasons: dict[str, int] = {}
    for row in models:
        cells = [_cell(row, label, reasons) for label in COLUMNS]
        lines.append(f"| {row.package} | {row.model} | {' | '.join(cells)} | {_float(row)} |")
    lines += ["", "## What the user reads where there is no artifact", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()] or ["Every artifact was made."]
    lines += ["", "## What is not right", ""]
    lines += [f"- {row.package}, {row.model}: {broken}" for row in models for broken in row.broken] or ["Nothing."]
    lines += ["", "## Packages that cannot be used with this torch", ""]
    lines += [f"- {row.package}: {row.reason}" for row in rows if not row.model] or ["None of those tried."]
    return "\n".join(lines) + "\n"


def _cell(row: Row, label: str, reasons: dict[str, int]) -> str:
    entry = row.entries.get(label)
    if entry is None:
        return f"[{reasons.setdefault(row.reason, len(reasons) + 1)}]"
    if entry["status"] == "unsupported":
        return "–"
    if entry["status"] == "failed":
        return f"[{reasons.setdefault(_one_line(entry['error']), len(reasons) + 1)}]"
    return "ok" if entry["sqnr_db"] is None else f"{entry['sqnr_db']:.1f}"


def _float(row: Row) -> str:
    operators = Counter(row.entries.get("static/onnx", {}).get("float", {}))
    return ", ".join(f"{times} {name}" for name, times in operators.most_common(6)) or "–"


def _one_line(text: str) -> str:
    # A path says where a package was installed; its last two parts say which file it is.
    return " ".join(re.sub(r"(?<![\w:/])/\S*/(?=[^/\s]+/[^/\s]+)", "", text).split())


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return _one_line(lines[-1]) if lines else "no message"


if __name__ == "__main__":
    main()
