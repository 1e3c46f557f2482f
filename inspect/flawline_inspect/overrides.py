"""What was changed at run time and outlives a restart: `state_dir/overrides.json`, laid over the configuration.

    {"version": 1,
     "recipe": {"top": 2},
     "thresholds": {"2": {"cap-3f9a1c2e": 4.1}},
     "bundles": {"2": {"bundle": "/var/lib/flawline/models/cap-2.flawline", "previous": null}}}

A threshold belongs to one model: another model's scores have another scale. The file is written whole or not at all; one
that is damaged is ignored with a warning, since a station that serves what its configuration says is better than none.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flawline_inspect.config import Config
from flawline_inspect.files import write_atomic

__all__ = ["Overrides", "Promoted", "load_overrides", "update_overrides"]

_log = logging.getLogger(__name__)

_FILE = "overrides.json"
_LIMIT_BYTES = 1_000_000
THRESHOLD_FACTORS = (0.5, 2.0)
"""How far from the bundle's own a threshold may be set at run time."""

RecipeNumber = Annotated[int, Field(ge=0, le=65535)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Promoted(_Part):
    """The bundle that a recipe serves instead of the configuration's; `previous` None: before it, the configuration's.

    `earlier`: what was promoted before `previous`, oldest first.
    """

    bundle: Path
    previous: Path | None = None
    earlier: tuple[Path, ...] = ()


class Overrides(_Part):
    """Immutable: each change gives a new one. `recipe` is by camera, the others by recipe number."""

    version: Literal[1] = 1
    recipe: dict[str, RecipeNumber] = {}
    thresholds: dict[RecipeNumber, dict[str, Annotated[float, Field(gt=0)]]] = {}
    bundles: dict[RecipeNumber, Promoted] = {}

    def with_recipe(self, camera: str, number: int) -> Overrides:
        return self.model_copy(update={"recipe": {**self.recipe, camera: number}})

    def with_threshold(self, number: int, model: str, value: float) -> Overrides:
        of_recipe = {**self.thresholds.get(number, {}), model: value}
        return self.model_copy(update={"thresholds": {**self.thresholds, number: of_recipe}})

    def promoting(self, number: int, bundle: Path) -> Overrides:
        """From now on the recipe serves this bundle; `rolled_back` undoes it."""
        before = self.bundles.get(number)
        promoted = Promoted(bundle=bundle)
        if before is not None:
            earlier = before.earlier if before.previous is None else (*before.earlier, before.previous)
            promoted = Promoted(bundle=bundle, previous=before.bundle, earlier=earlier)
        return self.model_copy(update={"bundles": {**self.bundles, number: promoted}})

    def rolled_back(self, number: int) -> Overrides | None:
        """The recipe serves what it served before its last promotion; None where there is none to undo."""
        now = self.bundles.get(number)
        if now is None:
            return None
        bundles = {other: promoted for other, promoted in self.bundles.items() if other != number}
        if now.previous is not None:
            *earlier, previous = now.earlier or (None,)
            bundles[number] = Promoted(bundle=now.previous, previous=previous, earlier=tuple(earlier))
        return self.model_copy(update={"bundles": bundles})

    def without_what_changed(self, before: Config, after: Config) -> Overrides:
        """Less what the configuration itself says anew: who edits the file wants that to hold."""
        was = {camera.name: before.recipe_of(camera) for camera in before.cameras}
        edited = {camera.name for camera in after.cameras if was.get(camera.name) != after.recipe_of(camera)}
        changed = {
            key: {
                n
                for n, recipe in after.recipes.items()
                if n in before.recipes and _differ(before.recipes[n], recipe, key)
            }
            for key in ("threshold", "bundle")
        }
        return self.model_copy(
            update={
                "recipe": {name: n for name, n in self.recipe.items() if name not in edited},
                "thresholds": {n: by_model for n, by_model in self.thresholds.items() if n not in changed["threshold"]},
                "bundles": {n: promoted for n, promoted in self.bundles.items() if n not in changed["bundle"]},
            }
        )

    def lines(self, config: Config) -> list[str]:
        """What differs from the configuration, a line each, as `flawline config check` shows it."""
        configured = {camera.name: config.recipe_of(camera) for camera in config.cameras}
        lines = []
        for name, number in self.recipe.items():
            if name not in configured or number not in config.recipes:
                lines.append(f"recipe {number} of camera {name}: ignored, the configuration has none such")
            elif number != configured[name]:
                lines.append(f"camera {name} serves recipe {number} (configured: {configured[name]})")
        for number, by_model in self.thresholds.items():
            lines += [
                f"recipe {number} has the threshold {value:g} for model {model}" for model, value in by_model.items()
            ]
        for number, promoted in self.bundles.items():
            before = promoted.previous or "the configuration's"
            lines.append(f"recipe {number} serves {promoted.bundle} (before: {before})")
        return lines


def load_overrides(state_dir: Path) -> Overrides:
    """What is in force; nothing where there is no file, and nothing, with a warning, where it cannot be read."""
    path = state_dir / _FILE
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
        if len(data) > _LIMIT_BYTES:
            raise ValueError(f"it has more than {_LIMIT_BYTES} bytes")
        return Overrides.model_validate_json(data)
    except FileNotFoundError:
        return Overrides()
    except (OSError, ValueError) as exc:
        reason = exc.errors()[0]["msg"] if isinstance(exc, ValidationError) else str(exc)
        _log.warning(
            "%s: cannot be used (%s); what was changed at run time is ignored, the configuration holds", path, reason
        )
        return Overrides()


def update_overrides(state_dir: Path, change: Callable[[Overrides], Overrides]) -> Overrides:
    """Read, change and write under a lock, so that the station and a command beside it lose nothing. Raises `OSError`."""
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / f"{_FILE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        overrides = change(load_overrides(state_dir))
        write_atomic(state_dir / _FILE, overrides.model_dump_json(indent=1).encode() + b"\n")
    return overrides


def _differ(before: BaseModel, after: BaseModel, key: str) -> bool:
    return bool(getattr(before, key) != getattr(after, key))
