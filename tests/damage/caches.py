"""Damaged checkpoints, kept fits, and calibrations beside them: each is a name, what makes it, and what reads it.

A reader returns, or raises an error of ours; it asserts that what it returns is right, or what it refuses is put aside.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import random
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import Tiny, fit

from lq_plugin import StaticQuantization
from lq_plugin.apps.fits import KeepFit
from lq_plugin.apps.kept_fit import Fit
from lq_plugin.checkpoints import read_file, with_weights
from lq_plugin.coverage import Measured
from lq_plugin.graph.calibration import Calibration

Case = tuple[str, Callable[[Path], None], Callable[[Path], None]]
Damage = Callable[[bytes, random.Random], bytes]
NAME = "0123456789abcdef"
CHECKPOINT = "0/best.ckpt"
DECISION = "decisions/" + "0" * 64 + ".json"
CHOICES = ("best", "best:val/loss", "last", "live")
MEASURED = Measured(int8=False, reason="slower here")
# What takes the place of a value in a record or in a state.
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**63, 10**400, 1.5, "", "x", "../x", "/etc/passwd", "\x00", "\ud800", "x" * 5000, "\x1b[31m"),
    *([], [1], {}, {"a": 1}, ["live.ckpt"]),
)


def cases() -> Iterator[Case]:
    """Yield all of them; the same ones each time."""
    for number in range(100):
        yield _checkpoint(f"flip {number}", _flipped)
    for number in range(40):
        yield _checkpoint(f"cut {number}", _cut)
    for number in range(30):
        yield _checkpoint(f"shuffled {number}", _shuffled)
    for number in range(100):
        yield _checkpoint(f"recomputed {number}", _recomputed, exact=False)
    for kind in ("pipe", "device", "folder", "link", "loop", "empty", "text"):
        yield f"checkpoint: {kind}", functools.partial(_replaced, name="given.ckpt", kind=kind), _read_checkpoint
    for piece in ("fit.json", CHECKPOINT, "calibration", "decision"):
        for number in range(200 if piece == "fit.json" else 40):
            yield _kept(f"{piece}: flip {number}", piece, _flipped)
        for number in range(10):
            yield _kept(f"{piece}: cut {number}", piece, _cut)
        for kind in ("pipe", "device", "folder", "link", "loop", "empty", "text"):
            yield f"{piece}: {kind}", functools.partial(_replaced_in_fit, piece=piece, kind=kind), _read_fit
    for part in ("checkpoints", "sha256", "digest"):
        for number, value in enumerate(VALUES):
            change = functools.partial(_record, part=part, value=value)
            yield _kept(f"fit.json: {part} {number}", "fit.json", change)
    for number, value in enumerate(VALUES):
        yield _kept(f"fit.json: whole {number}", "fit.json", functools.partial(_encoded, value=value))
        yield _kept(f"decision: whole {number}", "decision", functools.partial(_encoded, value=value))
        yield _kept(f"fit.json: live {number}", "fit.json", functools.partial(_live, value=value))
    for number, path in enumerate(_paths(_state())):
        wrong = (None, "x", -1, 10**400, torch.tensor(torch.nan), torch.zeros(1).expand(10**12), [], {})
        for which, value in enumerate(wrong):
            yield f"calibration: {number} {which}", *_calibration(path, value)


@functools.cache
def undamaged() -> dict[str, bytes]:
    """Every file of a kept fit and of its store, which holds one calibration and one decision, by its path."""
    with tempfile.TemporaryDirectory() as name:
        folder, static = Path(name), StaticQuantization(algorithms=[])
        kept = Fit(folder / "fits" / NAME)
        best = ModelCheckpoint(folder, "best", monitor="val/loss", save_last=True)
        fit(folder, Tiny(), static, KeepFit(kept), best)
        assert static.calibration is not None
        kept.store.keep_calibration(static.calibration)
        kept.store.decisions()["0" * 64] = MEASURED
        files = sorted(file for place in (kept.folder, kept.store.folder) for file in place.rglob("*"))
        return {str(file.relative_to(folder / "fits")): file.read_bytes() for file in files if file.is_file()}


@functools.cache
def _weights(name: str) -> Any:
    return torch.load(io.BytesIO(undamaged()[_file(name)]), weights_only=True)


def _state() -> Any:
    return torch.load(io.BytesIO(undamaged()[_file("calibration")]), weights_only=True)


def _calibrated_graph() -> str:
    return str(_state()["provenance"]["digest"])


def _file(piece: str) -> str:
    """Path of a piece of the specimen, below the folder of all fits."""
    if piece == "calibration":
        return next(name for name in undamaged() if "/calibrations/" in name)
    return f"{NAME}.store/{DECISION}" if piece == "decision" else f"{NAME}/{piece}"


def _checkpoint(name: str, damage: Damage, exact: bool = True) -> Case:
    def prepare(folder: Path) -> None:
        (folder / "given.ckpt").write_bytes(damage(undamaged()[_file(CHECKPOINT)], random.Random(name)))

    return f"checkpoint: {name}", prepare, functools.partial(_read_checkpoint, exact=exact)


def _read_checkpoint(folder: Path, exact: bool = True) -> None:
    found = read_file(folder / "given.ckpt")
    module = with_weights(Tiny(), found)
    if exact:
        _assert_weights(found, CHECKPOINT)
        assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in (found.weights or {}).items())


def _assert_weights(found: Any, name: str) -> None:
    expected = _weights(name)
    assert found.global_step == expected["global_step"]
    assert found.weights.keys() == expected["state_dict"].keys()
    assert all(torch.equal(found.weights[key], tensor) for key, tensor in expected["state_dict"].items())


def _kept(name: str, piece: str, damage: Damage) -> Case:
    def prepare(folder: Path) -> None:
        _write(folder)
        file = folder / "fits" / _file(piece)
        file.write_bytes(damage(file.read_bytes(), random.Random(name)))

    return f"fit: {name}", prepare, _read_fit


def _write(folder: Path) -> None:
    for name, content in undamaged().items():
        (folder / "fits" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "fits" / name).write_bytes(content)


def _read_fit(folder: Path) -> None:
    """What is kept is right, or it is put aside as a whole; a calibration is right, or it is put aside.

    A decision has no checksum: it is one, or measured once more.
    """
    kept = Fit(folder / "fits" / NAME)
    with kept.claimed("here"):
        usable = kept.usable()
    if not usable:
        assert not kept.folder.exists()
        assert os.path.lexists(f"{kept.folder}.damaged")
        return
    record = json.loads(undamaged()[_file("fit.json")])["checkpoints"]
    for choice in CHOICES:
        assert kept.checkpoint(choice).relative_to(kept.folder).as_posix() == record[choice]
        _assert_weights(read_file(kept.checkpoint(choice)), record[choice])
    for calibration in kept.store.calibrations(_calibrated_graph()):
        _assert_calibration(calibration)
    assert all(isinstance(decision, Measured) for decision in kept.store.decisions().values())
    assert len(list((kept.store.folder / "calibrations").iterdir())) == 1


def _assert_calibration(found: Calibration) -> None:
    expected = Calibration.from_state_dict(_state())
    assert found.provenance == expected.provenance
    assert found.statistics.keys() == expected.statistics.keys()
    for name, statistic in expected.statistics.items():
        assert all(torch.equal(found.statistics[name][part], tensor) for part, tensor in statistic.items())


def _calibration(path: tuple[Any, ...], value: Any) -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    """A calibration with another value in one place, and a name that fits it."""

    def prepare(folder: Path) -> None:
        state = parent = _state()
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = value
        stream = io.BytesIO()
        torch.save(state, stream)
        digest = hashlib.sha256(stream.getvalue()).hexdigest()[:16]
        _write(folder)
        file = folder / "fits" / _file("calibration")
        file.unlink()
        file.with_name(f"{file.stem.rpartition('-')[0]}-{digest}.pt").write_bytes(stream.getvalue())

    def read(folder: Path) -> None:
        plan = StaticQuantization(algorithms=[]).plan
        for calibration in Fit(folder / "fits" / NAME).store.calibrations(_calibrated_graph()):
            assert isinstance(calibration.provenance.samples, int)
            plan.fits(calibration, "of another graph")

    return prepare, read


def _paths(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of a state, of one of all values only."""
    for key in list(state)[:1] if path == ("statistics",) else list(state):
        yield (*path, key)
        if isinstance(state[key], dict):
            yield from _paths(state[key], (*path, key))


