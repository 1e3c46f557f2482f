"""`flawline promote`: another model for a recipe, on a station that goes on serving."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from rich.console import Console

from flawline_edge.status_file import HEALTHY_STATES, Status, StatusError, read_status
from flawline_inspect.bundle import Bundle
from flawline_inspect.config import Config, load_config
from flawline_inspect.errors import EXIT_DONE, FlawlineError, InputError
from flawline_inspect.files import write_atomic
from flawline_inspect.overrides import load_overrides, update_overrides

__all__ = ["promote"]

MODELS = "models"
TAKEN_S = 60.0
"""Until a large model is loaded, warmed up and has passed its self-test."""
_POLL_S = 0.1


def promote(bundle: Path, /, *, recipe: int | None = None, config: Path = Path("config.yaml")) -> int:
    """Let a recipe serve another bundle, now and after a restart; the command `rollback` takes it back.

    The bundle is verified, and its signature too where the station asks for one. A copy is kept in the station's
    `state_dir`. A station that runs loads, warms up and tests the model beside the one that serves, and changes over between two parts; if
    it refuses, the old one serves on.

    Parameters
    ----------
    bundle
        The .flawline file to serve.
    recipe
        Its number; without it the one that the station starts with.
    config
        The station's configuration.
    """
    loaded = load_config(config)
    number = loaded.recipe if recipe is None else recipe
    if number not in loaded.recipes:
        have = ", ".join(map(str, sorted(loaded.recipes)))
        raise InputError(f"--recipe is {number}, and {config} has {have}")
    opened = Bundle.open(bundle, public_key=loaded.security.public_key)
    console = Console(highlight=False, soft_wrap=True)
    kept = loaded.state_dir / MODELS / f"{opened.model_id}.flawline"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        now = load_overrides(loaded.state_dir).bundles.get(number)
        if now is not None and now.bundle == kept.resolve() and kept.exists():
            console.print(f"recipe {number} has {opened.model_id} already", markup=False)
            return EXIT_DONE
        write_atomic(kept, bundle.read_bytes())
        update_overrides(loaded.state_dir, lambda overrides: overrides.promoting(number, kept.resolve()))
    except OSError as exc:
        raise InputError(
            f"{loaded.state_dir}: cannot be written ({exc.strerror}); is it the station's state_dir?"
        ) from exc
    status = _station(loaded)
    if status is None or not _is_told(status):
        console.print(f"recipe {number} will serve {opened.model_id} when the station starts", markup=False)
        return EXIT_DONE
    if status.recipe != number:
        console.print(f"recipe {number} will serve {opened.model_id} when it is chosen", markup=False)
        return EXIT_DONE
    if _is_served(loaded, opened.model_id):
        console.print(f"recipe {number} serves {opened.model_id}", markup=False)
        return EXIT_DONE
    update_overrides(loaded.state_dir, lambda overrides: overrides.rolled_back(number) or overrides)
    raise FlawlineError(
        f"the station still serves {status.model} after {TAKEN_S:g} s, and its log says why; {opened.model_id} is not promoted"
    )


def _station(config: Config) -> Status | None:
    """The one that runs; the process of one that has ended may be anybody's by now."""
    try:
        status = read_status(config.state_dir)
    except StatusError:
        return None
    return None if status.state == "stopped" else status


def _is_told(status: Status) -> bool:
    """Whether it re-reads the configuration, and what was promoted; one that was killed a moment ago looks alive still."""
    try:
        os.kill(status.pid, signal.SIGHUP)
    except ProcessLookupError:
        return False
    return True


def _is_served(config: Config, model_id: str) -> bool:
    until = time.monotonic() + TAKEN_S
    while time.monotonic() < until:
        status = _station(config)
        if status is None:
            return False
        if status.model == model_id and status.state in HEALTHY_STATES:
            return True
        time.sleep(_POLL_S)
    return False
