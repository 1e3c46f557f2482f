"""The engineer's path on real pictures: train on good parts, then measure on parts never seen."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

N_GOOD, N_BAD = 18, 60
EVALUATION_KEYS = {
    "image_auroc", "average_precision", "pixel_auroc", "aupro", "false_reject_rate", "escape_rate", "threshold",
    "n_good", "n_bad", "by_defect", "image_auroc_interval", "false_reject_interval", "escape_interval",
    "promised_false_reject_rate", "promise_kept", "n_good_unhealthy", "n_bad_unhealthy",
}  # fmt: skip
DONE, NOT_OK = 0, 3


def flawline(*arguments: str | Path, ends_with: int = DONE, timeout_s: float = 60.0) -> str:
    """Run a command as a user would; returns what it printed on stdout."""
    ended = subprocess.run(
        [sys.executable, "-m", "flawline_inspect.cli", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert ended.returncode == ends_with, f"{ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    assert "Traceback" not in ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.needs_data("toy_alien")
def test_forty_good_pictures_make_a_model_that_finds_defects(
    shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    """By default: AUROC at least 0.97, at most three of 18 good parts rejected (ten held-out parts promise no less), and `check` sees what
    `eval` sees.

    One test, since what it looks at costs minutes of training once.
    """
    alien, bundle = shared_data("toy_alien"), tmp_path / "alien.flawline"
    good = alien / "train" / "good"
    trained = flawline("train", good, "-o", bundle, timeout_s=800)

    printed = flawline("eval", bundle, alien, "--json", timeout_s=120)
    evaluation = json.loads(printed)
    assert printed.count("\n") == 1
    assert set(evaluation) == EVALUATION_KEYS
    assert (evaluation["n_good"], evaluation["n_bad"]) == (N_GOOD, N_BAD)
    assert (evaluation["n_good_unhealthy"], evaluation["n_bad_unhealthy"]) == (0, 0)
    assert evaluation["pixel_auroc"] is None and evaluation["aupro"] is None  # the set has no masks
    assert set(evaluation["by_defect"]) == {"anomaly"} and evaluation["by_defect"]["anomaly"]["n"] == N_BAD
    assert evaluation["image_auroc"] >= 0.97, f"{evaluation}\n{trained}"
    assert evaluation["false_reject_rate"] <= 0.17, f"{evaluation}\n{trained}"
    assert evaluation["promise_kept"] is True, f"{evaluation}\n{trained}"
    for rate in ("image_auroc", "false_reject", "escape"):
        low, high = evaluation[f"{rate}_interval"]
        assert low <= evaluation[rate if rate == "image_auroc" else f"{rate}_rate"] <= high

    checked = flawline("check", bundle, alien / "test", "--json", ends_with=NOT_OK, timeout_s=120)
    results = [json.loads(line) for line in checked.splitlines()]
    passed = {
        kind: sum(line["result"] == 1 for line in results if Path(line["picture"]).parent.name == kind)
        for kind in ("good", "anomaly")
    }
    assert len(results) == N_GOOD + N_BAD
    assert N_GOOD - passed["good"] == round(evaluation["false_reject_rate"] * N_GOOD)
    assert passed["anomaly"] == round(evaluation["escape_rate"] * N_BAD)
    assert all(abs(line["threshold"] - evaluation["threshold"]) < 1e-5 for line in results)
