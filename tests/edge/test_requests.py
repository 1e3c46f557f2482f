"""What the station reads from ROOT/cmd/NAME, and what it refuses."""

from __future__ import annotations

import threading

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flawline_edge.requests import (
    REMEMBER_S,
    Duplicates,
    LabelRequest,
    PlainRequest,
    RateLimit,
    RecipeRequest,
    Request,
    RequestError,
    ThresholdRequest,
    TriggerRequest,
    parse_request,
)
from flawline_inspect.errors import InputError
from flawline_inspect.verdict import is_wire_id

MANY = 4096

GOOD = {
    "all keys": (b'{"id":"17","trigger":"T-00918","part":"SN12345"}', TriggerRequest("17", "T-00918", "SN12345")),
    "without a part": (b'{"id":"17","trigger":"T-00918"}', TriggerRequest("17", "T-00918", "")),
    "an empty part": (b'{"id":"17","trigger":"T-00918","part":""}', TriggerRequest("17", "T-00918", "")),
    "without an id": (b'{"trigger":"T-00918"}', TriggerRequest("T-00918", "T-00918", "")),
    "one character": (b'{"trigger":"T"}', TriggerRequest("T", "T", "")),
    "16 characters": (b'{"trigger":"0123456789abcdef","part":"A.B_C:D-E0123456"}',
                      TriggerRequest("0123456789abcdef", "0123456789abcdef", "A.B_C:D-E0123456")),
    "an id of 64": (b'{"id":"' + b"x" * 64 + b'","trigger":"T"}', TriggerRequest("x" * 64, "T", "")),
    "keys of tomorrow": (b'{"trigger":"T","recipe":[1,{"a":null}]}', TriggerRequest("T", "T", "")),
    "spaces and lines": (b' {\r\n "trigger" :\t"T" }\n', TriggerRequest("T", "T", "")),
    "escapes": (b'{"trigger":"\\u0054-1"}', TriggerRequest("T-1", "T-1", "")),
    "the last of two": (b'{"trigger":"A","trigger":"B"}', TriggerRequest("B", "B", "")),
}  # fmt: skip

BAD_JSON = {
    "empty": b"",
    "only space": b"  \n",
    "half": b'{"trigger":"T"',
    "behind it more": b'{"trigger":"T"} x',
    "single quotes": b"{'trigger':'T'}",
    "text": b"T-00918",
    "a list": b'["trigger"]',
    "a string": b'"T-00918"',
    "a number": b"918",
    "null": b"null",
    "not a number": b"NaN",
    "a number with 10000 digits": b'{"trigger":"T","n":' + b"9" * 10_000 + b"}",
    "not UTF-8": b'{"trigger":"T\xff"}',
    "UTF-16": '{"trigger":"T"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"trigger":"T"}',
    "zeros": bytes(64),
    "a control character": b'{"trigger":"T\x01"}',
    "nested lists": b"[" * 100_000,
    "nested lists, closed": b"[" * 100_000 + b"]" * 100_000,
    "nested objects": b'{"trigger":' * 50_000,
    "nested below a good key": b'{"trigger":"T","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}

BAD_ID = {
    "no trigger": (b"{}", ""),
    "no trigger, but an id": (b'{"id":"17"}', "17"),
    "an empty trigger": (b'{"id":"17","trigger":""}', "17"),
    "17 characters": (b'{"id":"17","trigger":"0123456789abcdefg"}', "17"),
    "a space": (b'{"id":"17","trigger":"T 1"}', "17"),
    "a line's end": (b'{"id":"17","trigger":"T\\n"}', "17"),
    "a quote": (b'{"id":"17","trigger":"T\\""}', "17"),
    "a slash": (b'{"id":"17","trigger":"a/b"}', "17"),
    "an umlaut": ('{"id":"17","trigger":"Ö"}'.encode(), "17"),
    "a fullwidth digit": (b'{"id":"17","trigger":"\\uff11"}', "17"),
    "a lone surrogate": (b'{"id":"17","trigger":"\\ud800"}', "17"),
    "trigger is a number": (b'{"id":"17","trigger":918}', "17"),
    "trigger is null": (b'{"id":"17","trigger":null}', "17"),
    "trigger is a list": (b'{"id":"17","trigger":["T"]}', "17"),
    "trigger is true, no id": (b'{"trigger":true}', ""),
    "part is a number": (b'{"id":"17","trigger":"T","part":5}', "17"),
    "part is null": (b'{"id":"17","trigger":"T","part":null}', "17"),
    "part is an object": (b'{"id":"17","trigger":"T","part":{}}', "17"),
    "part with 17 characters": (b'{"id":"17","trigger":"T","part":"0123456789abcdefg"}', "17"),
    "part with a space": (b'{"id":"17","trigger":"T","part":" "}', "17"),
    "id is a number": (b'{"id":17,"trigger":"T"}', ""),
    "id is null": (b'{"id":null,"trigger":"T"}', ""),
    "id is a list": (b'{"id":[],"trigger":"T"}', ""),
    "an id of 65": (b'{"id":"' + b"x" * 65 + b'","trigger":"T"}', ""),
    "a huge id": (b'{"id":"' + b"x" * 1_000_000 + b'","trigger":"T"}', ""),
    "a huge trigger": (b'{"id":"17","trigger":"' + b"x" * 1_000_000 + b'"}', "17"),
    "an id that is not ASCII": ('{"id":"ö","trigger":"T"}'.encode(), ""),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_requests(name: str) -> None:
    """What a PLC may send; the trigger's id names the request where it has none of its own."""
    payload, expected = GOOD[name]
    assert parse_request(payload) == expected


@pytest.mark.parametrize("name", BAD_JSON)
def test_what_is_no_json_object(name: str) -> None:
    """`bad_json`, whatever it is, and never another exception."""
    with pytest.raises(RequestError) as caught:
        parse_request(BAD_JSON[name])
    assert (caught.value.code, caught.value.id) == ("bad_json", "")
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize("name", BAD_ID)
def test_what_has_no_usable_ids(name: str) -> None:
    """`bad_id`, with the request's id where that much could be read."""
    payload, request_id = BAD_ID[name]
    with pytest.raises(RequestError) as caught:
        parse_request(payload)
    assert (caught.value.code, caught.value.id) == ("bad_id", request_id)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200)
    | st.text(max_size=80).map(lambda text: f'{{"trigger":"{text}"}}'.encode("utf-8", "replace"))
)
@example(b'{"trigger":"T"}')
def test_any_payload_is_read_or_refused(payload: bytes) -> None:
    """Any bytes: a request whose ids fit on the wire, or a `RequestError` with one of two codes."""
    try:
        request = parse_request(payload)
    except RequestError as exc:
        refusal = exc
    else:
        assert isinstance(request, TriggerRequest)
        assert is_wire_id(request.trigger)
        assert not request.part or is_wire_id(request.part)
        return
    assert refusal.code in ("bad_json", "bad_id")
    assert len(refusal.id) <= 64 and refusal.id.isascii()


