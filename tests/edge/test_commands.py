"""ROOT/cmd/NAME on a station that runs: what is changed, when it holds, what is refused, what outlives a restart."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.edge.stand_ins import (
    BAD_LEVEL,
    LIMIT_LEVEL,
    THRESHOLD,
    LiveCamera,
    Wire,
    level_bundle,
    running,
    wait_until,
    wire,
)

from flawline_edge import commands as commands_module
from flawline_edge.daemon import call_on_hangup
from flawline_edge.inspector import Inspector
from flawline_edge.station import Station
from flawline_inspect.bundle import Bundle
from flawline_inspect.config import load_config
from flawline_inspect.config_command import check
from flawline_inspect.errors import EngineError
from flawline_inspect.overrides import load_overrides, update_overrides
from flawline_inspect.verdict import Verdict

__all__ = ["wire"]  # the fixture

ALL = ["trigger", "recipe", "threshold", "pause", "resume", "reload", "rollback", "overrule"]
WAIT_S = 10.0
OK, NOT_OK = (1, ""), (2, "")


class Line:
    """A station with its file, asked by MQTT, obeying everything; recipe 1 is `level`, recipe 2 `cap` with threshold 7."""

    def __init__(self, folder: Path, wire: Wire, level: int = BAD_LEVEL) -> None:
        self.folder, self.wire, self.level = folder, wire, level
        self.tree: dict[str, Any] = {
            "station": "press-7",
            "state_dir": "state",
            "cameras": [{"name": "top", "source": {"kind": "simulated"}}],
            "trigger": {"kind": "mqtt"},
            "recipes": {
                1: str(level_bundle(folder)),
                2: {"bundle": str(level_bundle(folder, "cap")), "threshold": 7.0},
            },
            "engine": {"kind": "onnxruntime", "threads": 1},
            "deadline_ms": 20_000,
            "mqtt": {"host": "broker.invalid", "root": "acme/press-7", "commands": ALL},
        }
        self.write()
        self._asked = 0

    def write(self, **changes: Any) -> None:
        self.tree |= changes
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.tree), encoding="utf-8")

    @contextmanager
    def runs(self) -> Iterator[Station]:
        file = self.folder / "config.yaml"
        self.wire.states.clear()
        made = Station(load_config(file), camera=LiveCamera([self.level] * 1_000_000), reread=lambda: load_config(file))
        with running(made, self.wire):
            yield made

    def ask(self, name: str, **request: Any) -> dict[str, Any]:
        """The acknowledgement of a command."""
        self._asked += 1
        request_id = f"{name}-{self._asked}"
        self.wire.command(name, {"id": request_id, **request})
        return self.wire.ack(request_id)

    def judge(self) -> Verdict:
        """One trigger's verdict."""
        self._asked += 1
        name = f"T-{self._asked}"
        self.wire.trigger(name)
        found: list[Verdict] = []

        def told() -> bool:
            found[:] = [v for v in self.wire.told if v.trigger == name]
            return bool(found)

        wait_until(told, "the verdict")
        return found[0]


@pytest.fixture
def line(tmp_path: Path, wire: Wire) -> Line:
    return Line(tmp_path, wire)


def result(verdict: Verdict) -> tuple[int, str]:
    return int(verdict.result), verdict.reason.value


def refused(ack: dict[str, Any], error: str) -> str:
    """That it is, with this word; returns the sentence."""
    assert (ack["ok"], ack["error"]) == (False, error), ack
    return str(ack.get("detail", ""))


# --- recipe ----------------------------------------------------------------------------------------------------------


