"""Who made a bundle: an Ed25519 signature (RFC 8032) over the bytes of its manifest.

The manifest holds the SHA-256 of every other member, so the signature covers the whole bundle; it lies beside the manifest
as a member of its own, 64 bytes, and leaves the model's id what it was. Keys are ordinary PEM files, and the signature is
the plain one, so that anybody can check it without flawline:

    openssl pkeyutl -verify -pubin -inkey plant.pub -rawin -in manifest.json -sigfile manifest.sig

`cryptography` computes it: the one maintained library for this with wheels for x86 and Arm, and encrypted keys in the format
that openssl reads. It is imported only where a key is used.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from flawline_inspect.errors import BundleError, InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = [
    "KEY_VARIABLE",
    "PASSPHRASE_VARIABLE",
    "SIGNATURE_BYTES",
    "check_signature",
    "fingerprint",
    "key_from_environment",
    "new_key_pair",
    "public_key_from_file",
    "sign",
]

KEY_VARIABLE = "FLAWLINE_PUBLIC_KEY"
"""Names a public key that every command of this environment asks of the bundles that it opens."""
PASSPHRASE_VARIABLE = "FLAWLINE_SIGNING_PASSPHRASE"
SIGNATURE_BYTES = 64
_MAX_KEY_BYTES = 64 << 10
_MIN_PASSPHRASE = 8


def key_from_environment() -> Path | None:
    """The public key that `FLAWLINE_PUBLIC_KEY` names; None where it is not set or empty."""
    name = os.environ.get(KEY_VARIABLE)
    return Path(name) if name else None


def new_key_pair(passphrase: str | None) -> tuple[bytes, bytes]:
    """A private key, encrypted if there is a passphrase, and its public key, both PEM. Raises `InputError`."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if passphrase is not None and len(passphrase) < _MIN_PASSPHRASE:
        raise InputError(
            f"{PASSPHRASE_VARIABLE} has {len(passphrase)} characters, expected at least {_MIN_PASSPHRASE}; "
            "take a longer one, or unset it for a key without"
        )
    private = Ed25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    return (
        private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption),
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def sign(manifest: bytes, key: Path, passphrase: str | None) -> bytes:
    """The signature of a manifest, 64 bytes. Raises `InputError` for a key that cannot be used."""
    return _private_key_from_file(key, passphrase).sign(manifest)


def check_signature(manifest: bytes, signature: bytes | None, public_key: Path, source: str) -> None:
    """Raises `BundleError` unless the signature was made over these bytes with the key that belongs to `public_key`."""
    from cryptography.exceptions import InvalidSignature

    key = public_key_from_file(public_key)
    if signature is None:
        raise BundleError(
            f"{source}: is not signed, and only bundles signed for {public_key} may be used here; have it signed with "
            "`flawline bundle sign`"
        )
    try:
        key.verify(signature, manifest)
    except InvalidSignature as exc:
        raise BundleError(
            f"{source}: its signature is not one of {public_key} (key {fingerprint(key)}) over this manifest: it was signed "
            "with another key, or altered since; take it again from whoever signed it"
        ) from exc


def fingerprint(key: Ed25519PublicKey) -> str:
    """16 hex digits to compare over the telephone: of the SHA-256 of the key's 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def public_key_from_file(path: Path) -> Ed25519PublicKey:
    """Raises `InputError` for a file that holds no Ed25519 public key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read(path)
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise InputError(
            f"{path}: is no public key in PEM form; give the .pub file of `flawline bundle keygen`"
        ) from exc
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path}: is a key of another kind, expected Ed25519; `flawline bundle keygen` makes one")
    return key


def _private_key_from_file(path: Path, passphrase: str | None) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path)
    is_encrypted = b"ENCRYPTED" in data
    if is_encrypted and passphrase is None:
        raise InputError(f"{path}: is encrypted; put its passphrase into {PASSPHRASE_VARIABLE}")
    try:
        key = load_pem_private_key(data, passphrase.encode() if is_encrypted and passphrase is not None else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        # Not the library's words: they may quote what is secret.
        wrong = f", or {PASSPHRASE_VARIABLE} is not its passphrase" if is_encrypted else ""
        raise InputError(
            f"{path}: is no private key in PEM form{wrong}; give the .key file of `flawline bundle keygen`"
        ) from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path}: is a key of another kind, expected Ed25519; `flawline bundle keygen` makes one")
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except OSError as exc:
        raise InputError(f"{path}: the key cannot be read ({exc.strerror or exc})") from exc
