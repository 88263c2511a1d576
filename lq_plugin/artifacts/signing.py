"""Signatures of artifacts, made and checked with keys by the library model-signing. No network is used.

Anybody who changes a file can write its new checksum; a signature needs the private key. ``model.sig`` covers every
file in the folder but itself, so whatever is changed, added or removed shows.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from lq_plugin.artifacts import description
from lq_plugin.durable import write_whole
from lq_plugin.errors import ArtifactError, ConfigError, require
from lq_plugin.untrusted import read_json, regular_file

FILE = "model.sig"
Key = str | os.PathLike[str]


def sign(path: Key, key: Key) -> Path:
    """Sign all files in an artifact's folder, in ``model.sig``; an earlier signature is replaced.

    Args:
        path: the folder.
        key: PEM file of an elliptic-curve private key (P-256, P-384 or P-521), not encrypted.

    Returns:
        The signature's file.

    Raises:
        ArtifactError: the folder is not an artifact, or holds what cannot be signed, such as a link.
        ConfigError: the file is no such key.
        MissingExtraError: model-signing is not installed.
    """
    signer, folder = private(key, "key"), Path(path)
    try:
        regular_file(folder / description.FILE)
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / FILE
            signer.set_hashing_config(_hashing(_library("key"))).sign(folder, made)
            write_whole(folder / FILE, made.read_bytes())
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(
            f"path: {str(folder)!r} cannot be signed ({error}). Give the folder of one format, such as "
            "'…/quantized/static/onnx', as it was exported."
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


def check(path: Key, key: Key) -> None:
    """Check that an artifact is as the owner of a key signed it.

    Args:
        path: the artifact's folder.
        key: PEM file of the public key.

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
        verifier.set_hashing_config(_hashing(library)).verify(folder, folder / FILE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(
            f"path: {str(folder)!r} has no signature ({FILE} is missing), and verify asks for one. Copy the whole "
            "folder from where it was signed, or have it signed: lq_plugin.sign(path, key)."
        ) from error
    except Exception as error:  # a file from outside: whatever the library says of it
        reason = str(error) or type(error).__name__
        raise ArtifactError(
            f"path: {str(folder)!r} is not what the owner of {str(key)!r} signed ({reason}). "
            "Do not use it: copy it again from where it was signed, or give the public key of who signed it."
        ) from error


def _refused() -> tuple[type[Exception], ...]:
    """What is raised for files that hold no key, keys of another kind (such as RSA) and curves that are not known."""
    unknown: type[Exception] = require("cryptography.exceptions", "signing", "sign").UnsupportedAlgorithm
    return OSError, ValueError, TypeError, AttributeError, unknown


def _hashing(library: ModuleType) -> Any:
    """Every file but the signature counts, those of git too."""
    return library.hashing.Config().set_ignored_paths(paths=[FILE], ignore_git_paths=False)


def _library(argument: str) -> ModuleType:
    return require("model_signing", "signing", argument)
