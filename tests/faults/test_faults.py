"""Each fault once, on a real station with a real broker: no part is lost, none is told twice or late, none is wrongly OK.

`python -m tests.faults --full` runs them many times over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.edge.small_disk import SmallDisk, small_disk
from tests.faults.injectors import FAULTS, Outcome, run_fault
from tests.faults.rig import Rig, rig

__all__ = ["small_disk"]  # the fixture

pytestmark = pytest.mark.timeout(90)

ON_A_DISK_OF_ITS_OWN = "disk full"
SEED = 20


@pytest.fixture(scope="module")
def inflict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Outcome]]:
    """Does a fault to the rig that the tests share; after one that failed the next gets a new rig."""
    stack = ExitStack()
    shared: list[Rig] = []

    def run(name: str) -> Outcome:
        if not shared:
            shared.append(stack.enter_context(rig(tmp_path_factory.mktemp("rig"), seed=SEED)))
        try:
            outcome = run_fault(shared[0], name)
        except BaseException:
            shared.clear()
            stack.close()
            raise
        if outcome.account.breaches:
            shared.clear()
            stack.close()
        return outcome

    with stack:
        yield run


def _is_kept(outcome: Outcome) -> None:
    account = outcome.account
    assert not account.breaches, "\n".join(account.breaches[:20])
    assert account.accepted >= 3 and account.live >= 1
    assert account.accepted == account.live + account.history


@pytest.mark.parametrize("name", [name for name in FAULTS if name != ON_A_DISK_OF_ITS_OWN])
def test_a_station_keeps_its_word(inflict: Callable[[str], Outcome], name: str) -> None:
    """Whatever happens: every accepted trigger once, never a wrong OK, never an old verdict live, and back by itself."""
    _is_kept(inflict(name))


def test_a_station_whose_disk_is_full(tmp_path: Path, small_disk: SmallDisk) -> None:
    """The same where nothing can be written for a while."""
    with rig(tmp_path, state_dir=small_disk.folder / "state", seed=SEED) as made:
        _is_kept(run_fault(made, ON_A_DISK_OF_ITS_OWN))
