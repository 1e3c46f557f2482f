"""What the tests share: the real pictures and the programs that a machine may or may not have.

Where something is missing the test is skipped with the reason; where CI is set it fails instead, because a
skip that nobody reads is a test that nobody has.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
DATA_VARIABLE = "FLAWLINE_TEST_DATA"
_SYSTEM_PROGRAMS = (
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
)  # Debian puts mosquitto where no ordinary PATH looks

# `pytest --hypothesis-profile=thorough` for a night: tests take at least as many examples as their profile says.
settings.register_profile("thorough", max_examples=5000, deadline=None)

if "PYTEST_XDIST_WORKER" in os.environ:
    # The processes share the cores: a torch that spreads over all of them in each is several times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_ONE_AFTER_THE_OTHER = {"acceptance": "station", "edge": "station", "faults": "station", "engines": "engines"}
"""Tests of stations keep time and must not compete with each other; those of engines share graphs that take long to make."""
_NO_STATION = ("test_align.py", "test_bad_input.py", "test_train.py")
"""Of acceptance: they train, and take the longest of all."""

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(f"{reason} (CI is set, so this is no reason to skip)", pytrace=False)
    pytest.skip(reason)


def _data_root() -> Path:
    return Path(os.environ.get(DATA_VARIABLE) or ROOT.parent / "shared" / "data")


def _shared_data(name: str) -> Path:
    folder = _data_root() / name
    if not (folder / "train" / "good").is_dir():
        _unavailable(f"the pictures of {name} are not at {folder}; set {DATA_VARIABLE} to the folder that holds them")
    return folder


def _require_program(name: str) -> Path:
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_PROGRAMS)))
    if found is None:
        _unavailable(f"the program {name} is not installed")
    return Path(found)


def _require_browser() -> Path:
    for name in _BROWSERS:
        if found := shutil.which(name):
            return Path(found)
    _unavailable(f"no browser is installed ({', '.join(_BROWSERS)})")


def _has_gpu() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which process runs a test: the one that runs its group, which is its file but for the above."""
    for item in items:
        folder, name = item.path.relative_to(ROOT / "tests").parts[0], item.path.name
        group = name if name in _NO_STATION else _ONE_AFTER_THE_OTHER.get(folder, name)
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_gpu") is not None and not _has_gpu():
        pytest.skip("there is no NVIDIA driver (libcuda.so.1) on this machine")
    for marker in item.iter_markers("needs_data"):
        _shared_data(*marker.args)
    if item.get_closest_marker("needs_browser"):
        _require_browser()


@pytest.fixture(scope="session")
def unavailable() -> Callable[[str], NoReturn]:
    """`unavailable(reason)` skips the test; where CI is set it fails it."""
    return _unavailable


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("toy_alien")` is the folder of that set: train/good, test/good, test/DEFECT and so on."""
    return _shared_data


@pytest.fixture(scope="session")
def require_program() -> Callable[[str], Path]:
    """`require_program("mosquitto")` is the program's path."""
    return _require_program


@pytest.fixture(scope="session")
def require_browser() -> Callable[[], Path]:
    """`require_browser()` is the path of Chromium or what is called otherwise and is the same."""
    return _require_browser
