"""Signatures of artifacts, made and checked with keys by the library model-signing. No network is used.

Anybody who changes a file can write its new checksum; a signature needs the private key. ``model.sig`` covers every
file in the folder, so whatever is changed, added or removed shows. It does not cover itself and what hubs add to a
folder that they hold: ``.gitattributes`` and the like, and a record of the download. Nothing reads these.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from lq_plugin.artifacts import description
from lq_plugin.durable import write_whole
from lq_plugin.errors import ArtifactError, ConfigError, require
from lq_plugin.untrusted import read_json

FILE = "model.sig"
_NOT_SIGNED = (FILE, ".cache/huggingface")  # the second is left by huggingface_hub where it downloads to a folder
_DIGESTS = re.compile(r""": Expected .*?(?=["'], ["']Hash mismatch|["']\]$)""")  # of a file, to the next file
Key = str | os.PathLike[str]


def sign(path: Key, key: Key) -> Path:
    """Sign all files in an artifact's folder, in ``model.sig``; an earlier signature is replaced.

    Args:
        path: the folder.
        key: PEM file of an elliptic-curve private key (P-256, P-384 or P-521), not encrypted.

    Returns:
        The signature's file.

    Raises:
        ArtifactError: the folder is not an artifact, a file of it was changed since it was exported, or it holds what
            cannot be signed, such as a link.
        ConfigError: the file is no such key.
        MissingExtraError: model-signing is not installed.
    """
    return write(Path(path), private(key, "key"))


def write(folder: Path, signer: Any) -> Path:
    """Sign like :func:`sign`, with what :func:`private` has returned."""
    description.read(folder)  # a signature would pass on what is damaged as if it were sound
    place = _without_links(folder)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / FILE
            signer.set_hashing_config(_hashing(_library("sign"))).sign(place, made)
            write_whole(place / FILE, made.read_bytes())
    except ValueError as error:
        raise ArtifactError(
            f"path: {str(folder)!r} cannot be signed ({error}). Remove what does not belong to it, or export again."
        ) from error
    return folder / FILE


def private(key: Key, argument: str) -> Any:
    """Return what signs with a private key.

    Raises:
        ConfigError: it is none.
        MissingExtraError: model-signing is not installed.
    """
    config = _library(argument).signing.Config()
    try:
        return config.use_elliptic_key_signer(private_key=Path(key))
    except _refused() as error:
        raise ConfigError(
            f"{argument}: {str(key)!r} is no private key to sign with ({error}). Give a PEM file that is not "
            "encrypted, as made by: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
        ) from error


def check(path: Key, key: Key) -> Path:
    """Check that an artifact is as the owner of a key signed it.

    Args:
        path: the artifact's folder.
        key: PEM file of the public key.

    Returns:
        The folder itself, where the path is a link to it: what was checked is there, wherever the link leads next.

    Raises:
        ArtifactError: there is no signature, it is another key's, or a file was changed, added or removed.
        ConfigError: the file is no public key.
        MissingExtraError: model-signing is not installed.
    """
    library, folder = _library("verify"), Path(path)
    try:
        verifier = library.verifying.Config().use_elliptic_key_verifier(public_key=Path(key))
    except _refused() as error:
        raise ConfigError(
            f"verify: {str(key)!r} is no public key ({error}). Give its PEM file, as made by: "
            "openssl ec -in key.pem -pubout -out public.pem"
        ) from error
    try:
        read_json(folder / FILE)  # whose size and nesting are bounded, before the library reads it
        place = _without_links(folder)
        verifier.set_hashing_config(_hashing(library)).verify(place, place / FILE)
    except ArtifactError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        description.described(folder)  # says where there is no artifact at all
        raise ArtifactError(
            f"path: {str(folder)!r} has no signature ({FILE} is missing), and verify asks for one. Copy the whole "
            "folder from where it was signed, or have it signed: lq_plugin.sign(path, key)."
        ) from error
    except Exception as error:  # a file from outside: whatever the library says of it
        raise ArtifactError(
            f"path: {str(folder)!r} is not what the owner of {str(key)!r} signed ({_reason(error)}). "
            "Do not use it: copy it again from where it was signed, or give the public key of who signed it."
        ) from error
    return place


def _reason(error: Exception) -> str:
    """What the library says, without the bytes of digests that differ."""
    said = _DIGESTS.sub("", str(error).strip()).replace("\\'", "'")
    return said if said and isinstance(error, ValueError) else f"{type(error).__name__} {said}".strip()


def _without_links(folder: Path) -> Path:
    """Return a folder itself, where the path is a link to it; what is in it may be anything but a link."""
    place = folder.resolve()
    for path in place.rglob("*"):
        if path.is_symlink():
            raise ArtifactError(
                f"path: {str(path)!r} is a link, and signatures are of files. Put the file itself in its place; "
                "huggingface_hub does where it downloads with local_dir."
            )
    return place


def _refused() -> tuple[type[Exception], ...]:
    """What is raised for files that hold no key, keys of another kind (such as RSA) and curves that are not known."""
    unknown: type[Exception] = require("cryptography.exceptions", "signing", "sign").UnsupportedAlgorithm
    return OSError, ValueError, TypeError, AttributeError, unknown


def _hashing(library: ModuleType) -> Any:
    return library.hashing.Config().set_ignored_paths(paths=_NOT_SIGNED, ignore_git_paths=True)


def _library(argument: str) -> ModuleType:
    return require("model_signing", "signing", argument)
