"""Whatever is sent to ROOT/cmd/NAME: no crash, an answer each, and no verdict that was not asked for.

A few hundred examples of up to twelve messages; `--hypothesis-profile=thorough` takes thousands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tests.edge.stand_ins import OK_LEVEL, LiveCamera, Wire, config, level_bundle, running, wait_until

from flawline_edge import commands as commands_module
from flawline_edge import station as station_module
from flawline_edge.station import Station
from flawline_inspect.config import Config

COMMANDS = ["trigger", "recipe", "threshold", "pause", "resume", "reload", "rollback", "overrule"]
CAMERAS = ["left", "right"]
ASK_ONE = {"trigger", "recipe", "threshold"}
"""Not understood where no camera is named."""


class Sent(NamedTuple):
    camera: str
    name: str
    payload: bytes
    retained: bool


ids = st.sampled_from(["1", "2", "17", "x" * 64]) | st.integers(0, 10**9).map(str)  # that come again, and new ones
trigger_ids = st.sampled_from(["T-1", "0123456789abcdef"]) | st.integers(0, 10**9).map("T-{}".format)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
good_fields: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "trigger": st.fixed_dictionaries(
        {"trigger": trigger_ids},
        optional={"part": st.sampled_from(["", "SN1"])},
    ),
    "recipe": st.fixed_dictionaries({"recipe": st.sampled_from([1, 1, 1, 1, 2, 3, 9])}),
    "rollback": st.fixed_dictionaries({"recipe": st.sampled_from([1, 2, 9])}),
    "threshold": st.fixed_dictionaries({"value": st.sampled_from([3, 4.0, 4.5, 1e9, 0, -1])}),
    "overrule": st.fixed_dictionaries(
        {"boot": st.sampled_from(["00000000", "001f9c21"]), "seq": st.integers(1, 5), "label": st.just("good")}
    ),
}


@st.composite
def payloads(draw: st.DrawFn, name: str) -> bytes:
    """As it should be, with something wrong in it, or nothing of the kind."""
    kind = draw(st.sampled_from(["good", "good", "spoilt", "json", "bytes", "nested", "large"]))
    if kind == "bytes":
        return draw(st.binary(max_size=60))
    if kind == "nested":
        return draw(st.sampled_from([b"[", b'{"id":'])) * draw(st.sampled_from([3, 500, 100_000]))
    if kind == "json":
        return json.dumps(draw(anything)).encode()
    request = {"id": draw(ids), **draw(good_fields.get(name, st.just({})))}
    if kind == "spoilt":
        key = draw(st.sampled_from([*request, "other"]))
        if draw(st.booleans()):
            request[key] = draw(anything)
        else:
            request.pop(key, None)
    elif kind == "large":
        request[draw(st.sampled_from(["id", "trigger", "label", "other"]))] = "x" * draw(st.sampled_from([65, 5_000]))
    return json.dumps(request).encode()


@st.composite
def messages(draw: st.DrawFn) -> Sent:
    name = draw(st.sampled_from([*COMMANDS, "trigger", "trigger", "trigger", "stop", "", "ack"]))
    camera = draw(st.sampled_from([*CAMERAS, *CAMERAS, "", "third"]))
    return Sent(camera, name, draw(payloads(name)), draw(st.sampled_from([False, False, False, False, True])))


@contextmanager
def _a_station(folder: Path) -> Iterator[tuple[Wire, Station]]:
    wire = Wire()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(station_module, "Publisher", wire)
        for limit in ("TRIGGERS", "OTHERS", "REFUSALS"):
            patched.setattr(commands_module, limit, (1e9, 1e9))  # so that every message has an answer to look at
        read: Config = config(
            folder,
            cameras=[{"name": name, "source": {"kind": "simulated"}} for name in CAMERAS],
            trigger={"kind": "mqtt"},
            recipes={1: str(level_bundle(folder)), 2: str(level_bundle(folder, "cap")), 3: "none.flawline"},
            mqtt={"host": "broker.invalid", "root": "acme/press-7", "commands": COMMANDS},
        )
        # Recipe 3 is known and cannot be loaded.
        made = Station(
            read,
            cameras={name: LiveCamera([OK_LEVEL] * 10_000_000, period_s=0.002) for name in CAMERAS},
            reread=lambda: read,
        )
        with running(made, wire):
            yield wire, made


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Wire, Station]]:
    with _a_station(tmp_path_factory.mktemp("fuzz")) as running_station:
        yield running_station


def is_trigger(sent: Sent) -> bool:
    """Whether this message may lead to a verdict, as far as one can tell without reading it."""
    return sent.name == "trigger" and sent.camera in CAMERAS and not sent.retained


@pytest.mark.timeout(3000)
@settings(
    max_examples=max(300, settings.default.max_examples if settings.default else 0),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(messages(), max_size=12))
def test_whatever_is_sent(asked: tuple[Wire, Station], batch: list[Sent]) -> None:
    """Each message has one answer, and each accepted trigger, and nothing else, one verdict."""
    wire, station = asked
    wire.acks.clear()
    verdicts_before = len(wire.verdicts)
    for sent in batch:
        wire.command(sent.name, sent.payload, camera=sent.camera, retained=sent.retained)
    wait_until(lambda: len(wire.acks) >= len(batch), "an answer to each message")
    answers = [payload for _, _, payload in wire.acks]
    topics = [name for _, name, _ in wire.acks]
    assert len(answers) == len(batch)
    expected = [f"{sent.camera}/{sent.name}" if sent.camera else sent.name for sent in batch]
    assert sorted(topics) == sorted(expected), "an answer went to another topic"
    for answer in answers:
        assert answer["ok"] is not bool(answer["error"]) and isinstance(answer["id"], str)
        assert len(answer["id"]) <= 64 and len(json.dumps(answer)) < 1024
    triggers = [(topic, a) for topic, a in zip(topics, answers, strict=True) if topic.endswith("trigger")]
    accepted = [a for _, a in triggers if a["ok"] and not a.get("duplicate")]
    wait_until(lambda: len(wire.verdicts) - verdicts_before >= len(accepted), "a verdict for each accepted trigger")
    new = wire.told[verdicts_before:]
    assert len(new) == len(accepted) <= sum(map(is_trigger, batch)), "a verdict that was not asked for"
    for verdict in new:
        assert any(verdict.trigger.encode() in sent.payload for sent in batch if is_trigger(sent))
    seqs = sorted(verdict.seq for verdict in wire.told)
    assert seqs == list(range(1, len(seqs) + 1))
    assert all(lane.state[0] in ("ready", "paused") and lane.terms.recipe in (1, 2) for lane in station.lanes)
    for answer in answers:
        event(answer["error"] or ("duplicate" if answer.get("duplicate") else "ok"))


def test_afterwards_it_works(asked: tuple[Wire, Station]) -> None:
    """All that noise has changed nothing but what was properly asked for."""
    wire, station = asked
    wire.acks.clear()
    wire.command("resume", {"id": "afterwards"})
    assert wire.ack("afterwards")["ok"]
    before = len(wire.verdicts)
    for camera in CAMERAS:
        wire.trigger("AFTERWARDS", camera=camera)
    wait_until(lambda: len(wire.verdicts) == before + 2, "both verdicts")
    assert [int(v.result) for v in wire.told[before:]] == [1, 1]
    assert station.restarts == 0 and station.state.state == "ready"
