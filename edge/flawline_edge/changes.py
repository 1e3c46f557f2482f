"""What is changed while the station runs: recipes, thresholds, the configuration.

Everything is loaded, warmed up and self-tested beside the parts that are being judged, and takes its place in each lane's
line when it is ready. What cannot be had is refused, and the old goes on. One change at a time, on one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from pydantic import BaseModel

from flawline_edge.inspector import Inspector
from flawline_edge.lane import Lane
from flawline_edge.recipes import Recipes, threshold_range
from flawline_inspect.bundle import Bundle
from flawline_inspect.config import CameraConfig, Config, doubts
from flawline_inspect.decision import DecisionRule
from flawline_inspect.errors import FlawlineError
from flawline_inspect.overrides import Overrides, load_overrides, update_overrides

__all__ = ["Changes", "Refused"]

_log = logging.getLogger(__name__)

_LIVE = frozenset({"recipes", "recipe", "engine", "trigger", "cameras"})
_LIVE_OF_CAMERA = frozenset({"roi", "recipe", "trigger"})
"""Keys of the configuration that `reload` applies, except for a trigger's kind. What is not named needs a restart."""


class Refused(Exception):  # noqa: N818 - the answer, and not this program's error
    """`code` is one word for the PLC; the message is a sentence for people."""

    def __init__(self, code: str, sentence: str = "") -> None:
        super().__init__(sentence)
        self.code = code


