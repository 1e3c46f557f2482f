"""The verdict: what may be said of a part, and its form on the wire."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawline_inspect.errors import InputError
from flawline_inspect.verdict import VERDICT_SCHEMA, Reason, Result, Verdict, is_wire_id, wall_time, wire_id

KEYS = ["seq", "boot", "trigger", "part", "result", "reason", "score", "threshold", "recipe", "model", "time", "ms"]
ID_LETTERS = "ABCXYZabcxyz0189._:-"
SATURATED = 99_999  # what the wire carries exactly reaches at least this far; beyond, it may saturate

REVIEWED = {Reason.HEALTH, Reason.REVIEW}
PAIRS = (
    {(Result.OK, Reason.NONE), (Result.NOT_OK, Reason.NONE)}
    | {(Result.NOT_DECIDABLE, reason) for reason in REVIEWED}
    | {(Result.UNDEFINED, reason) for reason in Reason if reason.value and reason not in REVIEWED}
)
"""The contract's pairs of result and reason, written down once more."""

schema = jsonschema.Draft202012Validator(VERDICT_SCHEMA)


def verdict(**changes: Any) -> Verdict:
    given_ = {
        "seq": 1042,
        "boot": "001f9c21",
        "trigger": "T-00918",
        "part": "SN12345",
        "result": Result.NOT_OK,
        "reason": Reason.NONE,
        "score": 1.8312,
        "threshold": 1.2101,
        "recipe": 2,
        "model": "bottle-3f9a1c2e",
        "captured": 1795169253.123,
        "ms": 7.4,
    }
    return Verdict(**{**given_, **changes})


any_finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    """Every verdict that a station can come to: a billion parts a boot, any finite score, any time to 2100."""
    result, reason = draw(st.sampled_from(sorted(PAIRS)))
    return verdict(
        seq=draw(st.integers(1, 999_999_999)),
        boot=draw(st.text("0123456789abcdef", min_size=8, max_size=8)),
        trigger=draw(st.text(ID_LETTERS, min_size=1, max_size=16)),
        part=draw(st.text(ID_LETTERS, max_size=16)),
        result=result,
        reason=reason,
        score=0.0 if result is Result.UNDEFINED else draw(any_finite),
        threshold=draw(st.floats(0, allow_infinity=False)),
        recipe=draw(st.integers(0, 65535)),
        model=draw(st.text("ABCxyz019._-", min_size=10, max_size=20)),
        captured=draw(st.floats(0, 4_102_444_799)),
        ms=draw(any_finite),
    )


def test_the_contracts_example() -> None:
    """The design's verdict comes out byte by byte."""
    assert verdict().to_json() == (
        '{"seq":1042,"boot":"001f9c21","trigger":"T-00918","part":"SN12345","result":2,"reason":"","score":1.8312,'
        '"threshold":1.2101,"recipe":2,"model":"bottle-3f9a1c2e","time":"2026-11-20T10:07:33.123Z","ms":7.4}'
    )


@given(verdicts())
def test_the_smallest_plc_can_read_it(one: Verdict) -> None:
    """ASCII, at most 255 bytes, the contract's keys in its order, no space, no exponent, 4 decimals."""
    payload = one.to_json()
    assert payload.isascii() and len(payload) <= 255, len(payload)
    assert not re.search(r"\s", payload)
    pairs = json.loads(payload, object_pairs_hook=list)
    assert [key for key, _ in pairs] == KEYS
    assert re.search(r'"score":-?\d+\.\d{4},"threshold":-?\d+\.\d{4},"recipe":\d+,', payload)
    assert re.search(r'"ms":\d+\.\d+\}\Z', payload)
    schema.validate(dict(pairs))


@pytest.mark.parametrize("score", [1e308, -1e308, 4.0], ids=["highest score", "lowest score", "usual score"])
@pytest.mark.parametrize(("result", "reason"), sorted(PAIRS), ids=str)
def test_the_longest_verdict_fits(result: Result, reason: Reason, score: float) -> None:
    """With every field at its longest and the numbers saturated it is still at most 255 bytes."""
    longest = verdict(
        seq=999_999_999,
        trigger="t" * 16,
        part="p" * 16,
        result=result,
        reason=reason,
        score=0.0 if result is Result.UNDEFINED else score,
        threshold=1e308,
        recipe=65535,
        model="m" * 20,
        ms=1e308,
    ).to_json()
    assert len(longest) <= 255, longest


