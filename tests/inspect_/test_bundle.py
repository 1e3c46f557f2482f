"""The bundle: what is packed comes back, and whatever was done to it on the way is refused by name."""

from __future__ import annotations

import errno
import io
import itertools
import os
import re
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inspect_.bundles import (
    MODEL_BYTES,
    SIDE,
    THRESHOLD,
    golden_names,
    golden_picture,
    manifest_json,
    packed,
    png,
    small_bundle,
    small_manifest,
    small_members,
    zipped,
)

from flawline_inspect.bundle import (
    MANIFEST,
    MAX_BUNDLE_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_MEMBER_BYTES,
    MAX_MEMBERS,
    MODEL,
    WEIGHTS,
    Bundle,
    CalibrationSection,
    bundle_bytes,
    save_bundle,
)
from flawline_inspect.errors import BundleError, InputError
from flawline_inspect.frame import FrameSpec

SOURCE = "models/part.flawline"
DEMO_BUNDLE = Path(__file__).parents[2] / "edge" / "flawline_edge" / "demo.flawline"
WHOLE = small_bundle()
MEMBERS = sorted(small_members())
RAW, FITTED = golden_names("good", 0)


def refused(data: bytes) -> str:
    """The one sentence with which these bytes are refused; it begins with the file's name."""
    with pytest.raises(BundleError) as caught:
        Bundle(data, SOURCE)
    return one_sentence(caught.value, SOURCE)


def one_sentence(error: BaseException, source: Path | str) -> str:
    text = str(error)
    assert text.startswith(f"{source}: ") and "\n" not in text and len(text) < 400, text
    return text


def sentence_unless_harmless(data: bytes) -> str | None:
    """The sentence with which damaged bytes are refused; None when the content is what it was.

    Some bits of a zip mean nothing: times, attributes, what pads the last byte of a compressed member.
    """
    try:
        bundle = Bundle(data, SOURCE)
    except BundleError as exc:
        return one_sentence(exc, SOURCE)
    assert content(bundle) == CONTENT
    return None


def content(bundle: Bundle) -> dict[str, bytes]:
    return {MANIFEST: bundle.manifest_bytes, **{name: bundle.member(name) for name in bundle.manifest.members}}


CONTENT = content(Bundle(WHOLE, SOURCE))


# Whole bundles


def test_what_was_packed_comes_back() -> None:
    """Members, manifest, frame, threshold and golden pictures are what went in."""
    bundle = Bundle(WHOLE, SOURCE)
    assert {name: bundle.member(name) for name in bundle.manifest.members} == small_members()
    packed_in = {key: value for key, value in small_manifest().items() if key != "data"}
    packed_in["frame"] |= {"stretch": False, "kind": "object"}
    packed_in["health"] = None
    packed_in["calibration"] |= {  # what the manifest says where a bundle knows no more of its threshold
        "parts": [], "exceedances": None, "confidence": None, "estimated_false_reject_rate": None, "suspects": [],
        "defects": None,
    }  # fmt: skip
    assert bundle.manifest.model_dump(exclude={"schema_version", "members", "data"}, mode="json") == packed_in
    assert bundle.frame == FrameSpec(SIDE, SIDE) and bundle.threshold == THRESHOLD
    golden = list(bundle.golden())
    assert [(each.label, each.score) for each in golden] == [("good", 1.5)] * 2 + [("damaged", 9.0)] * 2
    for index, each in enumerate(golden):
        expected = golden_picture(index % 2, each.label)
        np.testing.assert_array_equal(each.raw, expected)
        np.testing.assert_array_equal(each.fitted, expected)
        assert each.fitted.dtype == np.uint8


def test_golden_pictures_keep_their_depth() -> None:
    """A 16-bit camera's picture is golden as the camera gave it."""
    picture = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 60
    members = {**small_members(), RAW: png(picture)}
    np.testing.assert_array_equal(next(Bundle(packed(members), SOURCE).golden()).raw, picture)


