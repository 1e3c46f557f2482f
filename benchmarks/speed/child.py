"""The process that one contender lives in, so that its memory is its own and one that hangs can be ended.

    python -m benchmarks.speed.child prepare CONTENDER WORK
    python -m benchmarks.speed.child race CONTENDER WORK

In a race it says `{"ready": [way, ...]}`, then answers each line `WAY SECONDS` with the times of its calls, and `end` with its
peak memory. Answers are lines of JSON behind `MARK`: what libraries print does not matter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.speed.contenders import Contender, Way, opened, prepare

from flawline_engines.bench import times_in_turn

__all__ = ["MARK", "main"]

MARK = "speed> "
MIN_RUNS = 2
"""In one turn of several: a call of the slowest takes ten seconds."""


def main(what: str, contender: Contender, work: Path) -> None:
    if what == "prepare":
        prepare(contender, work)
        _tell(done=True)
        return
    with opened(contender, work) as ways:
        possible = {}
        refused = {}
        for name, way in ways.items():
            error = _error(way)
            if error:
                refused[name] = error
            else:
                possible[name] = way
        _tell(ready=list(possible), refused=refused)
        for line in sys.stdin:
            if line.strip() == "end":
                break
            name, seconds = line.split()
            way = possible[name]
            [ms] = times_in_turn([way], seconds=float(seconds), rounds=1, min_runs=MIN_RUNS, min_warm_ups=0)
            _tell(ms=[round(float(value), 4) for value in ms])
    _tell(peak_mib=_peak_mib())


def _error(way: Way) -> str:
    """Why it cannot be done, of one call that also allocates and compiles what the first call does; else nothing."""
    try:
        way()
    except Exception as exc:  # of any library
        return f"{type(exc).__name__}: {exc}".splitlines()[0][:200]
    return ""


def _tell(**answer: Any) -> None:
    print(MARK + json.dumps(answer), flush=True)


def _peak_mib() -> float | None:
    """None where there is no /proc."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = [line for line in text.splitlines() if line.startswith("VmHWM")]
    return int(found[0].split()[1]) / 1024 if found else None


if __name__ == "__main__":
    main(sys.argv[1], Contender(**json.loads(sys.argv[2])), Path(sys.argv[3]))
