"""Keys to sign artifacts with, made anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Keys(NamedTuple):
    """PEM files of the two halves of a key."""

    private: str
    public: str


def keys(folder: Path, name: str, made: Any = None, password: bytes | None = None) -> Keys:
    """Write a key, of the curve P-256 unless another one is given."""
    made = made or ec.generate_private_key(ec.SECP256R1())
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(made.private_bytes(pem, pkcs8, hidden))
    public.write_bytes(made.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return Keys(str(private), str(public))