def test_good_golden_pictures_come_first() -> None:
    """Whatever their order in the manifest."""
    bundle = Bundle(small_bundle(golden=small_manifest()["golden"][::-1]), SOURCE)
    assert [each.label for each in bundle.golden()] == ["good", "good", "damaged", "damaged"]


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
extra_members = st.dictionaries(
    names.filter(lambda name: name not in (MANIFEST, *MEMBERS)), st.binary(max_size=300), max_size=5
)


@given(names, extra_members, st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=40))
def test_write_and_verify_round_trip(name: str, extra: dict[str, bytes], threshold: float, words: str) -> None:
    """Any name, members, finite threshold and text come back as they went in, and the same input gives the same bytes."""
    manifest = small_manifest(
        name=name,
        calibration={**small_manifest()["calibration"], "threshold": threshold},
        card={**small_manifest()["card"], "limits": words},
    )
    members = {**small_members(), **extra}
    data = bundle_bytes(manifest, members)
    bundle = Bundle(data, SOURCE)
    assert {each: bundle.member(each) for each in bundle.manifest.members} == members
    assert (bundle.manifest.name, bundle.threshold, bundle.manifest.card.limits) == (name, threshold, words)
    assert bundle_bytes(manifest, members) == data
    assert re.fullmatch(rf"{re.escape(name[:11])}-[0-9a-f]{{8}}", bundle.model_id)
    assert len(bundle.model_id) <= 20 and bundle.model_id.isascii()


def test_the_models_id_changes_with_any_member() -> None:
    """Two trainings of one name are told apart by the manifest, which knows every member's hash."""
    other = bundle_bytes(small_manifest(), {**small_members(), WEIGHTS: b"other"})
    assert Bundle(WHOLE, SOURCE).model_id != Bundle(other, SOURCE).model_id
    assert Bundle(WHOLE, SOURCE).model_id == Bundle(WHOLE, "elsewhere").model_id


def test_a_member_that_is_not_there_is_named() -> None:
    """Asking for one tells which there are."""
    with pytest.raises(BundleError, match=r"has no member model\.fp16\.onnx; it has golden/") as caught:
        Bundle(WHOLE, SOURCE).member("model.fp16.onnx")
    assert MODEL in one_sentence(caught.value, SOURCE)


# Damage


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"P", id="one byte"),
        pytest.param(b"not a bundle at all\n" * 50, id="text"),
        pytest.param(bytes(4096), id="zeros"),
        pytest.param(b"\xff" * 4096, id="ones"),
        pytest.param(png(golden_picture(0, "good")), id="picture"),
        pytest.param(b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins.", id="pickle"),
    ],
)
def test_what_is_no_zip_is_no_bundle(data: bytes) -> None:
    """Other files are called what they are: not a bundle."""
    assert "not a bundle" in refused(data)


def test_an_empty_zip_is_no_bundle() -> None:
    """A zip without a manifest is named as such."""
    assert "has no manifest.json" in refused(zipped([]))
    assert "has no manifest.json" in refused(zipped([("model.onnx", MODEL_BYTES)]))


def test_truncated_anywhere() -> None:
    """However much of the file arrived, it is refused."""
    for length in itertools.chain(range(0, len(WHOLE), 37), range(len(WHOLE) - 80, len(WHOLE))):
        assert "truncated" in refused(WHOLE[:length])