@given(verdicts())
def test_the_wire_form_round_trips(one: Verdict) -> None:
    """Parsing the wire form and writing it again changes nothing, and what comes back is what was sent."""
    payload = one.to_json()
    back = Verdict.from_json(payload)
    assert back.to_json() == payload
    assert back == Verdict.from_json(payload.encode())
    exact = ("seq", "boot", "trigger", "part", "result", "reason", "recipe", "model")
    assert [getattr(back, name) for name in exact] == [getattr(one, name) for name in exact]
    assert 0 <= one.captured - back.captured + 1e-6 < 0.001 + 2e-6  # milliseconds are cut off, not rounded
    for name, step in (("score", 0.0001), ("threshold", 0.0001), ("ms", 0.1)):
        sent = getattr(one, name)
        if (0 if name == "ms" else -SATURATED) <= sent <= SATURATED:
            assert getattr(back, name) == pytest.approx(sent, abs=step / 2 + 1e-9)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"score": 0.0}, '"score":0.0000,', id="zero"),
        pytest.param({"score": 0.00004}, '"score":0.0000,', id="below the last decimal"),
        pytest.param({"score": 1e-300}, '"score":0.0000,', id="tiny"),
        pytest.param({"score": 12345.6789}, '"score":12345.6789,', id="large"),
        pytest.param({"score": -3.5}, '"score":-3.5000,', id="negative"),
        pytest.param({"ms": -0.5}, '"ms":0.0}', id="a clock that went back"),
        pytest.param(
            {"result": Result.UNDEFINED, "reason": Reason.CAMERA, "score": 0.0}, '"score":0.0000,', id="undefined"
        ),
        pytest.param(
            {"result": Result.UNDEFINED, "reason": Reason.CAMERA, "score": -0.0},
            '"score":0.0000,',
            id="undefined, minus zero",
        ),
        pytest.param({"part": ""}, '"part":"",', id="no part id"),
    ],
)
def test_numbers_on_the_wire(changes: dict[str, Any], expected: str) -> None:
    """Four decimals and no exponent; the time never runs backwards; 0.0000 when the result is 0."""
    assert expected in verdict(**changes).to_json()


def test_a_score_that_is_no_number_never_leaves() -> None:
    """A station that tries to send one has a bug: it is stopped, not written as NaN."""
    for value in (float("nan"), float("inf")):
        with pytest.raises(AssertionError):
            verdict(score=value).to_json()


@pytest.mark.parametrize(("result", "reason"), list(itertools.product(Result, Reason)), ids=str)
def test_result_and_reason_belong_together(result: Result, reason: Reason) -> None:
    """OK and NotOK have no reason, NotDecidable has its two, Undefined has all others."""
    if (result, reason) in PAIRS:
        assert verdict(result=result, reason=reason, score=0.0).reason is reason
    else:
        with pytest.raises(InputError, match=f"result {result.label} cannot have the reason"):
            verdict(result=result, reason=reason, score=0.0)


def test_undefined_has_no_score() -> None:
    """An Undefined result with a score would look as if the part had been judged."""
    with pytest.raises(InputError, match="score 0, found 1"):
        verdict(result=Result.UNDEFINED, reason=Reason.ENGINE, score=1.0)


IDS = [
    pytest.param("a", True, id="one letter"),
    pytest.param("T-00918", True, id="the usual"),
    pytest.param("AZaz09._:-", True, id="every kind of character"),
    pytest.param("x" * 16, True, id="16 characters"),
    pytest.param("x" * 17, False, id="17 characters"),
    pytest.param("", False, id="empty"),
    pytest.param("a b", False, id="space"),
    pytest.param("ä", False, id="not ASCII"),
    pytest.param("\u0661", False, id="another script's digit"),
    pytest.param('a"b', False, id="quote"),
    pytest.param("a\\b", False, id="backslash"),
    pytest.param("a/b", False, id="slash"),
    pytest.param("a\n", False, id="line end"),
    pytest.param("a\x00", False, id="null byte"),
]


