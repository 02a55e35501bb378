"""Signatures of bundles: Ed25519 over the manifest, which contains the SHA-256 of every other file."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from serving.bundle.manifest import MANIFEST, SIGNATURE, verify
from setrec.atomic import atomic_file
from setrec.errors import BundleError, ConfigError

_BYTES = 64
_PEM = serialization.Encoding.PEM


def make_keys(file: Path) -> Path:
    """Write a new private key to ``file``, readable by its owner only, and the public key to a file next to it; return
    the path of the latter.

    Raises:
        ConfigError: one of the files exists.
    """
    public = file.with_name(f"{file.name}.pub")
    if found := [path for path in (file, public) if path.exists()]:
        raise ConfigError(f"{found[0]}: exists; keys are not overwritten")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(secret)
    public.write_bytes(key.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return public


def sign(bundle: Path, key_file: Path) -> None:
    """Verify every file of a bundle against its manifest, and write ``manifest.sig``.

    Raises:
        BundleError: the bundle cannot be used. ConfigError: the key cannot be used.
    """
    verify(bundle)
    try:
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{key_file}: no private key (create one with `setrec bundle key`)") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{key_file}: not an Ed25519 key")
    with atomic_file(bundle / SIGNATURE) as temporary:
        temporary.write_bytes(key.sign((bundle / MANIFEST).read_bytes()))


def require_signature(bundle: Path, key_file: Path) -> None:
    """Verify that the manifest of a bundle is signed with the private key that belongs to ``key_file``.

    Raises:
        BundleError: it is not signed, signed with another key, or was changed since.
        ConfigError: the key cannot be used.
    """
    try:
        key = serialization.load_pem_public_key(key_file.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{key_file}: no public key (create one with `setrec bundle key`)") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{key_file}: not an Ed25519 key")
    file = bundle / SIGNATURE
    if not file.is_file():
        raise BundleError(f"{bundle}: not signed (no {SIGNATURE})")
    try:
        with file.open("rb") as stream:
            key.verify(stream.read(_BYTES + 1), (bundle / MANIFEST).read_bytes())
    except (OSError, InvalidSignature) as error:
        raise BundleError(f"{bundle}: the signature of its manifest does not match {key_file}") from error


def verify_signed(bundle: Path, key_file: Path | None) -> None:
    """Verify a bundle's files, and its signature if there is a key.

    Raises:
        BundleError, ConfigError: see :func:`require_signature`.
    """
    if key_file is not None:
        require_signature(bundle, key_file)
    verify(bundle)