def _stored_at(data: bytes, name: str) -> tuple[int, int]:
    """Where a member's bytes lie in the zip: first, one past the last."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = archive.getinfo(name)
    name_length, extra_length = struct.unpack_from("<HH", data, info.header_offset + 26)
    start = info.header_offset + 30 + name_length + extra_length
    return start, start + info.compress_size


def _flips(data: bytes, name: str) -> Iterator[bytes]:
    """The zip with one byte of this member flipped, 26 times."""
    first, end = _stored_at(data, name)
    for at in sorted({*range(first, end, max(1, (end - first) // 25)), end - 1}):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        yield bytes(damaged)


@pytest.mark.parametrize("name", [MANIFEST, *MEMBERS])
def test_one_byte_flipped_in_a_member(name: str) -> None:
    """The sentence names the member, whichever of its bytes it is."""
    sentences = [sentence_unless_harmless(damaged) for damaged in _flips(WHOLE, name)]
    found = [sentence for sentence in sentences if sentence is not None]
    assert len(found) >= len(sentences) - 1  # the last byte of a compressed member may be padding
    assert all(f"member {name} is damaged" in sentence for sentence in found), found


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "lzma"])
@pytest.mark.parametrize("name", [MANIFEST, MODEL])
def test_damage_in_another_compression(name: str, compression: int) -> None:
    """A zip may be compressed otherwise than ours; damage in it is refused all the same."""
    data = zipped([(MANIFEST, Bundle(WHOLE, SOURCE).manifest_bytes), *small_members().items()], compression)
    sentences = [sentence_unless_harmless(damaged) for damaged in _flips(data, name)]
    found = [sentence for sentence in sentences if sentence is not None]
    assert len(found) >= 0.8 * len(sentences)  # LZMA's first and last bytes carry versions and padding
    assert all(name in sentence for sentence in found), found


def test_one_byte_changed_anywhere_in_the_zips_own_records() -> None:
    """Headers, directory and end record: refused with a sentence, or the content is what it was. Nothing else."""
    inside: set[int] = set()
    for name in (MANIFEST, *MEMBERS):
        inside.update(range(*_stored_at(WHOLE, name)))
    escaped = []
    for at in sorted(set(range(len(WHOLE))) - inside):
        for value in {0, 12, 14, 99, 255, WHOLE[at] ^ 1, WHOLE[at] ^ 0x80} - {WHOLE[at]}:
            damaged = bytearray(WHOLE)
            damaged[at] = value
            try:
                sentence_unless_harmless(bytes(damaged))
            except Exception as exc:  # any other exception is what this test is about
                escaped.append(f"byte {at} set to {value}: {type(exc).__name__}: {str(exc)[:80]}")
    assert not escaped, f"{len(escaped)} escaped, such as\n" + "\n".join(escaped[:: max(1, len(escaped) // 12)])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=2, max_size=6))
def test_many_bytes_changed(changes: list[tuple[int, int]]) -> None:
    """Whatever the damage: a sentence, or the content that was packed."""
    damaged = bytearray(WHOLE)
    for at, value in changes:
        damaged[at] = value
    sentence_unless_harmless(bytes(damaged))


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_is_missing(name: str) -> None:
    """Listed in the manifest but not in the zip: the graph, weights and each golden picture are missed by name."""
    members = small_members()
    manifest = manifest_json(members)
    del members[name]
    assert f"member {name} is missing" in refused(packed(members, manifest))


@pytest.mark.parametrize("name", [MODEL, RAW, FITTED])
def test_a_needed_member_is_not_even_listed(name: str) -> None:
    """A manifest that lists no graph, or not the golden pictures that it names, is refused although nothing else is wrong."""
    members = small_members()
    del members[name]
    assert f"member {name} is missing" in refused(packed(members))


def test_a_member_too_many() -> None:
    """What the manifest does not know does not travel along."""
    manifest = manifest_json(small_members())
    assert "member model.int8.onnx is not in the manifest" in refused(
        packed({**small_members(), "model.int8.onnx": b"x"}, manifest)
    )


@pytest.mark.parametrize("name", [MANIFEST, MODEL, RAW])
def test_a_member_twice(name: str) -> None:
    """Two readers could read two different ones."""
    members = small_members()
    pairs = [(MANIFEST, manifest_json(members)), *members.items()]
    assert f"member {name} is there twice" in refused(zipped([*pairs, (name, b"another")]))
    assert f"member {name} is there twice" in refused(zipped([*pairs, next(p for p in pairs if p[0] == name)]))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("../x", id="parent"),
        pytest.param("golden/../../x", id="parent further down"),
        pytest.param("..", id="only the parent"),
        pytest.param("/etc/passwd", id="absolute"),
        pytest.param("C:\\x", id="drive"),
        pytest.param("..\\x", id="parent, backslash"),
        pytest.param("golden/", id="folder"),
        pytest.param("golden/deeper/x.png", id="deeper folder"),
        pytest.param("other/x.png", id="other folder"),
        pytest.param(".hidden", id="hidden"),
        pytest.param("a b", id="space"),
        pytest.param("ümlaut.onnx", id="not ASCII"),
        pytest.param("model.onnx\n", id="line end"),
        pytest.param("-rf", id="option"),
        pytest.param("~", id="home"),
        pytest.param("", id="empty"),
    ],
)
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "not listed"])
def test_a_name_that_escapes_is_refused(name: str, listed: bool) -> None:
    """Names are letters, digits, dot, dash and underscore, in the bundle or in golden/: nothing else, listed or not."""
    members = {**small_members(), name: b"x"}
    sentence = refused(packed(members, manifest_json(members if listed else small_members())))
    assert repr(name) in sentence and "name that no bundle member may have" in sentence


def test_a_manifest_that_lists_an_escaping_name() -> None:
    """The manifest's names are only looked up in the zip, never on the disk."""
    manifest = manifest_json({**small_members(), "../../etc/hostname": b"x"})
    assert "member ../../etc/hostname is missing" in refused(packed(small_members(), manifest))


