"""The ledger finds every breach of the contract, the watch every growth; `flawline soak` puts both to a real station."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml
from tests.edge.mosquitto import mosquitto
from tests.edge.publishers import BOOT
from tests.edge.stand_ins import OK_LEVEL, level_bundle, picture

from flawline_edge.demo_command import DEMO_BUNDLE
from flawline_edge.journal import JOURNAL_FILE, Journal
from flawline_edge.soak import Ledger, Sample, growths, sample
from flawline_edge.soak.resources import family
from flawline_edge.soak_command import soak
from flawline_inspect.errors import EXIT_DONE, EXIT_FAILURE, InputError
from flawline_inspect.verdict import Reason, Result, Verdict

WITHIN_S = 1.0
LATER_BOOT = "00209c22"


def verdict(seq: int, result: Result = Result.OK, *, reason: str = "", boot: str = BOOT, part: str = "") -> Verdict:
    score = 0.0 if result is Result.UNDEFINED else 1.0
    return Verdict(seq, boot, f"T-{seq}", part, result, Reason(reason), score, 4.0, 1, "level-01234567", 1.8e9, 7.4)


def captured(part: str) -> float | None:
    return float(part[1:]) if part else None


class Day:
    """A ledger to which things happen at times of a test's choosing."""

    def __init__(self, **options: Any) -> None:
        self.ledger = Ledger(WITHIN_S, is_defective=lambda part: part.startswith("D"), captured=captured, **options)

    def ask(self, *seqs: int, at: float = 10.0, ok: bool = True) -> None:
        for seq in seqs:
            self.ledger.sent(f"T-{seq}", at)
            self.ledger.acknowledged(f"T-{seq}", ok, at)

    def tell(self, seq: int, at: float = 10.1, *, live: bool = True, camera: str = "", **what: Any) -> None:
        self.ledger.told(verdict(seq, **what), at, live=live, camera=camera)


def test_a_good_day_has_no_breach() -> None:
    """Live, on history, twice by the broker, refused: all of it is in order."""
    day = Day(from_start=True)
    day.ask(1, 2, 3, 4)
    day.ask(9, ok=False)
    day.tell(1, part="G10.05")
    day.tell(2, result=Result.NOT_OK, part="D10.05")
    day.tell(3, at=60.0, live=False)
    day.tell(3, at=61.0, live=False)
    day.tell(4, result=Result.UNDEFINED, reason="deadline")
    account = day.ledger.account()
    assert account.breaches == []
    assert (account.sent, account.accepted, account.refused) == (5, 4, 1)
    assert (account.live, account.history, account.repeated) == (3, 1, 1)
    assert account.by_result == (1, 2, 1, 0) and account.by_reason == {"deadline": 1}
    assert account.median_ms == pytest.approx(100.0) and account.latency_ms(0.99) == pytest.approx(100.0)


def lost_though_acknowledged(day: Day) -> None:
    day.ask(1, 2)
    day.tell(1)


def lost_in_a_gap(day: Day) -> None:
    day.tell(1)
    day.tell(3)


def lost_at_the_beginning(day: Day) -> None:
    day.tell(2)


def lost_from_the_journal(day: Day) -> None:
    day.tell(1)
    day.ledger.journaled([(BOOT, 1), (BOOT, 2)], 10.0)


def told_with_two_results(day: Day) -> None:
    day.tell(1)
    day.tell(1, live=False, result=Result.NOT_OK)


def one_trigger_with_two_numbers(day: Day) -> None:
    day.ask(1)
    day.tell(1)
    day.ledger.told(verdict(1, boot=LATER_BOOT), 10.2, live=True)


def a_defective_part_is_ok(day: Day) -> None:
    day.tell(1, part="D10.0")


def the_part_before_is_ok(day: Day) -> None:
    day.ask(1)
    day.tell(1, part="G9.9")


def ok_without_an_engine(day: Day) -> None:
    day.ledger.nothing_can_be_judged(9.0, 11.0)
    day.ask(1)
    day.tell(1)


def live_too_late(day: Day) -> None:
    day.ask(1)
    day.tell(1, at=10.0 + WITHIN_S + 0.1)