def test_an_empty_id_is_no_id() -> None:
    """Two triggers with `"id":""` are two requests: the trigger's own id names them."""
    first, second = (parse_request(b'{"id":"","trigger":"T-%d"}' % n) for n in (1, 2))
    assert first.id != second.id


OTHERS: dict[str, tuple[str, bytes, Request]] = {
    "recipe": ("recipe", b'{"id":"17","recipe":0}', RecipeRequest("17", 0)),
    "highest recipe": ("recipe", b'{"id":"17","recipe":65535}', RecipeRequest("17", 65535)),
    "rollback": ("rollback", b'{"id":"17","recipe":2}', RecipeRequest("17", 2)),
    "threshold": ("threshold", b'{"id":"17","value":1.25}', ThresholdRequest("17", 1.25)),
    "whole threshold": ("threshold", b'{"id":"17","value":3}', ThresholdRequest("17", 3.0)),
    "pause": ("pause", b'{"id":"17"}', PlainRequest("17")),
    "resume": ("resume", b'{"id":"17","why":"lunch"}', PlainRequest("17")),
    "reload": ("reload", b'{"id":"17"}', PlainRequest("17")),
    "overrule": (
        "overrule", b'{"id":"17","boot":"001f9c21","seq":1042,"label":"good"}',
        LabelRequest("17", "001f9c21", 1042, "good"),
    ),
}  # fmt: skip