def _with_directory_size(data: bytes, name: str, size: int) -> bytes:
    """The same zip whose directory says that `name` unpacks to `size` bytes."""
    patched = bytearray(data)
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        length = struct.unpack_from("<H", data, at + 28)[0]
        if data[at + 46 : at + 46 + length] == name.encode():
            struct.pack_into("<I", patched, at + 24, size)
            return bytes(patched)
    raise AssertionError(name)


@pytest.mark.parametrize("name", [MODEL, WEIGHTS, RAW])
@pytest.mark.parametrize("change", [-1, 1, 5000])
def test_a_lying_length(name: str, change: int) -> None:
    """In the manifest or in the zip's directory: the member is named."""
    true = len(small_members()[name])
    assert name in refused(_with_directory_size(WHOLE, name, true + change))
    manifest = manifest_json(small_members())
    lying = re.sub(
        rb'("%s": \{"sha256": "[0-9a-f]{64}", "bytes": )\d+' % re.escape(name.encode()),
        rb"\g<1>%d" % (true + change),
        manifest,
    )
    assert lying != manifest
    assert f"member {name} has another length" in refused(packed(small_members(), lying))


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        pytest.param(MODEL, MAX_MEMBER_BYTES + 1, f"member {MODEL} unpacks to", id="member"),
        pytest.param(MODEL, 0xFFFFFFFE, f"member {MODEL} unpacks to", id="member of 4 GiB"),
        pytest.param(MANIFEST, MAX_MANIFEST_BYTES + 1, f"{MANIFEST} is larger than 64 MiB", id="manifest"),
    ],
)
def test_a_bomb_is_not_lit(name: str, size: int, sentence: str) -> None:
    """A directory that announces too much is refused before anything is unpacked."""
    assert sentence in refused(_with_directory_size(WHOLE, name, size))


def test_a_bomb_that_lies_about_its_size() -> None:
    """16 MiB that announce 10 bytes are unpacked no further than that."""
    members = {**small_members(), "bomb": bytes(10)}
    manifest = manifest_json(members)
    data = packed({**members, "bomb": bytes(16 << 20)}, manifest)
    lying = _with_directory_size(data, "bomb", 10)
    tracemalloc.start()
    try:
        assert "bomb" in refused(lying)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_too_many_members() -> None:
    """A bundle has at most 512."""
    members = {**small_members(), **{f"golden/{i}.png": b"" for i in range(MAX_MEMBERS)}}
    assert f"at most {MAX_MEMBERS} are allowed" in refused(packed(members))


