"""`python -m tests.faults [--full] [--only WORDS] [--times N] [--seed N] [--write]`: the fault matrix, as a table.

Without --full each fault is done once; with it many times, and two outages are done to simple publishers as well.
--write puts the table into benchmarks/RESULTS.md. Ends with 1 where the contract was broken.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from tests.faults import peers, tables
from tests.faults.injectors import FAULTS, Outcome, run_fault
from tests.faults.rig import Rig, rig

TIMES = 20
KILLS = 50
RATE, FULL_RATE = 10.0, 20.0
_NEEDS_A_DISK = "disk full"


@contextmanager
def _disk(folder: Path) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], check=True)
    try:
        yield disk / "state"
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@contextmanager
def _rig_for(name: str, rate: float, seed: int) -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        if name == _NEEDS_A_DISK:
            with _disk(Path(folder)) as state_dir, rig(Path(folder), state_dir=state_dir, rate=rate, seed=seed) as made:
                yield made
        else:
            with rig(Path(folder), rate=rate, seed=seed) as made:
                yield made


def _do(name: str, times: int, rate: float, seed: int) -> Iterator[Outcome]:
    with _rig_for(name, rate, seed) as made:
        for _ in range(times):
            outcome = run_fault(made, name)
            account = outcome.account
            print(
                f"{name:<28} accepted {account.accepted:4d}, live {account.live:4d}, history {account.history:3d}, heard"
                f" again {account.repeated:2d}, results {account.by_result} {account.by_reason}, median {account.median_ms:.0f} ms,"
                f" recovered in {outcome.recovery_s:.2f} s {outcome.note}",
                flush=True,
            )
            for breach in account.breaches:
                print(f"    {breach}", flush=True)
            yield outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default="", help="faults whose name has these words in it")
    parser.add_argument("--times", type=int, default=0, help="instead of 1, or with --full 20, and 50 for kill -9")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    outcomes: list[Outcome] = []
    failed = []
    for name in FAULTS:
        if given.only not in name:
            continue
        times = given.times or ((KILLS if name == "daemon kill -9" else TIMES) if given.full else 1)
        try:
            outcomes += _do(name, times, FULL_RATE if given.full else RATE, given.seed)
        except AssertionError as exc:
            print(f"{name}: {exc}", flush=True)
            failed.append(name)
    text = f"{_machine()}, seed {given.seed}.\n\n{tables.fault_table(outcomes)}"
    if failed:
        text += f"\n\nNot finished: {', '.join(failed)}."
    if given.full and not given.only:
        for outage, inflict in peers.OUTAGES.items():
            deliveries = [*(peers.deliver(name, inflict) for name in peers.PEERS), peers.deliver_ours(inflict)]
            text += f"\n\nWhat simple publishers make of it, {outage}, 20 verdicts a second:\n\n{tables.peer_table(deliveries)}"
    print(f"\n{text}")
    if given.write:
        tables.write(text)
    return 1 if failed or any(outcome.account.breaches for outcome in outcomes) else 0


def _machine() -> str:
    commit = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    return f"{platform.processor() or platform.machine()}, {datetime.now(timezone.utc):%Y-%m-%d}, commit {commit.stdout.strip()}"


if __name__ == "__main__":
    sys.exit(main())