BAD_VALUES = {
    "no recipe": ("recipe", b'{"id":"17"}'),
    "recipe below": ("recipe", b'{"id":"17","recipe":-1}'),
    "recipe above": ("rollback", b'{"id":"17","recipe":65536}'),
    "recipe true": ("recipe", b'{"id":"17","recipe":true}'),
    "recipe text": ("recipe", b'{"id":"17","recipe":"2"}'),
    "recipe with a point": ("recipe", b'{"id":"17","recipe":2.0}'),
    "no value": ("threshold", b'{"id":"17"}'),
    "value text": ("threshold", b'{"id":"17","value":"4"}'),
    "value true": ("threshold", b'{"id":"17","value":true}'),
    "value not a number": ("threshold", b'{"id":"17","value":NaN}'),
    "value infinite": ("threshold", b'{"id":"17","value":1e999}'),
    "value a huge whole number": ("threshold", b'{"id":"17","value":1' + b"0" * 400 + b"}"),
    "value null": ("threshold", b'{"id":"17","value":null}'),
    "no boot": ("overrule", b'{"id":"17","seq":1,"label":"good"}'),
    "boot a number": ("overrule", b'{"id":"17","boot":12345678,"seq":1,"label":"good"}'),
    "boot with a capital": ("overrule", b'{"id":"17","boot":"001F9C21","seq":1,"label":"good"}'),
    "seq 0": ("overrule", b'{"id":"17","boot":"001f9c21","seq":0,"label":"good"}'),
    "seq that no integer column holds": (
        "overrule",
        b'{"id":"17","boot":"001f9c21","seq":9223372036854775808,"label":"good"}',
    ),
    "label a path": ("overrule", b'{"id":"17","boot":"001f9c21","seq":1,"label":".."}'),
    "label too long": ("overrule", b'{"id":"17","boot":"001f9c21","seq":1,"label":"aaaaaaaaaaaaaaaaa"}'),
    "label empty": ("overrule", b'{"id":"17","boot":"001f9c21","seq":1,"label":""}'),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_commands(name: str) -> None:
    """What each may carry; keys that it does not know are left alone."""
    command, payload, expected = OTHERS[name]
    assert parse_request(payload, command) == expected


@pytest.mark.parametrize("name", BAD_VALUES)
def test_what_a_command_may_not_carry(name: str) -> None:
    """`bad_value` under its id."""
    command, payload = BAD_VALUES[name]
    with pytest.raises(RequestError) as caught:
        parse_request(payload, command)
    assert (caught.value.code, caught.value.id) == ("bad_value", "17")


@pytest.mark.parametrize("command", ["recipe", "threshold", "pause", "resume", "reload", "rollback", "overrule"])
def test_only_a_trigger_names_itself(command: str) -> None:
    """Every other request needs an id: without one a repetition by the broker would be done twice."""
    for payload in (b"{}", b'{"id":""}', b'{"id":5}', b'{"trigger":"T"}'):
        with pytest.raises(RequestError) as caught:
            parse_request(payload, command)
        assert caught.value.code == "bad_id"


# --- duplicates ----------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_id_is_new_once_within_a_minute(clock: Clock) -> None:
    """Seen again up to 60 s later it is a duplicate, and being asked again does not lengthen that."""
    duplicates = Duplicates(MANY, clock)
    assert duplicates.is_new("a")
    for later, expected in ((0.0, False), (30.0, False), (59.9, False), (60.0, False), (60.1, True), (61.0, False)):
        clock.now = 1000.0 + later
        assert duplicates.is_new("a") is expected, later


def test_ids_do_not_disturb_each_other(clock: Clock) -> None:
    """Each has its own minute."""
    duplicates = Duplicates(MANY, clock)
    for second in range(100):
        clock.now = 1000.0 + second
        assert duplicates.is_new(f"id{second}")
    clock.now = 1100.0
    assert duplicates.is_new("id0") and duplicates.is_new("id39")
    assert not duplicates.is_new("id40") and not duplicates.is_new("id99")


def test_memory_is_bounded(clock: Clock) -> None:
    """However many come at once, only so many of the newest are remembered, and the rest are let go."""
    duplicates = Duplicates(MANY, clock)
    for n in range(20_000):
        assert duplicates.is_new(f"id{n}")
    assert len(duplicates._seen) <= MANY + 1  # the newest one comes on top
    assert not any(duplicates.is_new(f"id{n}") for n in range(19_999, 20_000 - MANY, -1))
    assert duplicates.is_new("id0")


def test_at_the_highest_rate_too_an_id_is_remembered_for_a_minute(clock: Clock) -> None:
    """As many are remembered as the rate limit lets through in that time, its burst included."""
    limit = RateLimit(500.0, 500.0, clock)
    duplicates = Duplicates(limit.most_within(REMEMBER_S), clock)
    accepted = []
    for n in range(60_000):  # twice the rate
        clock.now = 1000.0 + n / 1000
        if limit.allows():
            assert duplicates.is_new(f"id{n}")
            accepted.append(n)
    assert len(accepted) > 30_000
    assert not any(duplicates.is_new(f"id{n}") for n in accepted)


def test_a_forgotten_id_is_new(clock: Clock) -> None:
    """And another one is not."""
    duplicates = Duplicates(MANY, clock)
    assert duplicates.is_new("a") and duplicates.is_new("b")
    duplicates.forget("a")
    duplicates.forget("never seen")
    assert duplicates.is_new("a") and not duplicates.is_new("b")


def test_a_rate_limit_lets_a_burst_and_then_its_rate_through(clock: Clock) -> None:
    """What is refused does not count, and a long silence saves up no more than the burst."""
    limit = RateLimit(2.0, 5.0, clock)
    assert [limit.allows() for _ in range(7)] == [True] * 5 + [False] * 2
    clock.now += 1.0
    assert [limit.allows() for _ in range(4)] == [True] * 2 + [False] * 2
    clock.now += 1000.0
    assert [limit.allows() for _ in range(7)] == [True] * 5 + [False] * 2


def test_one_of_eight_threads_is_first() -> None:
    """The same id from many threads at once is new for one of them."""
    duplicates, first = Duplicates(MANY), []
    start = threading.Barrier(8)

    def ask() -> None:
        for n in range(100):
            start.wait(10.0)
            if duplicates.is_new(f"id{n}"):
                first.append(n)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10.0)
    assert sorted(first) == list(range(100))
