"""What is kept of a fit is used undamaged or not at all, and whoever waits for it knows for whom."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import Images, Tiny, fit, trainer

from lq_plugin import StaticQuantization
from lq_plugin.apps.fits import KeepFit
from lq_plugin.apps.kept_fit import Fit
from lq_plugin.callbacks.untrained import without_training
from lq_plugin.checkpoints import Checkpoint, read_file
from lq_plugin.errors import ConfigError

NAME = "0123456789abcdef"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all fits, with one that was done."""
    folder = tmp_path_factory.mktemp("made")
    best = ModelCheckpoint(folder, "best", monitor="val/loss", save_last=True)
    fit(folder, Tiny(), StaticQuantization(), KeepFit(Fit(folder / "fits" / NAME)), best)
    return folder / "fits"


@pytest.fixture
def kept(made: Path, tmp_path: Path) -> Fit:
    shutil.copytree(made, tmp_path / "fits")
    return Fit(tmp_path / "fits" / NAME)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    return lambda: capsys.readouterr().out


def flip(file: Path, position: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * position)] ^= 1
    file.write_bytes(content)


def change(file: Path, **changes: Any) -> None:
    """Change a record, and its digest with it."""
    record = json.loads(file.read_text()) | changes
    digest = hashlib.sha256(
        json.dumps({name: record[name] for name in ("checkpoints", "sha256")}, sort_keys=True).encode()
    )
    file.write_text(json.dumps(record | {"digest": digest.hexdigest()[:16]}))


def usable(kept: Fit) -> bool:
    with kept.claimed("here"):
        return kept.usable()


