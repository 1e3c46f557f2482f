"""The built wheel as a station gets it: fresh environment, no torch, the sources out of the way.

No interpreter is downloaded. Python 3.10 is what JetPack 6 ships and so a promise: CI must have it. The
newest one is a bonus that not every image carries: where it is missing its tests are skipped, in CI too.
"""

from __future__ import annotations

import os
import re
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]
OLDEST, NEWEST = "3.10", "3.13"
PACKAGES = {"flawline_inspect", "flawline_engines", "flawline_train", "flawline_edge"}
UNREACHABLE = re.compile(r"dns error|error sending request|connect error|network was disabled", re.IGNORECASE)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True, slots=True)
class Station:
    """An environment that holds the wheel, and a folder to work in that holds nothing."""

    environment: Path
    folder: Path

    def run(self, program: str, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.environment / "bin" / program, *arguments],
            cwd=self.folder,
            env=outside(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def python(self, code: str) -> str:
        done = self.run("python", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def outside() -> dict[str, str]:
    """This process's variables without those that would let the sources or another environment in."""
    return {name: v for name, v in os.environ.items() if not name.startswith("PYTHON") and name != "VIRTUAL_ENV"}


def interpreter(uv: Path, version: str) -> Path | None:
    """A local Python. pyenv's come first: uv stumbles over pyenv's shims of versions that are not active."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for found in sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}")):
        return found
    done = subprocess.run(
        [uv, "python", "find", "--no-python-downloads", "--no-project", "--system", version],
        env=outside(),
        capture_output=True,
        text=True,
        check=False,
    )
    return Path(done.stdout.strip()) if done.returncode == 0 else None


@pytest.fixture(scope="module")
def uv(require_program: Callable[[str], Path], unavailable: Callable[[str], NoReturn]) -> Callable[..., str]:
    """Run uv; where the package index cannot be reached, the test is unavailable and not wrong."""
    program = require_program("uv")

    def run(*arguments: str | Path) -> str:
        done = subprocess.run(
            [program, *arguments], cwd=ROOT, env=outside(), capture_output=True, text=True, check=False
        )
        if done.returncode and UNREACHABLE.search(done.stderr):
            unavailable(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def wheel(uv: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    uv("build", "--wheel", "--no-python-downloads", "--out-dir", out, ROOT)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module", params=[OLDEST, NEWEST])
def station(
    request: pytest.FixtureRequest,
    require_program: Callable[[str], Path],
    unavailable: Callable[[str], NoReturn],
    uv: Callable[..., str],
    wheel: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Station:
    """The wheel with its demo extra, at the locked versions: a new release elsewhere breaks no test here."""
    python = interpreter(require_program("uv"), request.param)
    if python is None:
        reason = f"this machine has no Python {request.param}"
        if request.param == NEWEST:
            pytest.skip(reason)
        unavailable(reason)
    home = tmp_path_factory.mktemp("station")
    environment, locked, folder = home / "environment", home / "locked.txt", home / "work"
    folder.mkdir()
    locked.write_text(
        uv(
            "export",
            "--frozen",
            "--no-python-downloads",
            "--extra",
            "demo",
            "--no-emit-project",
            "--no-hashes",
        ),
        encoding="utf-8",
    )
    uv("venv", "--no-project", "--no-python-downloads", "--python", python, environment)
    into = ("--python", environment / "bin" / "python")
    uv("pip", "install", *into, "--constraint", locked, f"flawline[demo] @ {wheel.as_uri()}")
    return Station(environment, folder)


def test_wheel_holds_the_four_packages_and_nothing_else(wheel: Path) -> None:
    """Nothing importable as `inspect`, no tests; the licence, the type markers and the demo bundle are in."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert "flawline_edge/demo.flawline" in names
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_packages_come_from_the_wheel(station: Station) -> None:
    """What runs below is the installed package, not the checkout."""
    for package in sorted(PACKAGES):
        file = station.python(f"import importlib.util; print(importlib.util.find_spec({package!r}).origin)")
        assert Path(file).is_relative_to(station.environment)


@pytest.mark.parametrize("name", ["torch", "lightning", "anomalib", "onnx"])
def test_no_training_package_is_installed(station: Station, name: str) -> None:
    """A station never pulls torch: not by the dependencies, not by the demo."""
    assert station.python(f"import importlib.util; print(importlib.util.find_spec({name!r}))") == "None"


def test_version(station: Station) -> None:
    """`flawline --version` says what is installed."""
    installed = station.python("import importlib.metadata; print(importlib.metadata.version('flawline'))")
    done = station.run("flawline", "--version")
    assert done.returncode == 0, done.stderr
    assert installed in done.stdout


def test_help_names_every_command(station: Station) -> None:
    """`flawline --help` lists all commands, those of training too, without importing them."""
    done = station.run("flawline", "--help")
    assert done.returncode == 0, done.stderr
    missing = {"demo", "train", "check", "eval", "run", "bench", "bundle", "config"} - set(done.stdout.split())
    assert not missing


def test_shipped_bundle_is_valid(station: Station) -> None:
    """The demo's bundle arrives undamaged."""
    where = "import flawline_edge, pathlib; print(pathlib.Path(flawline_edge.__file__).parent / 'demo.flawline')"
    done = station.run("flawline", "bundle", "verify", station.python(where))
    assert done.returncode == 0, done.stdout + done.stderr


def test_demo_runs(station: Station) -> None:
    """`flawline demo` works from an empty folder, with nothing but what was installed."""
    done = station.run("flawline", "demo", "--parts", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