def test_a_recipe_holds_from_its_acknowledgement_on(line: Line) -> None:
    """The acknowledgement, the state and the next verdict say recipe, model and threshold; a restart keeps it."""
    with line.runs() as station:
        first = line.judge()
        assert (first.recipe, result(first)) == (1, NOT_OK)
        ack = line.ask("recipe", recipe=2)
        model = Bundle.open(line.folder / "cap.flawline").model_id
        assert ack == {
            "id": ack["id"], "ok": True, "error": "", "state": "ready", "recipe": 2, "model": model, "threshold": 7.0,
        }  # fmt: skip
        second = line.judge()
        assert (second.recipe, second.model, second.threshold, result(second)) == (2, model, 7.0, OK)
        assert (station.state.recipe, station.state.model, station.state.engine) == (2, model, "onnxruntime")
    with line.runs() as station:
        assert station.state.recipe == 2 and line.judge().recipe == 2
        line.ask("recipe", recipe=1)
        assert line.judge().recipe == 1


def hold_recipe_2(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Recipe 2 sets the first event when its loading begins, and goes on when the second is set."""
    loading, may_go_on = threading.Event(), threading.Event()
    enter = Inspector.__enter__

    def slowly(self: Inspector) -> Inspector:
        if self.number == 2:
            loading.set()
            may_go_on.wait(WAIT_S)
        return enter(self)

    monkeypatch.setattr(Inspector, "__enter__", slowly)
    return loading, may_go_on


def test_parts_are_judged_while_a_recipe_is_loaded(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the old one; no trigger waits for the loading, and none is judged by another recipe than it says."""
    loading, may_go_on = hold_recipe_2(monkeypatch)
    with line.runs():
        line.wire.command("recipe", {"id": "r", "recipe": 2})
        assert loading.wait(WAIT_S)
        assert [line.judge().recipe for _ in range(5)] == [1] * 5
        may_go_on.set()
        line.wire.ack("r")
        assert line.judge().recipe == 2


def test_a_switch_under_load_loses_nothing(line: Line) -> None:
    """Triggers come all the while: each has one verdict, and every verdict agrees with the recipe that it names."""
    stop = threading.Event()
    sent: list[str] = []

    def ask() -> None:
        while not stop.is_set():
            sent.append(f"L-{len(sent)}")
            line.wire.trigger(sent[-1])
            time.sleep(0.004)

    with line.runs():
        load = threading.Thread(target=ask)
        load.start()
        for number in (2, 1, 2, 1, 2):
            time.sleep(0.05)
            assert line.ask("recipe", recipe=number)["ok"]
        stop.set()
        load.join()
        wait_until(lambda: len(line.wire.told) == len(sent), "every verdict")
    told = line.wire.told
    assert sorted(v.trigger for v in told) == sorted(sent) and len(sent) > 20
    judged = [v for v in told if v.reason.value != "overrun"]
    assert {(v.recipe, v.threshold, result(v)) for v in judged} == {(1, THRESHOLD, NOT_OK), (2, 7.0, OK)}
    by_seq = [v.recipe for v in sorted(judged, key=lambda v: v.seq)]
    assert sum(a != b for a, b in itertools.pairwise(by_seq)) <= 5, "recipes are mixed"


def test_the_one_that_served_is_closed(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each inspector that was entered is left once: after ten changes there is one, and at the end none."""
    life: dict[int, int] = {}
    enter, leave = Inspector.__enter__, Inspector.__exit__

    def entered(self: Inspector) -> Inspector:
        life[id(self)] = 1
        kept.append(self)
        return enter(self)

    def left(self: Inspector, *exc: Any) -> None:
        life[id(self)] = 0
        leave(self, *exc)

    kept: list[Inspector] = []
    monkeypatch.setattr(Inspector, "__enter__", entered)
    monkeypatch.setattr(Inspector, "__exit__", left)
    with line.runs():
        for number in (2, 1) * 5:
            line.ask("recipe", recipe=number)
        line.judge()
        wait_until(lambda: sum(life.values()) == 1, "the old ones to be closed")
        assert len(kept) == 11
    assert sum(life.values()) == 0


def test_the_recipe_that_serves_already(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded."""
    with line.runs():
        monkeypatch.setattr(Inspector, "__enter__", lambda self: pytest.fail("loaded again"))
        assert line.ask("recipe", recipe=1)["ok"]


def test_a_recipe_that_cannot_be_had_is_refused(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown, missing, damaged, or failing its self-test: the sentence says so, and the old one serves."""
    shutil.copy(line.folder / "level.flawline", line.folder / "damaged.flawline")
    with (line.folder / "damaged.flawline").open("r+b") as file:
        file.truncate(1000)
    known = line.tree["recipes"]
    line.write(recipes={**known, 3: str(line.folder / "none.flawline"), 4: str(line.folder / "damaged.flawline")})
    self_test = Inspector._self_test

    def fails(self: Inspector, engine: Any) -> None:
        if self.number == 2:
            raise EngineError("self-test failed: golden picture 3")
        self_test(self, engine)

    monkeypatch.setattr(Inspector, "_self_test", fails)
    with line.runs() as station:
        for number, error, said in (
            (9, "unknown_recipe", "there are 1, 2, 3, 4"),
            (3, "load_failed", "does not exist"),
            (4, "load_failed", "damaged.flawline"),
            (2, "load_failed", "self-test failed"),
        ):
            ack = line.ask("recipe", recipe=number)
            assert said in refused(ack, error) and ack["recipe"] == 1
            verdict = line.judge()
            assert (verdict.recipe, result(verdict)) == (1, NOT_OK)
        assert station.state.recipe == 1 and "fault" not in line.wire.state_words
    assert load_overrides(line.folder / "state").recipe == {}


def test_an_engine_that_surprises_is_refused(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a foreign library raises while it loads a model."""
    with line.runs():
        monkeypatch.setattr(Inspector, "_self_test", lambda self, engine: (_ for _ in ()).throw(MemoryError()))
        assert "MemoryError" in refused(line.ask("recipe", recipe=2), "load_failed")
        assert line.judge().recipe == 1


def test_what_was_refused_may_be_tried_again_under_its_id(line: Line) -> None:
    """Only what was done is a duplicate."""
    moved = line.folder / "moved"
    with line.runs():
        (line.folder / "cap.flawline").rename(moved)
        line.wire.command("recipe", {"id": "17", "recipe": 2})
        refused(line.wire.ack("17"), "load_failed")
        moved.rename(line.folder / "cap.flawline")
        line.wire.acks.clear()
        line.wire.command("recipe", {"id": "17", "recipe": 2})
        assert line.wire.ack("17")["ok"] is True
        line.wire.acks.clear()
        line.wire.command("recipe", {"id": "17", "recipe": 1})
        assert line.wire.ack("17")["duplicate"] is True and line.judge().recipe == 2


# --- threshold -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "fits"), [(1.99, False), (2.0, True), (8.0, True), (8.01, False), (-4.0, False)])
def test_a_threshold_lies_within_half_to_twice_the_bundles(line: Line, value: float, fits: bool) -> None:
    """4 is the bundle's own."""
    with line.runs():
        ack = line.ask("threshold", value=value)
        if fits:
            assert ack["ok"] and ack["threshold"] == value and line.judge().threshold == value
        else:
            assert "not within 2 to 8" in refused(ack, "out_of_range") and line.judge().threshold == THRESHOLD


def test_a_threshold_decides_and_is_kept_for_its_model(line: Line) -> None:
    """Result and verdict follow it; a restart and a change of recipe to and fro keep it; another model has its own."""
    with line.runs():
        assert result(line.judge()) == NOT_OK
        line.ask("threshold", value=6.5)
        verdict = line.judge()
        assert (verdict.threshold, result(verdict)) == (6.5, OK)
    with line.runs():
        assert line.judge().threshold == 6.5
        line.ask("recipe", recipe=2)
        assert line.judge().threshold == 7.0
        line.ask("recipe", recipe=1)
        assert line.judge().threshold == 6.5
    line.write(recipes={**line.tree["recipes"], 1: str(level_bundle(line.folder, "retrained"))})
    with line.runs():
        assert line.judge().threshold == THRESHOLD, "a threshold of another model's scale"


def test_a_threshold_outside_the_range_is_not_taken_from_the_file(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody has edited overrides.json: the bounds hold all the same."""
    model = Bundle.open(line.folder / "level.flawline").model_id
    update_overrides(line.folder / "state", lambda overrides: overrides.with_threshold(1, model, 400.0))
    with line.runs():
        assert line.judge().threshold == THRESHOLD
    assert "the threshold 400 that was set at run time is ignored, expected 2 to 8" in caplog.text


# --- rollback --------------------------------------------------------------------------------------------------------


def test_rollback_goes_back_promotion_by_promotion(line: Line) -> None:
    """To what served before, at last the configuration's; then there is nothing to go back to."""
    ids = {name: Bundle.open(level_bundle(line.folder, name)).model_id for name in ("level", "newer", "newest")}
    for name in ("newer", "newest"):
        update_overrides(line.folder / "state", lambda o, name=name: o.promoting(1, line.folder / f"{name}.flawline"))
    with line.runs():
        assert line.judge().model == ids["newest"]
        for name in ("newer", "level"):
            ack = line.ask("rollback", recipe=1)
            assert ack["ok"] and ack["model"] == ids[name] and line.judge().model == ids[name]
        refused(line.ask("rollback", recipe=1), "no_previous")
        refused(line.ask("rollback", recipe=9), "no_previous")
    assert load_overrides(line.folder / "state").bundles == {}


def test_a_rollback_to_a_bundle_that_is_gone_is_refused(line: Line) -> None:
    """The one that serves goes on, and is still the promoted one after a restart."""
    newer = level_bundle(line.folder, "newer")
    update_overrides(line.folder / "state", lambda overrides: overrides.promoting(1, newer))
    model = Bundle.open(newer).model_id
    with line.runs():
        (line.folder / "level.flawline").unlink()
        refused(line.ask("rollback", recipe=1), "load_failed")
        assert line.judge().model == model
    with line.runs():
        assert line.judge().model == model


def test_a_promoted_bundle_that_is_gone_does_not_stop_the_start(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    """The recipe's configured bundle serves, and the log says so."""
    update_overrides(line.folder / "state", lambda o: o.promoting(1, line.folder / "gone.flawline"))
    with line.runs():
        assert line.judge().model == Bundle.open(line.folder / "level.flawline").model_id
    assert "gone.flawline: the bundle does not exist" in caplog.text and "recipe 1 serves" in caplog.text


# --- reload ----------------------------------------------------------------------------------------------------------


def test_reload_applies_what_can_be_changed(line: Line) -> None:
    """A new recipe, a threshold, a review band, the delay; and what was set at run time gives way to the file's word."""
    line.level = LIMIT_LEVEL + 5
    with line.runs() as station:
        line.ask("threshold", value=8.0)
        assert result(line.judge()) == OK
        bundle = str(line.folder / "level.flawline")
        known = {1: {"bundle": bundle, "threshold": 5.0, "review_band": [0.8, 1.2]}, 5: line.tree["recipes"][2]}
        line.write(recipes=known, trigger={"kind": "mqtt", "delay_ms": 25})
        refused(line.ask("recipe", recipe=5), "unknown_recipe")
        assert line.ask("reload")["ok"]
        verdict = line.judge()
        assert (verdict.threshold, result(verdict)) == (5.0, (3, "review"))
        assert station.lanes[0].trigger.delay_ms == 25
        assert line.ask("recipe", recipe=5)["ok"] and line.judge().recipe == 5
        refused(line.ask("recipe", recipe=2), "unknown_recipe")


def test_reload_of_the_recipe_at_start_switches(line: Line) -> None:
    """Who edits the file wants that to hold, also over a recipe chosen by the PLC before."""
    with line.runs():
        line.ask("recipe", recipe=2)
        line.ask("recipe", recipe=1)
        line.write(recipe=2)
        assert line.ask("reload")["recipe"] == 2 and line.judge().recipe == 2
    assert load_overrides(line.folder / "state").recipe == {}


def test_reload_without_a_change_loads_nothing(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the PLC has chosen stays."""
    with line.runs():
        line.ask("recipe", recipe=2)
        monkeypatch.setattr(Inspector, "__enter__", lambda self: pytest.fail("loaded again"))
        assert line.ask("reload")["recipe"] == 2


def test_reload_finds_a_bundle_that_was_replaced(line: Line) -> None:
    """A retrained model copied over the old one, under the same name."""
    other = level_bundle(line.folder, "retrained")
    with line.runs():
        other.rename(line.folder / "level.flawline")
        assert line.judge().model.startswith("level-")
        assert line.ask("reload")["model"].startswith("retrained-")
        assert line.judge().model.startswith("retrained-")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"mqtt": {"host": "broker.invalid", "root": "acme/press-8", "commands": ALL}}, "mqtt.root"),
        (
            {"mqtt": {"host": "broker.invalid", "root": "acme/press-7", "commands": ["trigger", "reload"]}},
            "mqtt.commands",
        ),
        ({"state_dir": "elsewhere"}, "state_dir"),
        ({"station": "press-8"}, "station"),
        ({"deadline_ms": 300}, "deadline_ms"),
        ({"journal": "required"}, "journal.policy"),
        ({"cameras": [{"name": "top", "source": {"kind": "simulated", "fps": 7}}]}, "cameras[0].source"),
        ({"cameras": [{"name": "side", "source": {"kind": "simulated"}}]}, "cameras"),
        (
            {"cameras": [{"name": "top", "source": {"kind": "simulated"}, "trigger": {"kind": "free"}}]},
            "cameras[0].trigger.kind",
        ),
        ({"trigger": {"kind": "free"}}, "trigger.kind"),
    ],
)
def test_reload_names_what_needs_a_restart(line: Line, changes: dict[str, Any], key: str) -> None:
    """Nothing of the new file is applied then."""
    with line.runs():
        line.write(**changes, recipes={1: {"bundle": line.tree["recipes"][1], "threshold": 5.0}})
        said = refused(line.ask("reload"), "restart_needed")
        assert said.startswith(f"{key} cannot be changed while the station runs"), said
        assert line.judge().threshold == THRESHOLD


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ("cameras: [", "bad_config", "is not YAML"),
        ("statoin: x", "bad_config", 'unknown key "statoin"'),
        (None, "bad_config", "does not exist"),
    ],
)
def test_reload_of_a_bad_file_is_refused(line: Line, content: str | None, error: str, said: str) -> None:
    """With the sentence that `flawline config check` would give."""
    with line.runs():
        file = line.folder / "config.yaml"
        if content is None:
            file.unlink()
        else:
            file.write_text(content, encoding="utf-8")
        assert said in refused(line.ask("reload"), error)
        assert line.judge().recipe == 1


def test_reload_verifies_every_recipe(line: Line) -> None:
    """Also those that do not serve now: the next change of the product should not be when it is found out."""
    with line.runs():
        line.write(recipes={**line.tree["recipes"], 7: str(line.folder / "none.flawline")})
        assert "recipe 7: " in refused(line.ask("reload"), "load_failed")


def test_reload_under_load_loses_nothing(line: Line) -> None:
    """As a switch of the recipe: every trigger has its verdict by the recipe that it names."""
    stop = threading.Event()
    sent: list[str] = []

    def ask() -> None:
        while not stop.is_set():
            sent.append(f"L-{len(sent)}")
            line.wire.trigger(sent[-1])
            time.sleep(0.004)

    with line.runs():
        load = threading.Thread(target=ask)
        load.start()
        for recipe in (2, 1, 2):
            time.sleep(0.05)
            line.write(recipe=recipe)
            assert line.ask("reload")["recipe"] == recipe
        stop.set()
        load.join()
        wait_until(lambda: len(line.wire.told) == len(sent), "every verdict")
    judged = [v for v in line.wire.told if v.reason.value != "overrun"]
    assert {(v.recipe, result(v)) for v in judged} == {(1, NOT_OK), (2, OK)}


def test_sighup_reloads(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    """As the command does, logged instead of acknowledged; a file that is no good leaves the station as it was."""
    caplog.set_level(logging.INFO)
    with line.runs() as station, call_on_hangup(station.reload):
        line.write(recipe=2)
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: station.state.recipe == 2, "the recipe")
        (line.folder / "config.yaml").write_text("nonsense", encoding="utf-8")
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: "reload is refused" in caplog.text, "the refusal")
        assert line.judge().recipe == 2
    assert line.wire.acks and all(name == "trigger" for _, name, _ in line.wire.acks)


def test_the_handler_of_before_is_restored() -> None:
    """SIGHUP outside of the block does what it did."""
    before = signal.getsignal(signal.SIGHUP)
    with call_on_hangup(lambda: None):
        assert signal.getsignal(signal.SIGHUP) is not before
    assert signal.getsignal(signal.SIGHUP) is before


# --- overrule --------------------------------------------------------------------------------------------------------


def labels(folder: Path) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(folder / "state" / "journal.sqlite")
    try:
        return connection.execute("SELECT boot, seq, label FROM labels ORDER BY seq").fetchall()
    finally:
        connection.close()


def test_what_somebody_saw_stands_beside_the_verdict(line: Line) -> None:
    """The verdict stays as it was told; a later word replaces an earlier one; no part, no word."""
    with line.runs():
        verdict = line.judge()
        boot = verdict.boot
        assert line.ask("overrule", boot=boot, seq=1, label="good")["ok"]
        assert line.ask("overrule", boot=boot, seq=1, label="scratch-deep")["ok"]
        refused(line.ask("overrule", boot=boot, seq=2, label="good"), "unknown_part")
        refused(line.ask("overrule", boot="00000000", seq=1, label="good"), "unknown_part")
        refused(line.ask("overrule", boot=boot, seq=1, label="../x"), "bad_value")
    assert labels(line.folder) == [(boot, 1, "scratch-deep")]
    assert result(verdict) == NOT_OK


# --- who may ask what ------------------------------------------------------------------------------------------------


def test_only_what_is_enabled_is_obeyed(line: Line) -> None:
    """By default triggers alone."""
    line.tree["mqtt"].pop("commands")
    line.write()
    with line.runs() as station:
        for name in ALL[1:]:
            line.wire.command(name, {"id": name, "recipe": 2, "value": 5})
            assert line.wire.acks[-1][1] == name and line.wire.acks[-1][2]["error"] == "not_enabled"
        assert station.state.recipe == 1 and line.judge().threshold == THRESHOLD


def test_a_retained_command_is_refused(line: Line) -> None:
    """It would come again with every connection, days later too; the same id sent properly is not a duplicate."""
    with line.runs():
        line.wire.command("recipe", {"id": "17", "recipe": 2}, retained=True)
        refused(line.wire.ack("17"), "retained")
        line.wire.command("trigger", {"trigger": "T"}, retained=True)
        refused(line.wire.ack("T"), "retained")
        assert line.wire.told == [] and line.judge().recipe == 1


def test_too_many_commands_are_refused_and_then_not_answered(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can keep the station busy, or use it to flood others. Triggers have a limit of their own."""
    monkeypatch.setattr(commands_module, "OTHERS", (0.001, 3.0))
    monkeypatch.setattr(commands_module, "REFUSALS", (0.001, 4.0))
    monkeypatch.setattr(commands_module, "TRIGGERS", (0.001, 2.0))
    with line.runs():
        for n in range(10):
            line.wire.command("pause" if n % 2 else "resume", {"id": str(n)})
        errors = [ack["error"] for _, _, ack in line.wire.acks]
        assert errors == [""] * 3 + ["too_many"] * 4
        for n in range(5):
            line.wire.trigger(f"T-{n}")
        wait_until(lambda: len(line.wire.told) == 2, "both verdicts")
        time.sleep(0.05)
    assert len(line.wire.told) == 2


def test_what_cannot_wait_any_more_is_busy(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a recipe is loaded eight changes may wait, and a pause is not among them."""
    loading, may_go_on = hold_recipe_2(monkeypatch)
    with line.runs():
        line.wire.command("recipe", {"id": "r", "recipe": 2})
        assert loading.wait(WAIT_S)
        for n in range(9):
            line.wire.command("threshold", {"id": f"t{n}", "value": 5})
        refused(line.wire.ack("t8"), "busy")
        assert line.ask("pause")["state"] == "paused"
        may_go_on.set()
        assert all(line.wire.ack(f"t{n}")["threshold"] == 5.0 for n in range(8))


def test_a_disk_that_refuses_does_not_keep_the_recipe(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line has changed its product: it is judged rightly now, and the answer says what a restart will forget."""
    with line.runs():

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("flawline_edge.changes.update_overrides", full)
        ack = line.ask("recipe", recipe=2)
        assert ack["ok"] and "a restart will forget it" in ack["detail"] and line.judge().recipe == 2
        assert line.ask("threshold", value=5.0)["threshold"] == 5.0
        line.ask("recipe", recipe=1)
        line.ask("recipe", recipe=2)
        assert line.judge().threshold == 5.0, "forgotten before the restart"


def test_config_check_shows_what_was_changed(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside what the file says."""
    newer = level_bundle(line.folder, "newer")
    update_overrides(line.folder / "state", lambda overrides: overrides.promoting(1, newer))
    with line.runs():
        line.ask("threshold", value=5.0)
        line.ask("recipe", recipe=2)
    assert check(line.folder / "config.yaml") == 0
    said = [text for text in capsys.readouterr().out.splitlines() if text.startswith("# changed at run time")]
    model = Bundle.open(newer).model_id
    assert len(said) == 3
    assert "camera top serves recipe 2 (configured: 1)" in said[0]
    assert f"recipe 1 has the threshold 5 for model {model}" in said[1]
    assert f"recipe 1 serves {newer} (before: the configuration's)" in said[2]


def test_several_cameras_change_their_own_recipe(tmp_path: Path, wire: Wire) -> None:
    """Below their names; a threshold holds wherever its recipe serves."""
    made = Line(tmp_path, wire)
    cameras = [{"name": name, "source": {"kind": "simulated"}} for name in ("left", "right")]
    made.write(cameras=cameras)
    station = Station(
        load_config(tmp_path / "config.yaml"),
        cameras={name: LiveCamera([BAD_LEVEL] * 1_000_000) for name in ("left", "right")},
    )
    with running(station, wire):
        wire.command("threshold", {"id": "1", "value": 5.0}, camera="left")
        assert wire.ack("1")["threshold"] == 5.0
        assert [lane.terms.threshold for lane in station.lanes] == [5.0, 5.0]
        wire.command("recipe", {"id": "2", "recipe": 2}, camera="right")
        assert wire.ack("2")["recipe"] == 2 and wire.acks[-1][1] == "right/recipe"
        assert [lane.terms.recipe for lane in station.lanes] == [1, 2]
        wire.command("recipe", {"id": "3", "recipe": 2})
        refused(wire.ack("3"), "no_camera")
        wire.command("reload", {"id": "4"})
        refused(wire.ack("4"), "no_file")
    assert json.loads((tmp_path / "state" / "overrides.json").read_text())["recipe"] == {"right": 2}