def _json_with(path: str, value: Any) -> bytes:
    """The manifest of a whole bundle with `value` at a dotted path, such as `frame.width`."""
    section, _, key = path.partition(".")
    return manifest_json(small_members(), **{section: {**small_manifest()[section], key: value} if key else value})


NAN = float("nan")


@pytest.mark.parametrize(
    ("manifest", "where"),
    [
        pytest.param(b"", "the file", id="empty"),
        pytest.param(b"{", "the file", id="cut off"),
        pytest.param(b"[]", "the file", id="a list"),
        pytest.param(b"null", "the file", id="null"),
        pytest.param(b'{"a": "\xff"}', "the file", id="not UTF-8"),
        pytest.param(b"[" * 100_000, "the file", id="nested without end"),
        pytest.param(_json_with("surprise", 1), "surprise", id="unknown key"),
        pytest.param(_json_with("frame.depth", 8), "frame.depth", id="unknown key in a section"),
        pytest.param(_json_with("frame.width", 33), "frame.width", id="width no multiple of 16"),
        pytest.param(_json_with("frame.height", 0), "frame.height", id="no height"),
        pytest.param(_json_with("frame.width", 8208), "frame.width", id="width too large"),
        pytest.param(_json_with("frame.bit_depth", 17), "frame.bit_depth", id="17 bits"),
        pytest.param(_json_with("frame.roi", [1, 2, 3]), "frame.roi", id="region of three numbers"),
        pytest.param(_json_with("name", "../x"), "name", id="name that escapes"),
        pytest.param(_json_with("name", "x\n"), "name", id="name with a line end"),
        pytest.param(_json_with("name", "x" * 65), "name", id="name too long"),
        pytest.param(_json_with("calibration.threshold", NAN), "calibration.threshold", id="threshold NaN"),
        pytest.param(_json_with("calibration.threshold", 1e999), "calibration.threshold", id="threshold infinite"),
        pytest.param(_json_with("calibration.threshold", None), "calibration.threshold", id="no threshold"),
        pytest.param(_json_with("calibration.scores", [1.0, NAN]), "calibration.scores.1", id="score NaN"),
        pytest.param(_json_with("calibration.basis", "guess"), "calibration.basis", id="unknown basis"),
        pytest.param(_json_with("method.parameters", {"noise": NAN}), "method.parameters", id="parameter NaN"),
        pytest.param(
            _json_with("golden", [{**small_manifest()["golden"][0], "score": -1e999}]),
            "golden.0.score",
            id="golden score infinite",
        ),
        pytest.param(
            _json_with("golden", [{**small_manifest()["golden"][0], "label": "bad"}]),
            "golden.0.label",
            id="unknown label",
        ),
        pytest.param(_json_with("members", {MODEL: {"sha256": "0" * 64}}), f"members.{MODEL}.bytes", id="no length"),
        pytest.param(
            _json_with("members", {MODEL: {"sha256": "0" * 63, "bytes": 1}}), f"members.{MODEL}.sha256", id="no SHA-256"
        ),
        pytest.param(
            _json_with("members", {MODEL: {"sha256": "0" * 64, "bytes": -1}}), f"members.{MODEL}.bytes", id="negative"
        ),
    ],
)
def test_a_manifest_that_is_not_valid(manifest: bytes, where: str) -> None:
    """The sentence names manifest.json and the key."""
    sentence = refused(packed(small_members(), manifest))
    assert f"{MANIFEST} is not valid at {where}" in sentence


@pytest.mark.parametrize("key", sorted({*small_manifest(), "members"}))
def test_a_manifest_without_a_key(key: str) -> None:
    """Every section is required and missed by name."""
    whole = manifest_json(small_members())
    renamed = whole.replace(f'"{key}": '.encode(), b'"was-%s": ' % key.encode(), 1)
    assert f"{MANIFEST} is not valid at" in refused(packed(small_members(), renamed))