def test_what_was_kept_is_used(kept: Fit, made: Path, said: Callable[[], str]) -> None:
    assert usable(kept)
    assert {
        choice: read_file(kept.checkpoint(choice)).name for choice in ("best", "best:val/loss", "last", "live")
    } == {
        "best": "best.ckpt",
        "best:val/loss": "best.ckpt",
        "last": "last.ckpt",
        "live": "live.ckpt",
    }
    assert said() == ""
    record = json.loads((kept.folder / "fit.json").read_text())
    assert set(record["sha256"]) == set(record["checkpoints"].values())


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped bit of the best": (lambda folder: flip(folder / "0/best.ckpt"), r"'0/best\.ckpt' was changed"),
    "flipped bit of the live": (lambda folder: flip(folder / "live.ckpt"), r"'live\.ckpt' was changed"),
    "truncated checkpoint": (lambda folder: os.truncate(folder / "live.ckpt", 1000), r"'live\.ckpt' was changed"),
    "missing checkpoint": (lambda folder: (folder / "live.ckpt").unlink(), r"'live\.ckpt' is missing"),
    "checkpoint as a pipe": (
        lambda folder: ((folder / "live.ckpt").unlink(), os.mkfifo(folder / "live.ckpt")),
        r"'live\.ckpt' is not a regular file",
    ),
    "checkpoint as a link": (
        lambda folder: (
            (folder / "live.ckpt").rename(folder.parent / "elsewhere"),
            (folder / "live.ckpt").symlink_to("../elsewhere"),
        ),
        r"'live\.ckpt' is a link, or lies outside",
    ),
    "folder as a link": (
        lambda folder: ((folder.rename(folder.parent / "elsewhere")), folder.symlink_to("elsewhere")),
        r"fit\.json is a link, or lies outside",
    ),
    "no record": (lambda folder: (folder / "fit.json").unlink(), r"fit\.json is missing"),
    "empty record": (lambda folder: (folder / "fit.json").write_text(""), r"fit\.json is not valid JSON"),
    "garbage record": (lambda folder: (folder / "fit.json").write_bytes(b"\x80\x02]"), r"fit\.json is not valid JSON"),
    "deep record": (lambda folder: (folder / "fit.json").write_text("[" * 10**5), r"fit\.json is nested too deeply"),
    "record as a list": (lambda folder: (folder / "fit.json").write_text("[]"), r"fit\.json does not say which"),
    "changed record": (
        lambda folder: (folder / "fit.json").write_text((folder / "fit.json").read_text().replace('"best"', '"bett"')),
        r"fit\.json was changed",
    ),
    "record as a folder": (
        lambda folder: ((folder / "fit.json").unlink(), (folder / "fit.json").mkdir()),
        r"fit\.json is not a regular file",
    ),
    "record without sha256": (lambda folder: change(folder / "fit.json", sha256={}), r"fit\.json lacks the sha256"),
    "record of a list": (
        lambda folder: change(folder / "fit.json", checkpoints={"live": ["live.ckpt"]}),
        r"fit\.json lacks the sha256",
    ),
    "file outside": (
        lambda folder: change(folder / "fit.json", checkpoints={"live": "../x"}, sha256={"../x": "0"}),
        r"'\.\./x' is a link, or lies outside",
    ),
    "absolute file": (
        lambda folder: change(folder / "fit.json", checkpoints={"live": "/etc/passwd"}, sha256={"/etc/passwd": "0"}),
        r"'/etc/passwd' is a link, or lies outside",
    ),
    "no character": (
        lambda folder: change(folder / "fit.json", checkpoints={"live": "\ud800"}, sha256={"\ud800": "0"}),
        r"surrogates not allowed",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_fit_is_put_aside(damage: str, kept: Fit, said: Callable[[], str]) -> None:
    prepare, message = DAMAGED[damage]
    prepare(kept.folder)
    assert not usable(kept)
    told = said()
    assert re.search(message, told), told
    assert f"the cached fit in {kept.folder}: " in told
    assert f"It was renamed to {NAME}.damaged" in told
    assert "fit.reuse=false" in told
    assert not kept.folder.exists()
    assert os.path.lexists(kept.folder.with_name(f"{NAME}.damaged"))
    assert not usable(kept)
    assert said() == ""


def test_what_is_put_aside_takes_the_place_of_what_was_before(kept: Fit, made: Path) -> None:
    for damaged in ("live.ckpt", "fit.json"):
        flip(kept.folder / damaged)
        assert not usable(kept)
        shutil.copytree(made / NAME, kept.folder)
    aside = kept.folder.with_name(f"{NAME}.damaged")
    assert (aside / "live.ckpt").read_bytes() == (made / NAME / "live.ckpt").read_bytes()
    assert (aside / "fit.json").read_bytes() != (made / NAME / "fit.json").read_bytes()
    assert usable(kept)


def test_after_a_damaged_fit_another_one_is_kept(kept: Fit, tmp_path: Path) -> None:
    flip(kept.folder / "live.ckpt")
    with kept.claimed("here"):
        assert not kept.usable()
        fit(tmp_path, Tiny(), KeepFit(kept), enable_checkpointing=False)
    assert usable(kept)


def test_who_waits_says_for_whom(kept: Fit, said: Callable[[], str]) -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with Fit(kept.folder).claimed("/runs/one"):
            inside.set()
            leave.wait(30)

    holder = threading.Thread(target=other)
    holder.start()
    assert inside.wait(30)
    waiting = threading.Thread(target=usable, args=[kept])
    waiting.start()
    told = ""
    while "waiting for" not in told and waiting.is_alive():
        told += said()
    leave.set()
    waiting.join(30)
    holder.join(30)
    assert f"waiting for process {os.getpid()} on {socket.gethostname()!r} (run folder '/runs/one')" in told
    assert str(kept.folder) in told
    assert not kept.folder.with_name(f"{NAME}.holder").exists()


def test_a_holder_that_said_nothing_readable_is_another_job(kept: Fit, said: Callable[[], str]) -> None:
    for text in ("", "[]", '{"pid": "x"}'):
        kept.folder.with_name(f"{NAME}.holder").write_text(text)
        assert kept._who() == "another job"


def test_what_killed_runs_left_is_removed(kept: Fit) -> None:
    fits, script = kept.folder.parent, "import os, sys, time; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        left = [fits / f"{NAME}.{killed.pid}", fits / f"fedcba9876543210.{killed.pid}"]
        for folder in left:
            (folder / "0").mkdir(parents=True)
        (fits / "fedcba9876543210.lock").touch()
        (fits / "mine.1").mkdir()  # of somebody else
        killed.kill()
    assert usable(kept)
    assert not any(folder.exists() for folder in left)
    assert (fits / "mine.1").exists()


def test_what_another_job_is_writing_stays(kept: Fit) -> None:
    other = Fit(kept.folder.with_name("fedcba9876543210"))
    scratch = other.folder.with_name("fedcba9876543210.1")
    inside, leave = threading.Event(), threading.Event()

    def writing() -> None:
        with other.claimed("there"):
            scratch.mkdir()
            inside.set()
            leave.wait(30)

    writer = threading.Thread(target=writing)
    writer.start()
    assert inside.wait(30)
    try:
        assert usable(kept)
        assert scratch.exists()
    finally:
        leave.set()
        writer.join(30)


def test_what_was_calibrated_once_is_kept_beside_the_fit(kept: Fit, tmp_path: Path, said: Callable[[], str]) -> None:
    assert usable(kept)

    def read(choice: str) -> Checkpoint:
        return read_file(kept.checkpoint(choice))

    for extra_pass in (True, False):
        callback = StaticQuantization(samples=8)  # of which no checkpoint holds a calibration
        made = trainer(tmp_path, callback, enable_progress_bar=True)
        without_training(made, Tiny(), Images(), read, Fit(kept.folder).store)
        assert ("calibrating 'static' in a separate validation pass" in said()) == extra_pass
        assert callback.candidate is not None
        assert callback.candidate.calibration.provenance.checkpoint == "best.ckpt"
        assert len(list(kept.folder.parent.glob(f"{NAME}.store/calibrations/*.pt"))) == 1
    assert usable(kept)


def test_a_folder_that_cannot_be_written_to_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "fits").write_text("in the way")
    with (
        pytest.raises(ConfigError, match=r"fit\.folder: .* cannot be written to .* fit\.reuse=false"),
        Fit(tmp_path / "fits" / NAME).claimed("here"),
    ):
        pass
