"""The plan cache: what was saved comes back, and nothing else ever does."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from flawline_engines.engine import MissingPlanError
from flawline_engines.parity import Flip, Parity
from flawline_engines.plans import PlanKey, PlanStore, plans_folder
from flawline_inspect.errors import EngineError

KEY = PlanKey(
    onnx_sha256="a" * 64,
    module="tensorrt",
    version="10.3.0",
    gpu="Orin",
    compute_capability="8.7",
    precision="fp16",
    shapes="1-1-16x96x128x3",
)
PLAN = bytes(range(256)) * 40
PARITY = Parity("m-1", "tensorrt", "fp16", 16, 2.5, 0.001, 0.01, 1, 0, (Flip(3, "good", 2.51, 2.49, True),), ("no",))


@pytest.fixture
def store(tmp_path: Path) -> PlanStore:
    made = PlanStore(tmp_path / "plans")
    made.save(KEY, PLAN, PARITY)
    return made


def test_what_was_saved_comes_back(store: PlanStore) -> None:
    """Plan and parity, to the last digit; the folder was made for them."""
    stored = store.load(KEY)
    assert stored.plan == PLAN and stored.parity == PARITY and not stored.parity.accepted


def test_saving_again_replaces(store: PlanStore) -> None:
    """A later build of the same wins."""
    accepted = replace(PARITY, refusals=(), flips=())
    store.save(KEY, b"other", accepted)
    assert store.load(KEY).plan == b"other" and store.load(KEY).parity.accepted


def test_nothing_there(tmp_path: Path) -> None:
    """Neither plan nor folder: one sentence with the cure."""
    with pytest.raises(MissingPlanError, match="no plan of this model is compiled for Orin yet; `flawline build`"):
        PlanStore(tmp_path / "none").load(KEY)


@pytest.mark.parametrize("name", [field.name for field in fields(PlanKey)])
def test_another_key_is_another_plan(store: PlanStore, name: str) -> None:
    """Whatever a plan depends on: another value finds nothing."""
    with pytest.raises(MissingPlanError, match="no plan"):
        store.load(replace(KEY, **{name: "other"}))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("onnx_sha256", "another model"),
        ("module", "another runtime"),
        ("version", r"another version \(11\.4, this is 10\.3\.0\)"),
        ("gpu", r"another GPU \(11\.4, this is Orin\)"),
        ("compute_capability", "another compute capability"),
        ("precision", "another precision"),
        ("shapes", "another shapes"),
    ],
)
def test_a_plan_from_elsewhere_under_our_name(store: PlanStore, name: str, said: str) -> None:
    """Copied from another machine or release and renamed: the sidecar tells."""
    other = replace(KEY, **{name: "11.4"})
    path = store.save(other, PLAN, PARITY)
    for suffix in (".plan", ".json"):
        shutil.copy(path.with_suffix(suffix), store.path(KEY).with_suffix(suffix))
    with pytest.raises(MissingPlanError, match=f"was compiled for {said}"):
        store.load(KEY)


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


DAMAGE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "truncated plan": (lambda plan, side: plan.write_bytes(PLAN[:-1]), "is truncated"),
    "empty plan": (lambda plan, side: plan.write_bytes(b""), "is truncated"),
    "longer plan": (lambda plan, side: plan.write_bytes(PLAN + b"x"), "is damaged or was exchanged"),
    "one byte": (lambda plan, side: plan.write_bytes(b"\xff" + PLAN[1:]), "is damaged or was exchanged"),
    "plan gone": (lambda plan, side: plan.unlink(), "no plan"),
    "sidecar gone": (lambda plan, side: side.unlink(), "no plan"),
    "plan is a folder": (lambda plan, side: (plan.unlink(), plan.mkdir()), "cannot be read"),
    "sidecar is a folder": (lambda plan, side: (side.unlink(), side.mkdir()), "cannot be read"),
    "sidecar empty": (lambda plan, side: side.write_bytes(b""), "is damaged"),
    "sidecar truncated": (lambda plan, side: side.write_bytes(side.read_bytes()[:100]), "is damaged"),
    "sidecar binary": (lambda plan, side: side.write_bytes(bytes(range(256))), "is damaged"),
    "sidecar huge": (lambda plan, side: side.write_bytes(b" " * (2 << 20)), "is damaged"),
    "sidecar deep": (lambda plan, side: side.write_bytes(b"[" * 200_000), "is damaged"),
    "sidecar a list": (lambda plan, side: side.write_bytes(b"[1, 2]"), "is damaged"),
    "sidecar null": (lambda plan, side: side.write_bytes(b"null"), "is damaged"),
    "another format": (lambda plan, side: edited(side, lambda t: t.update(format=2)), "is damaged"),
    "no key": (lambda plan, side: edited(side, lambda t: t.pop("key")), "is damaged"),
    "half a key": (lambda plan, side: edited(side, lambda t: t["key"].pop("gpu")), "is damaged"),
    "key no object": (lambda plan, side: edited(side, lambda t: t.update(key=7)), "is damaged"),
    "no hash": (lambda plan, side: edited(side, lambda t: t.pop("plan_sha256")), "is damaged"),
    "another hash": (
        lambda plan, side: edited(side, lambda t: t.update(plan_sha256="0" * 64)),
        "damaged or was exchanged",
    ),
    "no parity": (lambda plan, side: edited(side, lambda t: t.pop("parity")), "is damaged"),
    "parity null": (lambda plan, side: edited(side, lambda t: t.update(parity=None)), "is damaged"),
    "half a parity": (lambda plan, side: edited(side, lambda t: t["parity"].pop("refusals")), "is damaged"),
    "a flip too much": (lambda plan, side: edited(side, lambda t: t["parity"]["flips"].append({"x": 1})), "is damaged"),
    "size no number": (lambda plan, side: edited(side, lambda t: t.update(plan_bytes="many")), "is damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_and_compiled_anew(store: PlanStore, name: str) -> None:
    """One sentence that names the file; a new build in its place is good again."""
    damage, said = DAMAGE[name]
    plan = store.path(KEY)
    damage(plan, plan.with_suffix(".json"))
    with pytest.raises(MissingPlanError, match=said) as caught:
        store.load(KEY)
    assert "\n" not in str(caught.value)
    if "folder" not in name:
        store.save(KEY, PLAN, PARITY)
        assert store.load(KEY).plan == PLAN


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_hides_no_other_plan(store: PlanStore, name: str) -> None:
    """Of plans for other batches the newest that can be read is the one; what it is damaged by is said when it is loaded."""
    other = replace(KEY, shapes=KEY.shapes.replace("16x", "4x"))
    assert other != KEY
    store.save(other, b"another", PARITY)
    damage, _ = DAMAGE[name]
    damage(store.path(KEY), store.path(KEY).with_suffix(".json"))
    os.utime(store.path(other).with_suffix(".json"), ns=(0, 4 * 10**18))
    assert store.newest(KEY).plan == b"another"


def test_the_newest_is_of_the_same_model_and_frame(store: PlanStore) -> None:
    """Only the largest batch may differ; where there is none, it is as if this one had been asked for."""
    store.save(replace(KEY, shapes="1-1-4x16x16x3"), b"smaller frames", PARITY)
    store.save(replace(KEY, shapes=KEY.shapes.replace("16x", "4x"), gpu="Thor"), b"another GPU", PARITY)
    assert store.newest(KEY).plan == PLAN
    assert store.newest(replace(KEY, gpu="Thor")).plan == b"another GPU"
    with pytest.raises(MissingPlanError, match="compiled for Ada yet"):
        store.newest(replace(KEY, gpu="Ada"))


def test_a_power_cut_between_plan_and_sidecar(store: PlanStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old sidecar does not vouch for the new plan."""
    from flawline_engines import plans

    real = plans.write_atomic

    def dies(path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(plans, "write_atomic", dies)
    with pytest.raises(EngineError, match=r"cannot be written .*check --state-dir"):
        store.save(KEY, b"new plan", PARITY)
    with pytest.raises(MissingPlanError):
        store.load(KEY)


def test_where_plans_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the state directory, else in the user's cache."""
    assert plans_folder(tmp_path) == tmp_path / "plans"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert plans_folder(None) == tmp_path / "cache" / "flawline" / "plans"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert plans_folder(None) == Path.home() / ".cache" / "flawline" / "plans"


def test_the_timing_cache(store: PlanStore) -> None:
    """One for a GPU and a version, whatever the model; empty while there is none, and an empty one is not written."""
    assert store.timing_cache(KEY) == b""
    store.save_timing_cache(KEY, b"")
    assert store.timing_cache(KEY) == b""
    store.save_timing_cache(KEY, b"measured")
    assert store.timing_cache(replace(KEY, onnx_sha256="b" * 64, precision="int8")) == b"measured"
    assert store.timing_cache(replace(KEY, version="11.4")) == b""