@pytest.mark.parametrize("version", [0, 2, 99, "1", None])
def test_another_schema_version(version: object) -> None:
    """A newer bundle says which version it has and which this flawline reads."""
    sentence = refused(packed(small_members(), manifest_json(small_members(), schema_version=version)))
    assert f"schema_version {version!r}, this flawline reads 1" in sentence


def _huge_png() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    data = bytearray(png(np.zeros((4, 4), np.uint8)))
    struct.pack_into(">II", data, 16, 60_000, 60_000)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize(
    "picture",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no picture", id="text"),
        pytest.param(b"\x89PNG\r\n\x1a\n", id="PNG with nothing in it"),
        pytest.param(_huge_png(), id="PNG that claims to be huge"),
    ],
)
@pytest.mark.parametrize("name", [RAW, FITTED])
def test_a_golden_member_that_is_no_picture(name: str, picture: bytes) -> None:
    """Its hash is right, so it is found on decoding, and named."""
    bundle = Bundle(packed({**small_members(), name: picture}), SOURCE)
    with pytest.raises(BundleError) as caught:
        list(bundle.golden())
    assert name in one_sentence(caught.value, SOURCE)


# Files


def test_save_and_open(tmp_path: Path) -> None:
    """What is saved is returned verified, and opens as the same model."""
    path = tmp_path / "part.flawline"
    saved = save_bundle(path, small_manifest(), small_members())
    assert Bundle.open(path).model_id == Bundle.open(str(path)).model_id == saved.model_id
    assert list(tmp_path.iterdir()) == [path]


def _missing(_: Path) -> None: ...


def _folder(path: Path) -> None:
    path.mkdir()


def _empty(path: Path) -> None:
    path.touch()


def _too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_BUNDLE_BYTES + 1)  # sparse: takes no space


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        pytest.param(_missing, "does not exist; give a .flawline file", id="missing"),
        pytest.param(_folder, "is a folder; give a .flawline file", id="folder"),
        pytest.param(_empty, "not a bundle, or truncated", id="empty"),
        pytest.param(_too_large, "larger than 2 GiB", id="too large"),
    ],
)
def test_a_path_that_is_no_bundle(tmp_path: Path, make: Callable[[Path], None], sentence: str) -> None:
    """The sentence names the file and what is wrong with it; it is the user's mistake."""
    path = tmp_path / "part.flawline"
    make(path)
    with pytest.raises(BundleError, match=sentence) as caught:
        Bundle.open(path)
    one_sentence(caught.value, path)
    assert isinstance(caught.value, InputError) and caught.value.exit_code == 2


def _disk_full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("before", [True, False], ids=["over an old one", "new"])
def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    """The old bundle survives and is said to; no temporary file is left."""
    path = tmp_path / "part.flawline"
    if before:
        path.write_bytes(WHOLE)
    monkeypatch.setattr(os, "fsync", _disk_full)
    with pytest.raises(BundleError, match=r"cannot be written \(No space left on device\)") as caught:
        save_bundle(path, small_manifest(name="newer"), small_members())
    assert ("the bundle that was there is untouched" in one_sentence(caught.value, path)) is before
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([WHOLE] if before else [])


