"""A station that takes signed bundles only: at its start, by a command, by a reload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.edge.stand_ins import OK_LEVEL, LiveCamera, Wire, config, level_bundle, running, wait_until, wire

from flawline_edge.station import Station
from flawline_inspect.bundle import Bundle
from flawline_inspect.config import Config
from flawline_inspect.errors import BundleError
from flawline_inspect.signature import KEY_VARIABLE, new_key_pair, sign

__all__ = ["wire"]  # the fixture


@pytest.fixture
def plant(tmp_path: Path) -> Path:
    """The public key; the private one is beside it."""
    private, public = new_key_pair(None)
    (tmp_path / "plant.key").write_bytes(private)
    (tmp_path / "plant.pub").write_bytes(public)
    return tmp_path / "plant.pub"


def signed(path: Path, plant: Path) -> Path:
    bundle = Bundle(path.read_bytes(), str(path))
    path.write_bytes(bundle.signed(sign(bundle.manifest_bytes, plant.with_suffix(".key"), None)))
    return path


def with_two(folder: Path, plant: Path, **changes: Any) -> Config:
    """Recipe 1 is signed, recipe 2 is not."""
    first, second = signed(level_bundle(folder, "one"), plant), level_bundle(folder, "two")
    tree: dict[str, Any] = {
        "recipes": {1: str(first), 2: str(second)},
        "security": {"public_key": str(plant)},
        "mqtt": {"host": "broker.invalid", "root": "acme/press-7", "commands": ["recipe", "reload"]},
    }
    return config(folder, **(tree | changes))


def camera() -> LiveCamera:
    return LiveCamera([OK_LEVEL] * 20_000)


def test_an_unsigned_recipe_does_not_start(tmp_path: Path, plant: Path) -> None:
    """Before anything is opened."""
    with pytest.raises(BundleError, match=r"two\.flawline: is not signed"):
        Station(with_two(tmp_path, plant, recipe=2), camera=camera())


def test_the_environment_asks_where_the_configuration_does_not(
    tmp_path: Path, plant: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the machine may ask more than whoever wrote the file."""
    monkeypatch.setenv(KEY_VARIABLE, str(plant))
    Station(with_two(tmp_path, plant, security={}), camera=camera())
    with pytest.raises(BundleError, match=r"two\.flawline: is not signed"):
        Station(with_two(tmp_path, plant, security={}, recipe=2), camera=camera())


def test_an_unsigned_recipe_is_not_switched_to(tmp_path: Path, wire: Wire, plant: Path) -> None:
    """The command is refused, and the line goes on with what it had; once it is signed, it may come."""
    with running(Station(with_two(tmp_path, plant), camera=camera()), wire):
        wire.command("recipe", {"id": "1", "recipe": 2})
        refused = wire.ack("1")
        assert (refused["ok"], refused["error"], refused["recipe"]) == (False, "load_failed", 1)
        wait_until(lambda: bool(wire.told), "a verdict")
        assert {verdict.recipe for verdict in wire.told} == {1}
        signed(tmp_path / "two.flawline", plant)
        wire.command("recipe", {"id": "2", "recipe": 2})
        assert wire.ack("2")["ok"]
        wait_until(lambda: wire.told[-1].recipe == 2, "a verdict by the other recipe")


def test_a_reload_with_an_unsigned_recipe_changes_nothing(tmp_path: Path, wire: Wire, plant: Path) -> None:
    """All of it or nothing: also where the unsigned one is not the one in force."""
    made = with_two(tmp_path, plant)
    signed(tmp_path / "two.flawline", plant)
    with running(Station(made, camera=camera(), reread=lambda: made), wire):
        wire.command("reload", {"id": "1"})
        assert wire.ack("1")["ok"]
        level_bundle(tmp_path, "two")  # unsigned again
        wire.command("reload", {"id": "2"})
        refused = wire.ack("2")
        assert (refused["ok"], refused["error"]) == (False, "load_failed")
