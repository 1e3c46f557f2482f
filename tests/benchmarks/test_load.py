"""The search for the highest rate, and the table of it."""

from __future__ import annotations

import json

import pytest
from benchmarks.load import PRECISION, Held, held_of, highest_held, overhead_lines, table


def station(capacity: float, confirmed: float = float("inf")) -> tuple[object, object, list[float]]:
    """A station that holds up to `capacity` parts a second, and for longer up to `confirmed`."""
    tried: list[float] = []

    def trial(limit: float) -> object:
        def work(rate: float) -> Held:
            tried.append(rate)
            sent = round(10 * rate)
            return Held(rate, sent, sent if rate <= limit else sent - 1, 5.0, 9.0, 12.0)

        return work

    return trial(capacity), trial(min(capacity, confirmed)), tried


@pytest.mark.parametrize("capacity", [3.0, 19.0, 20.0, 47.0, 160.0, 731.0])
def test_the_highest_rate_is_found_within_the_precision(capacity: float) -> None:
    try_rate, confirm, tried = station(capacity)
    found = highest_held(try_rate, confirm)  # type: ignore[arg-type]
    assert found is not None and found.is_held
    assert capacity / PRECISION <= found.rate <= capacity
    assert len(tried) < 25


def test_what_holds_only_for_a_moment_is_not_the_highest() -> None:
    """The confirmation takes longer and decides."""
    found = highest_held(*station(300.0, confirmed=210.0)[:2])  # type: ignore[arg-type]
    assert found is not None and 210 / PRECISION <= found.rate <= 210


def test_a_station_that_holds_nothing_has_no_rate() -> None:
    assert highest_held(*station(0.0)[:2]) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sent", "by_result", "is_held"),
    [(80, [0, 60, 20, 0], True), (80, [1, 59, 20, 0], False), (80, [0, 59, 20, 0], False), (0, [0, 0, 0, 0], False)],
)
def test_every_trigger_has_to_be_judged(sent: int, by_result: list[int], is_held: bool) -> None:
    """An overrun, a refusal or nothing at all is a miss."""
    report = {"sent": sent, "by_result": by_result, "latency_ms": {"p50": 4.2, "p99": 9.1, "p99.9": None}}
    found = held_of(10.0, json.loads(json.dumps(report)))
    assert found.is_held is is_held
    assert (found.p50, found.p99, found.p999) == (4.2, 9.1, 0.0)


def test_tables() -> None:
    held, half = Held(151.3, 100, 100, 4.0, 8.0, 9.0), Held(75.6, 100, 98, 3.0, 6.0, 7.5)
    shown = table([(1, held, half), (8, None, None)])
    assert "| 1 | 151 | 3.0 ms (2 of 100 missed) | 6.0 ms | 7.5 ms |" in shown
    assert "| 8 | below 2 | | | |" in shown
    spread = {"median": 2.0, "p99": 3.0}
    lines = overhead_lines(
        {
            "parts": 9,
            "filesystem": "ext4",
            "overhead_ms": spread,
            "infer_ms": spread,
            "fsync_ms": {"median": 0.5, "p99": 1.25},
        }
    )
    assert "| difference | 1.50 ms | 1.75 ms |" in lines