def live_with_an_old_picture(day: Day) -> None:
    day.tell(1, at=12.0, result=Result.NOT_OK, part="D10.0")


def live_of_an_earlier_start(day: Day) -> None:
    day.tell(1)
    day.tell(1, boot=LATER_BOOT)
    day.tell(2)


def live_out_of_order(day: Day) -> None:
    day.tell(2)
    day.tell(1)


BREACHES = {
    lost_though_acknowledged: ("missing", "T-2 was acknowledged and has no verdict"),
    lost_in_a_gap: ("missing", f"{BOOT}/2 has no verdict, though later ones have"),
    lost_at_the_beginning: ("missing", f"{BOOT}/1 has no verdict, though later ones have"),
    lost_from_the_journal: ("missing", f"{BOOT}/2 is in the journal and was never told"),
    told_with_two_results: ("contradictions", f"{BOOT}/1 (T-1) was told as 1 and as 2"),
    one_trigger_with_two_numbers: ("contradictions", "T-1 has 2 verdicts of different (boot, seq)"),
    a_defective_part_is_ok: ("wrong_ok", f"{BOOT}/1 (T-1): D10.0 is defective and was called OK"),
    the_part_before_is_ok: ("wrong_ok", f"{BOOT}/1 (T-1): OK on a picture of 100 ms before its trigger"),
    ok_without_an_engine: ("wrong_ok", f"{BOOT}/1 (T-1): OK while nothing could be judged"),
    live_too_late: ("stale", f"{BOOT}/1 (T-1) arrived live 1.10 s after its trigger"),
    live_with_an_old_picture: ("stale", f"{BOOT}/1 (T-1) arrived live 2.00 s after its trigger"),
    live_of_an_earlier_start: ("stale", f"{BOOT}/2 (T-2) arrived live after one of boot {LATER_BOOT}"),
    live_out_of_order: ("stale", f"{BOOT}/1 (T-1), 1, arrived live after seq 2, 1"),
}


@pytest.mark.parametrize("happens", BREACHES, ids=lambda each: each.__name__)
def test_each_breach_is_found(happens: Any) -> None:
    """One of each kind, and no other is made of it."""
    day = Day(from_start=True)
    happens(day)
    account, (kind, sentence) = day.ledger.account(), BREACHES[happens]
    assert getattr(account, kind) == [sentence]
    assert account.breaches == [sentence]


def test_what_may_come_out_of_order() -> None:
    """Cameras do not wait for each other, and a refusal does not wait for those before it."""
    day = Day()
    day.tell(2, camera="side")
    day.tell(1, camera="top")
    day.tell(9, result=Result.UNDEFINED, reason="overrun", camera="top")
    day.tell(3, camera="top")
    assert day.ledger.account().stale == []


def test_an_account_of_a_stretch_of_time() -> None:
    """What happened before is another account's, but is known: nothing told then is missing now."""
    day = Day(from_start=True)
    day.ask(1)
    day.tell(1)
    day.ask(2, at=20.0)
    day.tell(2, at=20.1)
    account = day.ledger.account(15.0)
    assert (account.sent, account.accepted, account.live, account.breaches) == (1, 1, 1, [])
    assert day.ledger.first_judged(15.0) == 20.1 and day.ledger.first_judged(20.0) is None


def samples(**series: list[float]) -> list[Sample]:
    """One a second; what is not named stays as it is."""
    n = len(next(iter(series.values())))
    still: dict[str, list[float]] = {
        "memory_mib": [100.0] * n,
        "handles": [50] * n,
        "threads": [10] * n,
        "undelivered": [0] * n,
    }
    rows = zip(*(still | series).values(), strict=True)
    return [Sample(float(at), *row) for at, row in enumerate(rows)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("series", "grown"),
    [
        ({"memory_mib": [100.0] * 20}, []),
        ({"memory_mib": [50.0] * 5 + [100.0] * 15}, []),  # the warm-up
        ({"memory_mib": [100.0 + n / 2 for n in range(20)]}, ["memory_mib"]),
        ({"memory_mib": [100.0] * 19 + [500.0]}, []),  # one of them is no growth
        ({"handles": [50] * 10 + [52] * 10}, ["handles"]),
        ({"threads": [10] * 10 + [11] * 10}, ["threads"]),
        ({"undelivered": [0] * 10 + [20] * 10}, []),  # what is under way
        ({"undelivered": [0] * 10 + [21] * 10}, ["undelivered"]),
    ],
)
def test_growth_is_what_stays(series: dict[str, list[float]], grown: list[str]) -> None:
    """More than 2 % between the first and the last quarter after the warm-up."""
    assert [each.name for each in growths(samples(**series), 5.0) if each.is_too_much] == grown