class Changes:
    """`reread` reads the configuration file anew and raises `ConfigError`; None where there is no file. `reloading()` is
    entered around a reload.

    Every method raises `Refused`, and has changed nothing then. The strings they return are for people: what was done.
    """

    def __init__(
        self,
        recipes: Recipes,
        lanes: Sequence[Lane],
        *,
        on_switch: Callable[[], None],
        reread: Callable[[], Config] | None = None,
        reloading: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._recipes = recipes
        self._lanes = lanes
        self._on_switch = on_switch
        self._reread = reread
        self._reloading = reloading

    def recipe(self, lane: Lane, number: int) -> str:
        """Judge this lane's parts by another recipe."""
        known = self._recipes.config.recipes
        if number not in known:
            raise Refused(
                "unknown_recipe", f"recipe {number} is not configured; there are {', '.join(map(str, sorted(known)))}"
            )
        if number != lane.terms.recipe:
            with _Prepared(self._on_switch) as prepared:
                prepared.enter(lane, self._recipes, number)
                prepared.switch()
        return self._keep(lambda overrides: overrides.with_recipe(lane.name, number))

    def threshold(self, lane: Lane, value: float) -> str:
        """Decide by another threshold, wherever this lane's recipe serves."""
        terms, bundle = lane.terms, lane.inspector.bundle
        low, high = threshold_range(bundle)
        if not low <= value <= high:
            raise Refused(
                "out_of_range",
                f"threshold {value:g} is not within {low:g} to {high:g}, half to twice the bundle's {bundle.threshold:g}",
            )
        kept = self._keep(lambda overrides: overrides.with_threshold(terms.recipe, terms.model, value))
        for each in self._lanes:
            if each.terms[:2] == terms[:2]:
                each.set_rule(replace(each.inspector.rule, threshold=value))
        return kept

    def rollback(self, number: int) -> str:
        """Serve what the recipe served before its bundle was replaced at run time."""
        overrides = load_overrides(self._recipes.config.state_dir)
        before = overrides.rolled_back(number)
        if before is None or number not in self._recipes.config.recipes:
            raise Refused(
                "no_previous", f"recipe {number} serves the configuration's bundle; there is nothing to go back to"
            )
        recipes = replace(self._recipes, overrides=before)
        with _Prepared(self._on_switch) as prepared:
            prepared.verify(recipes, number)
            for lane in self._lanes:
                if lane.terms.recipe == number:
                    prepared.enter(lane, recipes, number)
            prepared.switch()
        return self._keep(lambda overrides: overrides.rolled_back(number) or overrides)

    def reload(self) -> str:
        """Read the configuration anew and apply what can be changed without a restart; all of it or nothing."""
        if self._reread is None:
            raise Refused("no_file", "this station was not started from a configuration file")
        with self._reloading():
            return self._reload(self._reread)

    def _reload(self, reread: Callable[[], Config]) -> str:
        try:
            config = reread()
        except FlawlineError as exc:
            raise Refused("bad_config", str(exc)) from exc
        if fixed := _fixed(self._recipes.config, config):
            raise Refused(
                "restart_needed",
                f"{', '.join(fixed)} cannot be changed while the station runs; restart it, or put the old value back",
            )
        for sentence in doubts(config):
            _log.warning("%s", sentence)
        before = self._recipes.config
        # From the file: a bundle may have been promoted by a command beside the station.
        overrides = load_overrides(config.state_dir).without_what_changed(before, config)
        recipes = replace(self._recipes, config=config, overrides=overrides)
        with _Prepared(self._on_switch) as prepared:
            for number in config.recipes:
                prepared.verify(recipes, number)
            for lane, camera in zip(self._lanes, config.cameras, strict=True):
                prepared.enter_if_new(lane, recipes, camera, is_same_engine=before.engine == config.engine)
            prepared.switch()
        for lane, camera in zip(self._lanes, config.cameras, strict=True):
            lane.camera, lane.trigger = camera, config.trigger_of(camera)
        self._recipes = recipes
        return self._keep(lambda kept: kept.without_what_changed(before, config))

    def _keep(self, change: Callable[[Overrides], Overrides]) -> str:
        """For the next start. A disk that refuses must not keep the line from changing its recipe now."""
        state_dir = self._recipes.config.state_dir
        try:
            overrides = update_overrides(state_dir, change)
        except OSError as exc:
            overrides = change(self._recipes.overrides)
            note = f"done, but a restart will forget it: {state_dir} cannot be written ({exc.strerror})"
            _log.warning("%s", note)
        else:
            note = ""
        self._recipes = replace(self._recipes, overrides=overrides)
        return note


class _Prepared:
    """What the lanes shall change to, entered and proven; closed again on leaving unless it was taken."""

    def __init__(self, on_switch: Callable[[], None]) -> None:
        self._on_switch = on_switch
        self._entered: list[tuple[Lane, Inspector]] = []
        self._rules: list[tuple[Lane, DecisionRule]] = []

    def __enter__(self) -> _Prepared:
        return self

    def __exit__(self, *exc: object) -> None:
        for _, inspector in self._entered:
            inspector.__exit__(None, None, None)

    def verify(self, recipes: Recipes, number: int) -> None:
        """That this recipe's bundle is there and whole."""
        try:
            Bundle.open(recipes.bundle_of(number), public_key=recipes.config.security.public_key)
        except FlawlineError as exc:
            raise Refused("load_failed", f"recipe {number}: {exc}") from exc

    def enter(self, lane: Lane, recipes: Recipes, number: int) -> None:
        """Load, warm up and self-test the recipe for this lane."""
        self._enter(lane, self._inspector(lane.camera, recipes, number))

    def enter_if_new(self, lane: Lane, recipes: Recipes, camera: CameraConfig, *, is_same_engine: bool) -> None:
        """The same where model, region or engine are other ones; else only the rule is changed, and nothing loaded."""
        inspector = self._inspector(camera, recipes, recipes.number_for(camera))
        is_same_model = inspector.terms[:2] == lane.terms[:2]
        if is_same_model and is_same_engine and camera.roi == lane.camera.roi:
            self._rules.append((lane, inspector.rule))
        else:
            self._enter(lane, inspector)

    def switch(self) -> None:
        """Hand everything over."""
        if not all(lane.is_up for lane, _ in self._entered):
            raise Refused("not_ready", "a camera is not being served now; try again when it is back")
        for lane, rule in self._rules:
            if rule != lane.inspector.rule:
                lane.set_rule(rule)
        self._entered = [(lane, inspector) for lane, inspector in self._entered if not lane.switch(inspector)]

    def _inspector(self, camera: CameraConfig, recipes: Recipes, number: int) -> Inspector:
        try:
            return recipes.inspector(camera, number, self._on_switch)
        except FlawlineError as exc:
            raise Refused("load_failed", f"recipe {number}: {exc}") from exc

    def _enter(self, lane: Lane, inspector: Inspector) -> None:
        try:
            inspector.__enter__()
        except FlawlineError as exc:
            raise Refused("load_failed", f"recipe {inspector.number}: {exc}") from exc
        except Exception as exc:
            _log.exception("recipe %d: %s cannot be loaded", inspector.number, inspector.bundle.source)
            raise Refused("load_failed", f"recipe {inspector.number}: {type(exc).__name__}, see the log") from exc
        self._entered.append((lane, inspector))


def _fixed(before: Config, after: Config) -> list[str]:
    """The keys that differ and cannot be changed without a restart."""
    keys = _differing(before, after, leaving_out=_LIVE)
    if [camera.name for camera in before.cameras] != [camera.name for camera in after.cameras]:
        return [*keys, "cameras"]
    for n, (old, new) in enumerate(zip(before.cameras, after.cameras, strict=True)):
        keys += [f"cameras[{n}].{key}" for key in _differing(old, new, leaving_out=_LIVE_OF_CAMERA)]
        if before.trigger_of(old).kind != after.trigger_of(new).kind:
            keys.append("trigger.kind" if new.trigger is None else f"cameras[{n}].trigger.kind")
    return list(dict.fromkeys(keys))


def _differing(before: BaseModel, after: BaseModel, *, leaving_out: frozenset[str]) -> list[str]:
    keys = []
    for key in type(before).model_fields:
        old, new = getattr(before, key), getattr(after, key)
        if key in leaving_out or old == new:
            continue
        if isinstance(old, BaseModel) and type(old) is type(new) and key != "source":
            keys += [f"{key}.{below}" for below in _differing(old, new, leaving_out=frozenset())]
        else:
            keys.append(key)
    return keys
