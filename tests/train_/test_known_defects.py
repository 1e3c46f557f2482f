"""Known defects: found beside the good parts, scored, counted at the threshold, and priced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, stats
from tests.train_.parts import level_onnx, part, write

from flawline_inspect.errors import InputError
from flawline_inspect.frame import FrameSpec
from flawline_inspect.health import Bound, Health
from flawline_train.known_defects import (
    CostModel,
    DefectScores,
    cheapest_threshold,
    find_defects,
    score_defects,
)
from flawline_train.threshold import ExponentialTail

SPEC = FrameSpec(32, 32)
MODEL = level_onnx((32, 32), gain=0.1)


def grey(level: int) -> np.ndarray:
    return np.full((32, 32), level, np.uint8)


def test_kinds_are_the_sub_folders(tmp_path: Path) -> None:
    """Nested ones with their whole path; what lies in the folder itself has the folder's name; dots belong to names."""
    bad = tmp_path / "bad"
    for name in ("a.png", "dent/a.png", "dent/b.png", "scratch/v1.2/a.png"):
        write(bad / name, part(0))
    found = find_defects(bad, tmp_path / "good")
    assert [(path.relative_to(bad).as_posix(), kind) for path, kind in found] == [
        ("a.png", "bad"), ("dent/a.png", "dent"), ("dent/b.png", "dent"), ("scratch/v1.2/a.png", "scratch/v1.2"),
    ]  # fmt: skip


@pytest.mark.parametrize(("defects", "good"), [("x", "x"), ("x/bad", "x"), ("x", "x/good")])
def test_defects_among_good_parts_are_refused(tmp_path: Path, defects: str, good: str) -> None:
    """A folder within the other would teach defects as good, or count good parts as escapes."""
    write(tmp_path / "x" / "bad" / "a.png", part(0))
    with pytest.raises(InputError, match="overlaps with the good pictures' folder"):
        find_defects(tmp_path / defects, tmp_path / good)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    """Nothing to report is said before minutes of training."""
    (tmp_path / "bad").mkdir()
    with pytest.raises(InputError, match="holds no picture"):
        find_defects(tmp_path / "bad", tmp_path / "good")


def test_scores_and_escapes(tmp_path: Path) -> None:
    """Scores are the graph's; a score equal to the threshold passes; what cannot be read is named, not counted."""
    for name, level in {"dent/a.png": 90, "dent/b.png": 140, "stain/a.png": 100, "stain/b.png": 99}.items():
        write(tmp_path / "bad" / name, grey(level))
    (tmp_path / "bad" / "stain" / "c.png").write_bytes(b"")
    seen: list[tuple[int, int]] = []
    found = score_defects(
        MODEL, SPEC, find_defects(tmp_path / "bad", tmp_path / "good"), on_progress=lambda *done: seen.append(done)
    )
    assert found.kinds == ("dent", "dent", "stain", "stain")
    np.testing.assert_allclose(found.scores, [9, 14, 10, 9.9], rtol=1e-6)
    assert len(found.skipped) == 1 and "c.png" in found.skipped[0] and seen == [(i, 5) for i in range(1, 6)]
    threshold = float(found.scores[2])
    assert found.escapes(threshold) == {"dent": (1, 2), "stain": (2, 2)}
    dent, stain = found.section(threshold)
    assert (dent["kind"], dent["n"], dent["escaped"]) == ("dent", 2, 1)
    interval = stats.binomtest(2, 2).proportion_ci(0.95, "exact")
    assert stain["escape_interval"] == pytest.approx((interval.low, interval.high))


def test_what_cannot_be_scored_does_not_escape(tmp_path: Path) -> None:
    """A score that is no number is rejected on the line, so it escapes at no threshold."""
    write(tmp_path / "bad" / "a.png", grey(255))
    model = level_onnx((32, 32), white_is_nan=True)
    found = score_defects(model, SPEC, find_defects(tmp_path / "bad", tmp_path / "good"))
    assert found.escapes(1e30) == {"bad": (0, 1)}


def test_what_cannot_be_judged_does_not_escape(tmp_path: Path) -> None:
    """A picture that the line refuses as too dark is no escape, and is counted among its kind."""
    for name, level in {"a.png": 20, "b.png": 90}.items():
        write(tmp_path / "bad" / name, grey(level))
    health = Health({"brightness": Bound((80, 100), (50, 150))})
    found = score_defects(MODEL, SPEC, find_defects(tmp_path / "bad", tmp_path / "good"), health)
    assert found.scores.tolist() == [np.inf, pytest.approx(9)] and not found.skipped
    assert found.escapes(1e30) == {"bad": (1, 2)}


def test_nothing_readable_is_refused(tmp_path: Path) -> None:
    """With the first reason."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of 1 pictures could be used, the first: .*a\.png"):
        score_defects(MODEL, SPEC, find_defects(tmp_path / "bad", tmp_path / "good"))


@pytest.mark.parametrize(
    "prices", [(1.0, 1.0), (1.0, 1000.0), (50.0, 1.0)], ids=["even", "escapes hurt", "scrap hurts"]
)
@pytest.mark.parametrize("seed", range(3))
def test_the_cheapest_threshold_beats_every_other(prices: tuple[float, float], seed: int) -> None:
    """Against a search over a fine grid: no threshold costs less, but for the margin kept below a defect's score."""
    rng = np.random.default_rng(seed)
    good, bad = np.sort(rng.gamma(4, 1, 30)), np.sort(rng.gamma(6, 2, 40))
    costs = CostModel(*prices, defect_rate=0.1)
    value, cost = cheapest_threshold(good, bad, costs)
    tail = ExponentialTail(good)

    def price(threshold: float) -> float:
        return prices[0] * 0.9 * tail.rate(threshold) + prices[1] * 0.1 * float((bad <= threshold).mean())

    assert cost == pytest.approx(price(value))
    grid = optimize.brute(lambda x: price(float(x[0])), ((0.0, 60.0),), Ns=6000, finish=None)
    assert cost <= price(float(grid)) * 1.02


def test_dearer_escapes_never_raise_the_cheapest_threshold() -> None:
    """The more an escape costs, the lower the threshold; the dearer scrap is, the higher."""
    rng = np.random.default_rng(0)
    good, bad = rng.gamma(4, 1, 30), rng.gamma(6, 2, 40)
    values = [cheapest_threshold(good, bad, CostModel(1.0, escape))[0] for escape in (0.1, 1, 10, 100, 1000, 1e5)]
    assert values == sorted(values, reverse=True) and values[0] > values[-1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0.0, 1.0), "--cost-false-reject is 0.0"),
        ((1.0, -2.0), "--cost-escape is -2.0"),
        ((1.0, float("inf")), "--cost-escape is inf"),
        ((1.0, 1.0, 0.0), "--defect-rate is 0.0"),
        ((1.0, 1.0, 1.0), "--defect-rate is 1.0"),
    ],
)
def test_prices_that_price_nothing_are_refused(arguments: tuple[float, ...], sentence: str) -> None:
    """Each by its option."""
    with pytest.raises(InputError, match=sentence):
        CostModel(*arguments)


def test_kinds_are_sorted() -> None:
    """Whatever the order of the pictures."""
    assert list(DefectScores(("b", "a", "b"), np.array([1.0, 2.0, 3.0])).escapes(2.0)) == ["a", "b"]