def test_a_failure_after_the_rename_does_not_claim_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the sentence says that the old bundle is untouched, it is."""
    path = tmp_path / "part.flawline"
    path.write_bytes(WHOLE)
    real = os.fsync

    def fails_on_folders(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fails_on_folders)
    sentence = ""
    try:
        save_bundle(path, small_manifest(name="newer"), small_members())
    except BundleError as exc:
        sentence = one_sentence(exc, path)
    assert "untouched" not in sentence or path.read_bytes() == WHOLE
    assert Bundle.open(path).manifest.name in ("bottle", "newer")


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    """The sentence names the path; nothing is made."""
    path = tmp_path / "no" / "part.flawline"
    with pytest.raises(BundleError, match=r"cannot be written \(No such file") as caught:
        save_bundle(path, small_manifest(), small_members())
    one_sentence(caught.value, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("manifest", "members"),
    [
        pytest.param(small_manifest(name="no/name"), small_members(), id="manifest not valid"),
        pytest.param(small_manifest(), {MODEL: MODEL_BYTES}, id="golden pictures not there"),
        pytest.param(small_manifest(), {**small_members(), "../x": b""}, id="name that escapes"),
    ],
)
def test_a_bundle_that_would_be_refused_is_not_written(
    tmp_path: Path, manifest: dict[str, Any], members: dict[str, bytes]
) -> None:
    """It is verified before the old one is touched."""
    path = tmp_path / "part.flawline"
    path.write_bytes(WHOLE)
    with pytest.raises(ValueError, match=r"name|missing"):  # pydantic's error and ours are both ValueErrors
        save_bundle(path, manifest, members)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [WHOLE]


def test_a_bundle_of_before_the_promise_had_a_confidence_is_read() -> None:
    """Without parts, suspects or confidence in its manifest; its figures are what they were."""
    old = {"scores": [1.0, 2.0, 3.0], "threshold": 3.0, "basis": "order_statistic", "false_reject_target": 0.3}
    calibration = CalibrationSection.model_validate({**old, "promised_false_reject_rate": 0.25})
    assert calibration.basis == "order_statistic" and calibration.within_promise
    assert (calibration.confidence, calibration.exceedances) == (None, None)
    assert (calibration.parts, calibration.defects) == ([], None)


def test_what_a_new_bundle_knows_of_its_threshold_comes_back() -> None:
    """Parts, exceedances, suspects, defects and costs."""
    calibration = {
        **small_manifest()["calibration"],
        "basis": "cheapest",
        "parts": ["a", "b", "c"],
        "exceedances": 1,
        "confidence": 0.95,
        "estimated_false_reject_rate": 0.02,
        "suspects": [{"part": "c", "score": 3.0, "skipped": True}],
        "defects": {
            "kinds": [{"kind": "dent", "n": 4, "escaped": 1, "escape_interval": [0.006, 0.81]}],
            "costs": {
                "false_reject": 1.0, "escape": 20.0, "defect_rate": 0.01, "cost_per_part": 0.1,
                "cheapest_threshold": 4.0, "cheapest_cost_per_part": 0.1,
            },
        },
    }  # fmt: skip
    found = Bundle(small_bundle(calibration=calibration), SOURCE).manifest.calibration
    assert found.model_dump(mode="json") == calibration


def test_a_frame_that_pictures_fill_comes_back() -> None:
    """Stretching is read from the manifest, and no picture's shape is then unlike; older bundles keep the ratio."""
    frame = small_manifest()["frame"]
    old = Bundle(small_bundle(), SOURCE)
    new = Bundle(small_bundle(frame={**frame, "stretch": True}), SOURCE)
    assert not old.frame.stretch and old.manifest.frame.is_unlike((SIDE, 2 * SIDE))
    assert new.frame.stretch and not new.manifest.frame.is_unlike((SIDE, 2 * SIDE))


def test_a_frame_that_is_stretched_and_aligned_is_refused() -> None:
    """No bundle of ours is; one that says so is refused like any other manifest that makes no sense."""
    align = {"kind": "shift", "placing": {
        "canvas_wh": [32, 32], "scale": 1.0, "scales": [0.9, 1.1],
        "bounds": {"correlation": 0.5, "doubt": 0.1, "contrast": 5, "inside": 0.9},
        "references": [{"member": FITTED, "centre": [16, 16], "area": 100}],
    }}  # fmt: skip
    manifest = manifest_json(small_members(), frame={**small_manifest()["frame"], "stretch": True, "align": align})
    with pytest.raises(BundleError, match=r"stretch is true and align is shift"):
        Bundle(packed(small_members(), manifest), SOURCE)
