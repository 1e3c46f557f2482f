"""Signed bundles: whose they are, and that neither another's nor an altered one passes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.inspect_.bundles import manifest_json, small_bundle, small_members, zipped

from flawline_inspect.bundle import MANIFEST, SIGNATURE, Bundle
from flawline_inspect.bundle_command import keygen, sign, verify
from flawline_inspect.cli import main
from flawline_inspect.config_command import check
from flawline_inspect.errors import BundleError, InputError
from flawline_inspect.signature import KEY_VARIABLE, PASSPHRASE_VARIABLE, SIGNATURE_BYTES


@dataclass(frozen=True)
class Keys:
    private: Path
    public: Path


@pytest.fixture(autouse=True)
def _no_keys_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)


def keys(folder: Path, name: str = "plant") -> Keys:
    keygen(folder / name)
    return Keys(folder / f"{name}.key", folder / f"{name}.pub")


@pytest.fixture
def plant(tmp_path: Path) -> Keys:
    return keys(tmp_path)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "part.flawline"
    path.write_bytes(small_bundle())
    return path


@pytest.fixture
def signed(bundle: Path, plant: Keys) -> Path:
    sign(bundle, key=plant.private)
    return bundle


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def altered(path: Path, **changes: bytes) -> Path:
    """The same file with other members; keys with __ for the dot."""
    whole = members(path) | {name.replace("__", "."): data for name, data in changes.items()}
    path.write_bytes(zipped(whole.items()))
    return path


def test_a_signed_bundle_is_the_same_model(bundle: Path, plant: Keys, tmp_path: Path) -> None:
    """The id, the manifest and every member stay; one member of 64 bytes comes along; the old file can be kept."""
    before = members(bundle)
    sign(bundle, key=plant.private, out=tmp_path / "signed.flawline")
    after = members(tmp_path / "signed.flawline")
    assert len(after.pop(SIGNATURE)) == SIGNATURE_BYTES
    assert after == before == members(bundle)
    opened = Bundle.open(tmp_path / "signed.flawline", public_key=plant.public)
    assert opened.model_id == Bundle.open(bundle).model_id
    assert opened.public_key == plant.public


def test_signing_again_replaces_the_signature(signed: Path, plant: Keys, tmp_path: Path) -> None:
    """One signature a bundle: the last one counts, whoever's the one before was."""
    other = keys(tmp_path, "other")
    sign(signed, key=other.private)
    Bundle.open(signed, public_key=other.public)
    with pytest.raises(BundleError, match="signed with another key, or altered since"):
        Bundle.open(signed, public_key=plant.public)


def test_who_asks_for_nothing_gets_signed_and_unsigned(bundle: Path, plant: Keys) -> None:
    """A key is an offer: without one configured, nothing changes."""
    assert Bundle.open(bundle).signature is None
    sign(bundle, key=plant.private)
    assert Bundle.open(bundle).signature is not None


