"""`python -m benchmarks.journal` measures what it says, on a journal small enough for a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.journal",
            "--verdicts",
            "2000",
            "--seconds",
            "0.5",
            "--folder",
            str(tmp_path),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "a journal of 2,000 verdicts" in done.stdout
    rows = {
        cells[0].strip(): cells[1].strip()
        for line in done.stdout.splitlines()
        if len(cells := line.strip("│┃ ").replace("┃", "│").split("│")) == 2
    }
    for found, query in (
        (100, "the newest 100"),
        (10, "--reason overrun (10 in all)"),
        (1, "--part"),
        (0, "--camera (none)"),
    ):
        assert rows[f"query: {query}"].endswith(f"({found} rows)"), rows
    assert "n = 10" in rows["commit, 20 parts a second"]
    assert list(tmp_path.iterdir()) == []
