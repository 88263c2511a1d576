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
from lq_plugin import ArtifactExport, checksums
from lq_plugin.artifacts.description import read
from lq_plugin.errors import ArtifactError, ConfigError, MissingExtraError
from lq_plugin.handing_over import hand_over
from lq_plugin.plan import Plan
from lq_plugin.report.environment import environment
from lq_plugin.report.manifest import Entry, Manifest


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
    (folder / ".cache").mkdir()
    (folder / ".cache" / "sitecustomize.py").write_text("")


def removed(folder: Path) -> None:
    (folder / "run.py").unlink()


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
    (signed.parent / "link").symlink_to(moved)
    assert lq_plugin.load(signed.parent / "link", verify=mine.public)


def test_what_hubs_add_is_not_signed(signed: Path, mine: Keys) -> None:
    for name in (".gitattributes", ".gitignore", ".git/config", ".cache/huggingface/download/model.onnx.metadata"):
        (signed / name).parent.mkdir(parents=True, exist_ok=True)
        (signed / name).write_text("")
    assert lq_plugin.load(signed, verify=mine.public)
    lq_plugin.sign(signed, mine.private)
    shutil.rmtree(signed / ".git")
    assert lq_plugin.load(signed, verify=mine.public)


def test_no_file_is_read_for_its_checksum_too(signed: Path, mine: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path) -> str:
        raise AssertionError(file)

    monkeypatch.setattr(checksums, "of_file", fail)
    assert lq_plugin.load(signed, verify=mine.public)
    with pytest.raises(AssertionError):
        lq_plugin.load(signed)


@pytest.mark.parametrize("name", ["model.onnx", "README.md"])
def test_links_are_neither_signed_nor_verified(name: str, signed: Path, mine: Keys) -> None:
    shutil.move(signed / name, signed.parent / name)
    (signed / name).symlink_to(signed.parent / name)
    with pytest.raises(ArtifactError, match=rf"{name}' is a link, and signatures are of files. Put the file itself"):
        lq_plugin.load(signed, verify=mine.public)
    with pytest.raises(ArtifactError, match=rf"{name}' is a link"):
        lq_plugin.sign(signed, mine.private)


CHANGES = [
    changed,
    described_anew,
    readme_changed,
    added,
    added_below,
    removed,
    of_nothing,
    of_no_json,
    cut_open,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_as_it_was_signed_is_refused(change: Callable[[Path], None], signed: Path, mine: Keys) -> None:
    change(signed)
    with pytest.raises(ArtifactError, match=r"is not what the owner of '.*key.pub' signed \([^\\]+\). Do not use it"):
        lq_plugin.load(signed, verify=mine.public)


def test_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not what the owner of '.*other.pub' signed \(.*[Kk]ey.*\)"):
        lq_plugin.load(signed, verify=keys(tmp_path, "other").public)


def test_a_missing_signature_is_refused(signed: Path, mine: Keys) -> None:
    (signed / "model.sig").unlink()
    with pytest.raises(ArtifactError, match=r"has no signature \(model.sig is missing\).*lq_plugin.sign\(path, key\)"):
        lq_plugin.load(signed, verify=mine.public)
    with pytest.raises(ArtifactError, match=r"nowhere' holds no artifact \(artifact.json is missing\)"):
        lq_plugin.load(signed.parent / "nowhere", verify=mine.public)


def test_only_sound_artifacts_are_signed(signed: Path, mine: Keys, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no artifact .* Give the folder of one format"):
        lq_plugin.sign(tmp_path, mine.private)
    (signed / "model.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match="was changed or truncated after export"):
        lq_plugin.sign(signed, mine.private)


def test_what_fails_for_one_artifact_is_in_the_manifest_and_stops_no_other(
    artifacts: dict[str, Path], mine: Keys, tmp_path: Path
) -> None:
    made = [read(Path(shutil.copytree(artifacts[name], tmp_path / "static" / name))) for name in ("onnx", "pt2")]
    named = [Entry("static", one.method, one.runtime, one.format) for one in made]
    entries = tuple(entry.exported(one, tmp_path) for entry, one in zip(named, made, strict=True))
    content = Manifest(artifacts=entries, environment=environment())
    (tmp_path / "static" / "onnx" / "README.md").unlink()
    (tmp_path / "static" / "onnx" / "README.md").mkdir()
    (failed,) = hand_over(Plan(sign=mine.private), tmp_path, content)["static"]
    assert failed.startswith("static/onnx has no README.md. IsADirectoryError: ")
    assert all(lq_plugin.load(one.path, verify=mine.public) for one in made)
    gone = hand_over(Plan(sign=str(tmp_path / "gone.pem")), tmp_path, content)["static"]
    assert [said.partition(". ")[0] for said in gone] == [
        "static/onnx has no README.md",
        "static/onnx is not signed",
        "static/pt2 is not signed",
    ]


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