def test_an_unsigned_bundle_is_refused(bundle: Path, plant: Keys) -> None:
    """One sentence, with what was found and what to do."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle, public_key=plant.public)
    assert str(caught.value) == (
        f"{bundle}: is not signed, and only bundles signed for {plant.public} may be used here; have it signed with "
        "`flawline bundle sign`"
    )


@pytest.mark.parametrize("at", [0, 31, 32, 63])
def test_a_signature_with_one_wrong_bit_is_refused(signed: Path, plant: Keys, at: int) -> None:
    """Wherever the bit is."""
    bits = bytearray(members(signed)[SIGNATURE])
    bits[at] ^= 1
    altered(signed, **{SIGNATURE: bytes(bits)})
    with pytest.raises(BundleError, match="altered since"):
        Bundle.open(signed, public_key=plant.public)


def test_an_altered_manifest_is_refused_before_it_is_read(signed: Path, plant: Keys) -> None:
    """Also where the manifest is valid and lists its members truthfully: the threshold alone was raised."""
    tree = json.loads(members(signed)[MANIFEST])
    tree["calibration"]["threshold"] = 1e6
    altered(signed, manifest__json=json.dumps(tree).encode())
    assert Bundle.open(signed).threshold == 1e6
    with pytest.raises(BundleError, match="altered since"):
        Bundle.open(signed, public_key=plant.public)
    altered(signed, manifest__json=b"not even JSON")
    with pytest.raises(BundleError, match="altered since"):
        Bundle.open(signed, public_key=plant.public)


def test_an_altered_member_is_refused(signed: Path, plant: Keys) -> None:
    """The signature covers the members by their SHA-256 in the manifest."""
    altered(signed, model__onnx=members(signed)["model.onnx"][::-1])
    with pytest.raises(BundleError, match=r"model\.onnx is damaged or was tampered with"):
        Bundle.open(signed, public_key=plant.public)


def test_another_bundle_s_signature_is_refused(signed: Path, plant: Keys, tmp_path: Path) -> None:
    """Moved from one bundle to another of the same plant."""
    other = tmp_path / "cap.flawline"
    other.write_bytes(small_bundle(name="cap"))
    altered(other, **{SIGNATURE: members(signed)[SIGNATURE]})
    with pytest.raises(BundleError, match="altered since"):
        Bundle.open(other, public_key=plant.public)


@pytest.mark.parametrize("size", [0, 63, 65, 4096])
def test_what_cannot_be_a_signature_is_refused_by_everybody(bundle: Path, size: int) -> None:
    """Also where none is asked for: such a bundle is damaged."""
    altered(bundle, **{SIGNATURE: bytes(size)})
    with pytest.raises(BundleError, match=r"member manifest\.sig is no signature, which has 64 bytes"):
        Bundle.open(bundle)


def test_the_environment_asks_for_every_command(
    bundle: Path, plant: Keys, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """FLAWLINE_PUBLIC_KEY: `check`, `build` and the others have no configuration to read."""
    monkeypatch.setenv(KEY_VARIABLE, str(plant.public))
    for command in (["check", str(bundle), "nothing.png"], ["bundle", "show", str(bundle)], ["build", str(bundle)],
                    ["parity", str(bundle)], ["bench", str(bundle)]):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 2
        assert "is not signed" in capsys.readouterr().err
    sign(bundle, key=plant.private)
    verify(bundle)
    assert f"signed for {plant.public}" in capsys.readouterr().out


def test_the_station_s_configuration_asks(tmp_path: Path, bundle: Path, plant: Keys) -> None:
    """`security.public_key`, relative to the file; `config check` says what the station would say."""
    tree = {
        "cameras": [{"name": "top", "source": {"kind": "simulated"}}],
        "recipes": {1: "part.flawline"},
        "security": {"public_key": "plant.pub"},
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(BundleError, match=r"config\.yaml: recipes\.1: .*part\.flawline: is not signed"):
        check(config)
    sign(bundle, key=plant.private)
    assert check(config) == 0


def test_openssl_agrees(signed: Path, plant: Keys, tmp_path: Path, require_program: Callable[[str], Path]) -> None:
    """A plain Ed25519 signature with a plain key: an independent implementation verifies it, and refuses another."""
    openssl = require_program("openssl")
    for name, data in members(signed).items():
        if name in (MANIFEST, SIGNATURE):
            (tmp_path / name).write_bytes(data)
    command = [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", plant.public, "-rawin"]
    command += ["-in", tmp_path / MANIFEST, "-sigfile", tmp_path / SIGNATURE]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    (tmp_path / MANIFEST).write_bytes(manifest_json(small_members()))
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_a_key_of_openssl_signs(bundle: Path, tmp_path: Path, require_program: Callable[[str], Path]) -> None:
    """Whoever has a key already need not make another."""
    openssl, key, public = require_program("openssl"), tmp_path / "own.pem", tmp_path / "own.pub"
    subprocess.run([openssl, "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
    subprocess.run([openssl, "pkey", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    sign(bundle, key=key)
    assert Bundle.open(bundle, public_key=public).signature is not None


def test_a_private_key_is_its_owner_s_alone(tmp_path: Path) -> None:
    """0600 whatever the umask says; the public one is for everybody; neither is ever overwritten."""
    before = os.umask(0)
    try:
        made = keys(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.private.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.public.stat().st_mode) == 0o644
    held = made.private.read_bytes()
    with pytest.raises(InputError, match=r"plant\.key: is there already"):
        keygen(tmp_path / "plant")
    assert made.private.read_bytes() == held


def test_a_passphrase_locks_the_key(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens with the passphrase, and with nothing else; no sentence says what the passphrase is."""
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "open sesame")
    made = keys(tmp_path)
    assert b"ENCRYPTED" in made.private.read_bytes()
    sign(bundle, key=made.private)
    Bundle.open(bundle, public_key=made.public)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "open barley")
    with pytest.raises(InputError, match=f"or {PASSPHRASE_VARIABLE} is not its passphrase") as caught:
        sign(bundle, key=made.private)
    assert "barley" not in str(caught.value)
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    with pytest.raises(InputError, match=f"is encrypted; put its passphrase into {PASSPHRASE_VARIABLE}"):
        sign(bundle, key=made.private)


def test_a_short_passphrase_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is written."""
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "short")
    with pytest.raises(InputError, match="has 5 characters, expected at least 8"):
        keygen(tmp_path / "plant")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_key_is_refused(tmp_path: Path, bundle: Path, plant: Keys) -> None:
    """Missing, swapped, rubbish, of another kind: a sentence with the file's name."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    curve = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "curve.key").write_bytes(
        curve.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (tmp_path / "curve.pub").write_bytes(
        curve.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "rubbish").write_bytes(bytes(range(256)))
    for path, found in (
        (tmp_path / "missing.pub", "cannot be read"),
        (plant.private, "is no public key"),
        (tmp_path / "rubbish", "is no public key"),
        (tmp_path / "curve.pub", "is a key of another kind, expected Ed25519"),
    ):
        with pytest.raises(InputError, match=found) as caught:
            Bundle.open(bundle, public_key=path)
        assert str(caught.value).startswith(f"{path}: ")
    for path, found in (
        (tmp_path / "missing.key", "cannot be read"),
        (plant.public, "is no private key"),
        (tmp_path / "rubbish", "is no private key"),
        (tmp_path / "curve.key", "is a key of another kind, expected Ed25519"),
    ):
        with pytest.raises(InputError, match=found):
            sign(bundle, key=path)


def test_a_damaged_bundle_is_not_signed(bundle: Path, plant: Keys) -> None:
    """Who signs vouches for it, so it is verified first."""
    bundle.write_bytes(bundle.read_bytes()[:-40])
    with pytest.raises(BundleError, match="truncated"):
        sign(bundle, key=plant.private)
