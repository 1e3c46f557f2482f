"""`status.json` in the state directory: what the station is, for whoever looks from outside without a broker.

It is written when something changes, and its time is renewed every second for as long as the inspection goes on. One that
has not been renewed for longer than it says itself belongs to a station that hangs or is dead.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from flawline_inspect.clock import wall_clock
from flawline_inspect.errors import FlawlineError
from flawline_inspect.files import write_atomic

__all__ = ["HEALTHY_STATES", "Status", "StatusError", "read_status", "renew_status", "write_status"]

FILE = "status.json"
HEALTHY_STATES = ("ready", "paused")
_MAX_BYTES = 4096


class StatusError(FlawlineError):
    """There is no station to tell of, or none that is alive."""


@dataclass(frozen=True, slots=True)
class Status:
    """`since` is wall clock, UTC, for people; `stale_after_s` is how old the file gets where all is well."""

    station: str
    state: str
    reason: str
    since: str
    boot: str
    recipe: int
    model: str
    engine: str
    precision: str
    pid: int
    stale_after_s: float

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        engine = f", {self.engine} {self.precision}" if self.engine else ""
        return f"{self.station}: {self.state}{why} since {self.since}, recipe {self.recipe}, model {self.model}{engine}"


def write_status(state_dir: Path, status: Status) -> None:
    """Raises `OSError`."""
    write_atomic(state_dir / FILE, (json.dumps(asdict(status)) + "\n").encode())


def renew_status(state_dir: Path) -> None:
    """The station is as the file says, still. Raises `OSError`. Nothing is forced to the disk: flash lives longer so."""
    os.utime(state_dir / FILE)


def read_status(state_dir: Path) -> Status:
    """What the station in this state directory is. Raises `StatusError` when none is alive there."""
    path = state_dir / FILE
    try:
        with path.open("rb") as file:
            age_s = abs(wall_clock() - os.fstat(file.fileno()).st_mtime)
            status = Status(**json.loads(file.read(_MAX_BYTES)))
    except FileNotFoundError as exc:
        raise StatusError(f"{path}: does not exist; no station has run with this state_dir") from exc
    except (OSError, ValueError, TypeError) as exc:
        raise StatusError(f"{path}: cannot be read as a station's status ({exc})") from exc
    if status.state == "stopped" or age_s <= status.stale_after_s:
        return status
    raise StatusError(
        f"{status.station}: was {status.state} and has given no sign for {age_s:.0f} s; it hangs or is dead, see its log"
    )
