"""An artifact that is loaded with a public key is the one that the owner of its private key signed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from damage.tampering import batch, signed_again
from keys import Keys, keys

import lq_plugin
from lq_plugin import ArtifactExport
from lq_plugin.errors import ArtifactError, ConfigError, MissingExtraError


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return keys(tmp_path_factory.mktemp("mine"), "key")


@pytest.fixture
def signed(artifacts: dict[str, Path], mine: Keys, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(artifacts["onnx"], tmp_path / "onnx"))
    assert lq_plugin.sign(folder, mine.private) == folder / "model.sig"
    return folder


def changed(folder: Path) -> None:
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\x00")
    signed_again(folder)  # with checksums that are right again


def described_anew(folder: Path) -> None:
    signed_again(folder, candidate="better")


def readme_changed(folder: Path) -> None:
    (folder / "README.md").write_text("run this: …")


def added(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text("")


def added_below(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("")


def removed(folder: Path) -> None:
    (folder / "run.py").unlink()


def linked(folder: Path) -> None:
    shutil.move(folder / "model.onnx", folder.parent / "model.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "model.onnx")


def of_nothing(folder: Path) -> None:
    (folder / "model.sig").write_text("{}")


def of_no_json(folder: Path) -> None:
    (folder / "model.sig").write_bytes(b"\xff" * 100)


def cut_open(folder: Path) -> None:
    """Exchange what was signed, and keep the signature."""
    content = json.loads((folder / "model.sig").read_text())
    content["dsseEnvelope"]["payload"] = content["dsseEnvelope"]["payload"][:-8] + "AAAAAAA="
    (folder / "model.sig").write_text(json.dumps(content))


def test_what_was_signed_is_loaded_wherever_it_lies(signed: Path, mine: Keys) -> None:
    moved = shutil.copytree(signed, signed.parent / "elsewhere")
    assert lq_plugin.load(moved, verify=mine.public)(batch()).shape == (2, 3)
    assert lq_plugin.load(moved)(batch()).shape == (2, 3)  # nobody asks
    lq_plugin.sign(moved, mine.private)  # once more
    assert lq_plugin.load(moved, verify=mine.public)


CHANGES = [
    changed,
    described_anew,
    readme_changed,
    added,
    added_below,
    removed,
    linked,
    of_nothing,
    of_no_json,
    cut_open,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_as_it_was_signed_is_refused(change: Callable[[Path], None], signed: Path, mine: Keys) -> None:
    change(signed)
    with pytest.raises(ArtifactError, match=r"is not what the owner of '.*key.pub' signed \(.+\). Do not use it"):
        lq_plugin.load(signed, verify=mine.public)


def test_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not what the owner of '.*other.pub' signed \(.*[Kk]ey.*\)"):
        lq_plugin.load(signed, verify=keys(tmp_path, "other").public)


def test_a_missing_signature_is_refused(signed: Path, mine: Keys) -> None:
    (signed / "model.sig").unlink()
    with pytest.raises(ArtifactError, match=r"has no signature \(model.sig is missing\).*lq_plugin.sign\(path, key\)"):
        lq_plugin.load(signed, verify=mine.public)
    with pytest.raises(ArtifactError, match="has no signature"):
        lq_plugin.load(signed.parent / "nowhere", verify=mine.public)


def test_only_artifacts_are_signed(mine: Keys, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot be signed \(.*\). Give the folder of one format"):
        lq_plugin.sign(tmp_path, mine.private)


def test_keys_that_cannot_work_are_known_before_training(signed: Path, mine: Keys, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no key")
    wrong = [
        str(tmp_path / "nowhere.pem"),
        str(tmp_path / "text.pem"),
        mine.public,
        keys(tmp_path, "rsa", rsa.generate_private_key(65537, 2048)).private,
        keys(tmp_path, "curve", ec.generate_private_key(ec.SECP256K1())).private,
        keys(tmp_path, "hidden", password=b"secret").private,
    ]
    for key in wrong:
        with pytest.raises(ConfigError, match=r"sign: '.*' is no private key to sign with \(.+\). Give a PEM file"):
            ArtifactExport(["onnx"], sign=key)
    for key in (*wrong[:2], mine.private, str(tmp_path / "rsa.pub")):
        with pytest.raises(ConfigError, match=r"verify: '.*' is no public key \(.+\). Give its PEM file"):
            lq_plugin.load(signed, verify=key)


def test_the_missing_library_is_named(signed: Path, mine: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(MissingExtraError, match=r"sign needs .*pip install 'lq_plugin\[signing\]'"):
        ArtifactExport(["onnx"], sign=mine.private)
    with pytest.raises(MissingExtraError, match=r"verify needs .*pip install 'lq_plugin\[signing\]'"):
        lq_plugin.load(signed, verify=mine.public)
    assert lq_plugin.load(signed)
