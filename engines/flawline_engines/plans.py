"""Compiled plans in a folder: found again by what they were compiled from and for, and never trusted unseen.

    tensorrt_rtx-fp16-3f9a1c2e55d01b7a.plan       what TensorRT wrote
    tensorrt_rtx-fp16-3f9a1c2e55d01b7a.json       its key, its SHA-256, and what the parity gate said of it

A plan is machine code for one GPU and one TensorRT version, so it is compiled where it runs, never comes with a bundle,
and is loaded only when its sidecar names exactly this model, TensorRT and GPU and its SHA-256 is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from flawline_engines.engine import MissingPlanError
from flawline_engines.parity import Parity
from flawline_inspect.errors import EngineError
from flawline_inspect.files import write_atomic

__all__ = ["PlanKey", "PlanStore", "StoredPlan", "plans_folder"]

_FORMAT = 1
_MAX_SIDECAR_BYTES = 1 << 20
_WHAT = {
    "onnx_sha256": "model",
    "module": "runtime",
    "version": "version",
    "gpu": "GPU",
    "compute_capability": "compute capability",
    "precision": "precision",
    "shapes": "shapes",
}


@dataclass(frozen=True, slots=True)
class PlanKey:
    """What a plan depends on. `shapes` are the least, usual and largest batch and the frame: `1-1-16x96x128x3`."""

    onnx_sha256: str
    module: str
    version: str
    gpu: str
    compute_capability: str
    precision: str
    shapes: str

    @property
    def stem(self) -> str:
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.module}-{self.precision}-{digest[:16]}"


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan that was verified, and what the parity gate said when it was made."""

    plan: bytes
    parity: Parity


def _frame(key: PlanKey) -> str:
    """`96x128x3` of its shapes."""
    return key.shapes.partition("x")[2]


def plans_folder(state_dir: Path | None) -> Path:
    """`plans` below the station's state directory, or in the user's cache."""
    if state_dir is not None:
        return state_dir / "plans"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flawline" / "plans"


class PlanStore:
    """Plans in `folder`, which is made when the first is saved."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, key: PlanKey) -> Path:
        return self._folder / f"{key.stem}.plan"

    def load(self, key: PlanKey) -> StoredPlan:
        """Raises `MissingPlanError` with one sentence when there is none, or none that may be used."""
        plan_path, sidecar_path = self.path(key), self.path(key).with_suffix(".json")
        if not sidecar_path.exists() or not plan_path.exists():
            raise MissingPlanError(f"no plan of this model is compiled for {key.gpu} yet; `flawline build` compiles it")
        try:
            if sidecar_path.stat().st_size > _MAX_SIDECAR_BYTES:
                raise ValueError("too large")
            sidecar: dict[str, Any] = json.loads(sidecar_path.read_bytes())
            if sidecar["format"] != _FORMAT:
                raise ValueError(f"format {sidecar['format']!r}")
            found = PlanKey(**{field.name: str(sidecar["key"][field.name]) for field in fields(PlanKey)})
            size, sha256 = int(sidecar["plan_bytes"]), str(sidecar["plan_sha256"])
            parity = Parity.from_dict(sidecar["parity"])
            plan = plan_path.read_bytes()
        except OSError as exc:
            raise MissingPlanError(
                f"{plan_path}: the plan cannot be read ({exc.strerror}); it is compiled anew"
            ) from exc
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise MissingPlanError(
                f"{sidecar_path}: is damaged, so its plan is not loaded; it is compiled anew"
            ) from exc
        if found != key:
            name = next(
                field.name for field in fields(PlanKey) if getattr(found, field.name) != getattr(key, field.name)
            )
            raise MissingPlanError(
                f"{plan_path}: was compiled for another {_WHAT[name]} ({getattr(found, name)}, this is "
                f"{getattr(key, name)}); it is compiled anew"
            )
        if len(plan) != size or hashlib.sha256(plan).hexdigest() != sha256:
            state = "truncated" if len(plan) < size else "damaged or was exchanged"
            raise MissingPlanError(
                f"{plan_path}: is {state} (its SHA-256 differs), so it is not loaded; it is compiled anew"
            )
        return StoredPlan(plan, parity)

    def newest(self, key: PlanKey) -> StoredPlan:
        """As `load`; of plans that differ from `key` in their largest batch alone, the one that was built last."""
        found = []
        for path in self._folder.glob(f"{key.module}-{key.precision}-*.json"):
            other = self._key_of(path)
            if other is not None and replace(other, shapes=key.shapes) == key and _frame(other) == _frame(key):
                found.append((path.stat().st_mtime_ns, other))
        return self.load(max(found, key=lambda each: each[0])[1] if found else key)

    def _key_of(self, sidecar: Path) -> PlanKey | None:
        """None for one that cannot be read, or lies under another's name."""
        try:
            if sidecar.stat().st_size > _MAX_SIDECAR_BYTES:
                return None
            tree = json.loads(sidecar.read_bytes())["key"]
            key = PlanKey(**{field.name: str(tree[field.name]) for field in fields(PlanKey)})
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return key if self.path(key).with_suffix(".json") == sidecar else None

    def of_model(self, onnx_sha256: str, module: str, precision: str) -> list[tuple[PlanKey, StoredPlan]]:
        """All plans of a model that may serve, for whatever GPU, the oldest first; damaged and refused ones are left out."""
        found = []
        for path in self._folder.glob(f"{module}-{precision}-*.json"):
            key = self._key_of(path)
            if key is None or key.onnx_sha256 != onnx_sha256:
                continue
            with contextlib.suppress(MissingPlanError):
                stored = self.load(key)
                if stored.parity.accepted:
                    found.append((path.stat().st_mtime_ns, key, stored))
        return [(key, stored) for _, key, stored in sorted(found, key=lambda each: each[0])]

    def save(self, key: PlanKey, plan: bytes, parity: Parity) -> Path:
        """Write a plan and its sidecar, each atomically; between the two the old sidecar refuses the new plan.

        Raises `EngineError` when the folder cannot be written.
        """
        sidecar = {
            "format": _FORMAT,
            "key": asdict(key),
            "plan_bytes": len(plan),
            "plan_sha256": hashlib.sha256(plan).hexdigest(),
            "parity": parity.to_dict(),
        }
        path = self.path(key)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, plan)
            write_atomic(path.with_suffix(".json"), json.dumps(sidecar, indent=1).encode())
        except OSError as exc:
            raise EngineError(f"{path}: the plan cannot be written ({exc.strerror or exc}); check --state-dir") from exc
        return path

    def timing_cache(self, key: PlanKey) -> bytes:
        """What the builder measured on this GPU before; empty when there is nothing. TensorRT checks it itself."""
        path = self._timing_path(key)
        try:
            return path.read_bytes() if path.exists() else b""
        except OSError:
            return b""

    def save_timing_cache(self, key: PlanKey, cache: bytes) -> None:
        if cache:
            write_atomic(self._timing_path(key), cache)

    def _timing_path(self, key: PlanKey) -> Path:
        what = json.dumps([key.module, key.version, key.gpu, key.compute_capability])
        return self._folder / f"{key.module}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.timing"