def _replaced_in_fit(folder: Path, piece: str, kind: str) -> None:
    _write(folder)
    _replaced(folder / "fits", _file(piece), kind)


def _replaced(folder: Path, name: str, kind: str) -> None:
    """Put something else in the place of a file; a link leads to the file itself, elsewhere."""
    file, elsewhere = folder / name, folder / "elsewhere"
    elsewhere.write_bytes(undamaged()[name if name in undamaged() else _file(CHECKPOINT)])
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind in ("empty", "text"):
        file.write_text("" if kind == "empty" else "what nobody expects")
    else:
        file.symlink_to({"device": Path("/dev/zero"), "link": elsewhere, "loop": file}[kind])


def _flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 8))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def _shuffled(content: bytes, chance: random.Random) -> bytes:
    """A piece is doubled, left out, set to zero or moved to the end."""
    start = chance.randrange(len(content))
    end = min(len(content), start + chance.choice((1, 16, 300)))
    piece = content[start:end]
    middle, last = chance.choice(((piece * 2, b""), (b"", b""), (bytes(len(piece)), b""), (b"", piece)))
    return content[:start] + middle + content[end:] + last


def _recomputed(content: bytes, chance: random.Random) -> bytes:
    """A member is damaged, and its checksum is that of the damaged one."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(stream, "w") as target:
        members = source.infolist()
        chosen = chance.choice([member.filename for member in members if member.file_size])
        chosen = members[0].filename if chance.random() < 0.8 else chosen  # the description
        for member in members:
            held = source.read(member)
            damaged = chance.choice((_flipped, _cut, _shuffled))(held, chance) if member.filename == chosen else held
            target.writestr(member.filename, damaged)
    return stream.getvalue()


def _record(content: bytes, chance: random.Random, part: str, value: Any) -> bytes:
    return _sealed(json.loads(content) | {part: value}, reseal=part != "digest")


def _live(content: bytes, chance: random.Random, value: Any) -> bytes:
    record = json.loads(content)
    record["checkpoints"]["live"] = value
    if isinstance(value, str):
        record["sha256"][value] = "0" * 64
    return _sealed(record)


def _sealed(record: dict[str, Any], reseal: bool = True) -> bytes:
    """The text of a record, with the digest that belongs to it."""
    told = json.dumps({name: record[name] for name in ("checkpoints", "sha256")}, sort_keys=True)
    digest = {"digest": hashlib.sha256(told.encode()).hexdigest()[:16]} if reseal else {}
    return json.dumps(record | digest).encode()


def _encoded(content: bytes, chance: random.Random, value: Any) -> bytes:
    return json.dumps(value).encode()
