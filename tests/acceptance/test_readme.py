"""What the README tells a newcomer to type works as it stands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from flawline_edge.demo_command import DEMO_BUNDLE
from flawline_edge.simulation import SimulatedLine
from flawline_inspect.cli import app
from flawline_inspect.config import load_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEST_COMMAND = "uv run --group test pytest"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_example_inspects_a_picture(tmp_path: Path) -> None:
    """The ten lines under 'From Python' judge a picture and print its result."""
    (example,) = _blocks("python")
    shutil.copy(DEMO_BUNDLE, tmp_path / "part.flawline")
    cv2.imwrite(str(tmp_path / "new.png"), SimulatedLine(seed=5).part(0, "missing_seal").picture)
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("NotOK ")


def test_ci_runs_the_readme_s_test_command() -> None:
    """The second of the two set-up commands is the very one that continuous integration calls."""
    assert TEST_COMMAND in README
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert any(line.strip().startswith(TEST_COMMAND) for line in lines)


def test_every_command_of_the_readme_exists_with_its_options() -> None:
    """`flawline NAME --option` in the README's shell blocks parses; nothing is run."""
    commands = re.findall(r"^flawline ([^#\n]+)", "\n".join(_blocks("bash")), re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        _, _, ignored = app.parse_args(command.split(), exit_on_error=False, print_error=False)
        assert not ignored, command


@pytest.mark.parametrize("block", _blocks("yaml"))
def test_the_readme_s_configuration_fits_into_config_yaml(block: str, tmp_path: Path) -> None:
    """Each YAML example, put into the shipped config.yaml in place of its own keys, is valid."""
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    keys = re.findall(r"^(\w+):", block, re.MULTILINE)
    for key in keys:
        text = re.sub(rf"^{key}:.*?(?=^\S|\Z)", "", text, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "config.yaml").write_text(f"{text}\n{block}", encoding="utf-8")
    config = load_config(tmp_path / "config.yaml")
    assert all(hasattr(config, key) for key in keys)