def test_too_few_samples_say_nothing() -> None:
    """No growth is not claimed of what was not watched."""
    assert growths(samples(memory_mib=[100.0] * 8), 5.0) == [] and growths([], 0.0) == []


def test_a_sample_of_this_process(tmp_path: Path) -> None:
    """A file and a thread more are seen; a process that is gone gives none."""
    with Journal(tmp_path / JOURNAL_FILE):
        pass  # of a station that is not this process: SQLite would keep its handles for the next one here
    time.sleep(0.2)  # the kernel counts its writer's thread a little longer
    before = sample(os.getpid(), tmp_path)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    with (tmp_path / "file").open("w"):
        after = sample(os.getpid(), tmp_path)
    stop.set()
    thread.join()
    assert before is not None and after is not None
    assert (after.handles - before.handles, after.threads - before.threads) == (1, 1)
    assert 10 < before.memory_mib < 10_000 and before.undelivered == 0
    assert family(2**22) == [] and sample(2**22, tmp_path) is None


@pytest.mark.parametrize(("options", "said"), [({"minutes": 0.0}, "--minutes is 0"), ({"rate": -1.0}, "--rate is -1")])
def test_soak_refuses_what_makes_no_sense(options: dict[str, float], said: str) -> None:
    """Before anything is read or started."""
    with pytest.raises(InputError, match=said):
        soak(config=Path("none.yaml"), **options)


def station_file(folder: Path, port: int, **changes: Any) -> Path:
    path = folder / "config.yaml"
    tree = {
        "station": "press-7",
        "state_dir": "state",
        "cameras": [{"name": "top", "source": {"kind": "simulated", "fps": 20, "defect_rate": 0.5}}],
        "trigger": {"kind": "mqtt"},
        "deadline_ms": 2000,
        "recipes": {1: str(DEMO_BUNDLE)},
        "engine": {"kind": "onnxruntime", "threads": 1},
        "mqtt": {"host": "127.0.0.1", "port": port, "root": "acme/press-7"},
        "metrics": {"port": 0},
    }
    path.write_text(yaml.safe_dump(tree | changes), encoding="utf-8")
    return path


@pytest.mark.timeout(90)
def test_soak_starts_a_station_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few seconds of it: every trigger is accounted for. Growth is for longer ones, and is shown."""
    with mosquitto() as broker:
        code = soak(config=station_file(tmp_path, broker.port), minutes=0.07, rate=5.0, json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["sent"] >= 15 and told["accepted"] == told["sent"] == told["live"] + told["history"]
    assert [told[kind] for kind in ("missing", "contradictions", "wrong_ok", "stale")] == [[]] * 4
    assert told["latency_ms"]["p50"] > 1.0
    assert set(told["resources"]) == {"memory_mib", "handles", "threads", "undelivered"}
    assert all("has grown" in problem for problem in told["problems"])
    assert code == (EXIT_FAILURE if told["problems"] else EXIT_DONE)


@pytest.mark.timeout(90)
def test_soak_fails_on_an_escape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part that is known to be defective and passes all the same is a sentence in red, and exit code 1."""
    (tmp_path / "pictures").mkdir()
    assert cv2.imwrite(str(tmp_path / "pictures" / "D-1.png"), picture(OK_LEVEL))
    cameras = [{"name": "top", "source": {"kind": "folder", "path": "pictures", "loop": True}}]
    with mosquitto() as broker:
        path = station_file(tmp_path, broker.port, cameras=cameras, recipes={1: str(level_bundle(tmp_path))})
        assert soak(config=path, minutes=0.03, rate=10.0, defective="D-*") == EXIT_FAILURE
    said = " ".join(capsys.readouterr().out.split())
    assert "D-1 is defective and was called OK" in said and "wrongly OK" in said