@pytest.mark.parametrize(("text", "allowed"), IDS)
def test_ids(text: str, allowed: bool) -> None:
    """Ids are 1 to 16 of A-Za-z0-9._:-; a part may also have none. Nothing else gets into a verdict."""
    assert is_wire_id(text) is allowed
    for name in ("trigger", "part"):
        if allowed or (name == "part" and not text):
            assert getattr(verdict(**{name: text}), name) == text
        else:
            with pytest.raises(InputError, match=f"{name} id"):
                verdict(**{name: text})


@given(st.text(min_size=1))
def test_any_name_becomes_an_id(text: str) -> None:
    """Every file name gives an allowed id, and one that is allowed stays itself."""
    made = wire_id(text)
    assert is_wire_id(made)
    assert wire_id(made) == made
    if is_wire_id(text):
        assert made == text


def test_an_id_keeps_the_end_of_a_name() -> None:
    """Counters stand at the end, so that is what two pictures are told apart by."""
    assert wire_id("capture_2026-11-20_000417") == "026-11-20_000417"
    assert wire_id("Flasche grün 7") == "Flasche-gr-n-7"
    assert wire_id("") == ""


@pytest.mark.parametrize(
    ("result", "expected"), [(Result.UNDEFINED, 0), (Result.OK, 1), (Result.NOT_OK, 2), (Result.NOT_DECIDABLE, 3)]
)
def test_code_names_its_trigger(result: Result, expected: int) -> None:
    """`seq;trigger;result` with the codes of OPC 40001-101: never a bare code."""
    reason = next(reason for each, reason in PAIRS if each is result)
    assert verdict(result=result, reason=reason, score=0.0).to_code() == f"1042;T-00918;{expected}"


def test_labels_are_those_of_opc() -> None:
    """People read Undefined, OK, NotOK, NotDecidable."""
    assert [result.label for result in Result] == ["Undefined", "OK", "NotOK", "NotDecidable"]


@pytest.mark.parametrize(
    ("epoch_s", "expected"),
    [
        pytest.param(0.0, "1970-01-01T00:00:00.000Z", id="epoch"),
        pytest.param(0.9996, "1970-01-01T00:00:00.999Z", id="never rounded up into the next second"),
        pytest.param(1709164799.25, "2024-02-28T23:59:59.250Z", id="before a leap day"),
        pytest.param(1709164800.0, "2024-02-29T00:00:00.000Z", id="leap day"),
        pytest.param(4102444799.999, "2099-12-31T23:59:59.999Z", id="end of the century"),
    ],
)
def test_wall_time(epoch_s: float, expected: str) -> None:
    """UTC, three decimals, a Z: 24 characters every time."""
    assert wall_time(epoch_s) == expected


GOOD: dict[str, Any] = json.loads(verdict().to_json())


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="cut off"),
        pytest.param(b"\xff\xfe", id="not text"),
        pytest.param("5", id="a number"),
        pytest.param("null", id="null"),
        pytest.param("[]", id="a list"),
        pytest.param("{}", id="no keys"),
        *(pytest.param(json.dumps({k: v for k, v in GOOD.items() if k != key}), id=f"no {key}") for key in KEYS),
        *(
            pytest.param(json.dumps({**GOOD, key: value}), id=f"{key} {value!r}")
            for key, value in [
                ("seq", "x"),
                ("seq", None),
                ("seq", float("inf")),
                ("trigger", ""),
                ("trigger", "a b"),
                ("part", "x" * 17),
                ("result", 4),
                ("result", [1]),
                ("reason", "because"),
                ("reason", "camera"),
                ("score", "high"),
                ("score", float("nan")),
                ("threshold", float("inf")),
                ("recipe", None),
                ("time", 5),
                ("time", "2026-11-20"),
                ("ms", float("nan")),
            ]
        ),
    ],
)
def test_what_is_no_verdict_is_refused(payload: str | bytes) -> None:
    """Whatever arrives on the topic, parsing gives a verdict or an InputError."""
    with pytest.raises(InputError):
        Verdict.from_json(payload)


@pytest.mark.parametrize("key", KEYS)
def test_the_schema_requires_every_key(key: str) -> None:
    """The published schema knows the keys of the wire form, requires each and allows no other."""
    assert list(VERDICT_SCHEMA["properties"]) == VERDICT_SCHEMA["required"] == KEYS
    assert schema.is_valid(GOOD)
    assert not schema.is_valid({k: v for k, v in GOOD.items() if k != key})
    assert not schema.is_valid({**GOOD, "more": 1})
