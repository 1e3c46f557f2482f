"""The options of `flawline train` that are read by hand, and what it says of the threshold at its end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tests.inspect_.bundles import small_manifest

from flawline_inspect.bundle import CalibrationSection
from flawline_inspect.errors import InputError
from flawline_train.known_defects import CostModel
from flawline_train.train_command import _costs, _share, _threshold_lines


@pytest.mark.parametrize(
    ("text", "share"),
    [("0.5%", 0.005), ("0.005", 0.005), (" 1 % ", 0.01), ("5e-3", 0.005), ("100%", 1.0), ("-1%", -0.01)],
)
def test_a_share_may_be_a_percentage(text: str, share: float) -> None:
    """0.5% and 0.005 are the same; whether it makes sense is for `train` to say."""
    assert _share(float, [SimpleNamespace(value=text)]) == pytest.approx(share)  # type: ignore[list-item]


@pytest.mark.parametrize("text", ["half", "%", "", "0,5%", "5%%"])
def test_what_is_no_share_is_refused(text: str) -> None:
    """With what was found and what would do."""
    with pytest.raises(ValueError, match=r"is no share, expected a number such as 0\.005 or 0\.5%"):
        _share(float, [SimpleNamespace(value=text)])  # type: ignore[list-item]


def test_costs_come_in_pairs() -> None:
    """None of them, or both."""
    assert _costs(None, None, 0.02) is None
    assert _costs(1.0, 20.0, 0.02) == CostModel(1.0, 20.0, 0.02)
    for given, missing in (((1.0, None), "--cost-escape"), ((None, 1.0), "--cost-false-reject")):
        with pytest.raises(InputError, match=f"{missing} is missing"):
            _costs(*given, 0.01)


def test_the_last_lines_keep_promised_and_estimated_apart() -> None:
    """A line each, then the known defects and the cheapest threshold."""
    section = {
        **small_manifest()["calibration"],
        "exceedances": 0,
        "confidence": 0.95,
        "estimated_false_reject_rate": 0.01,
        "promised_false_reject_rate": 0.6316,
        "defects": {
            "kinds": [{"kind": "dent", "n": 4, "escaped": 1, "escape_interval": (0.0063, 0.8059)}],
            "costs": {
                "false_reject": 1.0, "escape": 20.0, "defect_rate": 0.01, "cost_per_part": 0.12,
                "cheapest_threshold": 3.5, "cheapest_cost_per_part": 0.11,
            },
        },
    }  # fmt: skip
    assert _threshold_lines(CalibrationSection.model_validate(section)).split("\n") == [
        "threshold 4.0000, for 1.00% false rejects; 3 held-out good parts scored up to 3.0000",
        "promised: at most 63.16% false rejects, with 0 of 3 held-out parts above the threshold (confidence 95%)",
        "estimated: 1.00% false rejects",
        "known defects, dent: 1 of 4 escape (0.6% to 80.6% of such)",
        "cheapest threshold by known defects and estimate: 3.5000 at 0.11 a part; 0.12 at 4.0000",
    ]
