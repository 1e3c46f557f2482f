"""What a recipe number stands for now: the configuration, and over it what was changed at run time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from flawline_edge.engine_pool import EnginePool
from flawline_edge.inspector import Inspector
from flawline_inspect.bundle import Bundle
from flawline_inspect.config import CameraConfig, Config
from flawline_inspect.decision import DecisionRule
from flawline_inspect.errors import BundleError
from flawline_inspect.overrides import THRESHOLD_FACTORS, Overrides

__all__ = ["Recipes", "threshold_range"]

_log = logging.getLogger(__name__)


def threshold_range(bundle: Bundle) -> tuple[float, float]:
    """Between which thresholds one may be set at run time."""
    low, high = sorted(factor * bundle.threshold for factor in THRESHOLD_FACTORS)
    return low, high


@dataclass(frozen=True)
class Recipes:
    """Immutable, so that what is being prepared cannot change underway.

    `pool`: the engines that the cameras share; None where each inspector has its own.
    """

    config: Config
    overrides: Overrides
    pool: EnginePool | None = None

    def number_for(self, camera: CameraConfig) -> int:
        """The recipe that this camera's parts are judged by."""
        configured = self.config.recipe_of(camera)
        number = self.overrides.recipe.get(camera.name, configured)
        if number in self.config.recipes:
            return number
        _log.warning("recipe %d was set at run time, but is not configured any more; serving %d", number, configured)
        return configured

    def bundle_of(self, number: int) -> Path:
        promoted = self.overrides.bundles.get(number)
        return promoted.bundle if promoted is not None else self.config.recipes[number].bundle

    def rule_for(self, number: int, bundle: Bundle) -> DecisionRule:
        """The threshold set at run time for this very model, else the configured one, else the bundle's."""
        recipe = self.config.recipes[number]
        threshold = recipe.threshold or bundle.threshold
        changed = self.overrides.thresholds.get(number, {}).get(bundle.model_id)
        if changed is not None:
            low, high = threshold_range(bundle)
            if low <= changed <= high:
                threshold = changed
            else:
                _log.warning(
                    "recipe %d: the threshold %g that was set at run time is ignored, expected %g to %g for %s",
                    number, changed, low, high, bundle.model_id,
                )  # fmt: skip
        return recipe.decision_rule(threshold)

    def inspector(self, camera: CameraConfig, number: int, on_switch: Callable[[], None]) -> Inspector:
        """Not yet entered. Raises `BundleError` and `EngineError`."""
        recipe = self.config.recipes[number].model_copy(update={"bundle": self.bundle_of(number)})
        inspector = Inspector(
            number,
            recipe,
            self.config.engine,
            public_key=self.config.security.public_key,
            roi=camera.roi,
            state_dir=self.config.state_dir,
            on_switch=on_switch,
            pool=self.pool,
            camera=camera.name,
        )
        inspector.rule = self.rule_for(number, inspector.bundle)
        return inspector

    def inspector_at_start(self, camera: CameraConfig, on_switch: Callable[[], None]) -> Inspector:
        """As `inspector`; where a promoted bundle cannot be read, with the recipe's configured one."""
        number = self.number_for(camera)
        try:
            return self.inspector(camera, number, on_switch)
        except BundleError as exc:
            if number not in self.overrides.bundles:
                raise
            configured = replace(self, overrides=self.overrides.model_copy(update={"bundles": {}}))
            _log.error("%s; recipe %d serves %s instead", exc, number, configured.bundle_of(number))
            return configured.inspector(camera, number, on_switch)
