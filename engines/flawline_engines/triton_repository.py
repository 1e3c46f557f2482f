"""A Triton model repository from a bundle: what one GPU server needs to serve many stations.

    REPOSITORY/bottle-3f9a1c2e-fp32/config.pbtxt
    REPOSITORY/bottle-3f9a1c2e-fp32/1067130926/model.onnx
    REPOSITORY/bottle-3f9a1c2e-fp32-tensorrt/config.pbtxt      where `flawline build` has compiled a plan
    REPOSITORY/bottle-3f9a1c2e-fp32-tensorrt/1067130926/model.plan

Written from Triton's documentation of model configurations, and held by the tests against the `ModelConfig` message of the
`tritonclient` package; no server has loaded one yet. The SHA-256 of the ONNX file stands in the configuration, and
`TritonEngine` takes no server whose model has another. The version, which is a number there, is its beginning: each request
names it, so that a server that was exchanged between two parts cannot judge with another model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from flawline_engines.engine import MAX_BATCH, Precision, model_for
from flawline_engines.plans import PlanStore, plans_folder
from flawline_inspect.bundle import Bundle
from flawline_inspect.errors import EngineError, InputError
from flawline_inspect.files import write_atomic

__all__ = [
    "SHA256_PARAMETER",
    "Exported",
    "ModelSettings",
    "model_config",
    "model_name",
    "model_version",
    "write_repository",
]

SHA256_PARAMETER = "flawline.onnx_sha256"
TENSORRT_SUFFIX = "-tensorrt"


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """`max_batch`: 1 to 64 requests' frames in one execution; memory grows with it. `queue_delay_us`: how long a request may
    wait for others; 0 takes together what waits anyway. `instances` of the model on each GPU, which run at the same time.
    """

    max_batch: int = 16
    queue_delay_us: int = 0
    instances: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= MAX_BATCH:
            raise InputError(f"--max-batch is {self.max_batch}, expected 1 to {MAX_BATCH}")
        if not 0 <= self.queue_delay_us <= 1_000_000:
            raise InputError(f"--queue-delay-us is {self.queue_delay_us}, expected 0 to 1000000")
        if not 1 <= self.instances <= 64:
            raise InputError(f"--instances is {self.instances}, expected 1 to 64")


@dataclass(frozen=True, slots=True)
class Exported:
    """A model in the repository; `note` is what the plan that it holds is bound to."""

    name: str
    folder: Path
    note: str = ""


def model_name(bundle: Bundle, precision: Precision) -> str:
    """Under which a bundle is served in this precision; from TensorRT's plan with `TENSORRT_SUFFIX`."""
    return f"{bundle.model_id}-{precision}"


def model_version(onnx_sha256: str) -> str:
    """31 bits of the SHA-256 as a number from 1 on."""
    return str(int(onnx_sha256[:8], 16) >> 1 or 1)


def write_repository(
    bundle: Bundle,
    repository: Path,
    *,
    precision: Precision = "fp32",
    settings: ModelSettings | None = None,
    state_dir: Path | None = None,
) -> list[Exported]:
    """Write the bundle's ONNX file of this precision, and each plan that TensorRT compiled of it here and parity accepted.

    `state_dir` is where plans lie, see `open_engine`. Models under other names stay as they are. Raises `EngineError` for a
    precision that the bundle has not, and `InputError` for a folder that cannot be written.
    """
    if precision == "bf16":
        raise EngineError("Triton has no precision bf16 here; use fp16, int8 or fp32")
    settings = settings or ModelSettings()
    model, hw = model_for(bundle, precision), (bundle.frame.height, bundle.frame.width)
    sha256, name = hashlib.sha256(model).hexdigest(), model_name(bundle, precision)
    config = model_config(name, hw, sha256, settings, backend="onnxruntime")
    version = model_version(sha256)
    exported = [_write(repository / name, config, Path(version, "model.onnx"), model)]
    plans = PlanStore(plans_folder(state_dir)).of_model(sha256, "tensorrt", precision)
    if plans:
        key, plan = plans[-1]  # one server has one GPU model and one TensorRT; of several the newest
        largest = int(key.shapes.split("-")[2].split("x")[0])
        fitting = ModelSettings(min(settings.max_batch, largest), settings.queue_delay_us, settings.instances)
        name += TENSORRT_SUFFIX
        config = model_config(name, hw, sha256, fitting, backend="tensorrt")
        note = f"TensorRT {key.version}, {key.gpu} (compute capability {key.compute_capability})"
        exported.append(_write(repository / name, config, Path(version, "model.plan"), plan.plan, note))
    return exported


def _write(folder: Path, config: str, file: Path, data: bytes, note: str = "") -> Exported:
    try:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / file, data)
        write_atomic(folder / "config.pbtxt", config.encode())  # last: a server that polls sees a whole model
    except OSError as exc:
        raise InputError(
            f"{folder}: cannot be written ({exc.strerror or exc}); choose another --triton folder"
        ) from exc
    return Exported(folder.name, folder, note)


def model_config(name: str, hw: tuple[int, int], onnx_sha256: str, settings: ModelSettings, *, backend: str) -> str:
    """`config.pbtxt`: a ModelConfig message as text, for the backend `onnxruntime` or `tensorrt`.

    The batch is no part of the shapes. A score has no further dimension, which Triton writes as one of 1 that is reshaped away.
    """
    height, width = hw
    return f"""\
# Written by `flawline export`. The client refuses a server whose model has another {SHA256_PARAMETER}.
name: "{name}"
backend: "{backend}"
max_batch_size: {settings.max_batch}
input [
  {{ name: "frames" data_type: TYPE_UINT8 dims: [ {height}, {width}, 3 ] }}
]
output [
  {{ name: "scores" data_type: TYPE_FP32 dims: [ 1 ] reshape {{ shape: [ ] }} }},
  {{ name: "heatmaps" data_type: TYPE_FP32 dims: [ {height}, {width} ] }},
  {{ name: "expected" data_type: TYPE_UINT8 dims: [ {height}, {width}, 3 ] }}
]
dynamic_batching {{ max_queue_delay_microseconds: {settings.queue_delay_us} }}
instance_group [
  {{ count: {settings.instances} kind: {"KIND_GPU" if backend == "tensorrt" else "KIND_AUTO"} }}
]
model_warmup [
  {{
    name: "one blank frame"
    batch_size: 1
    inputs {{ key: "frames" value {{ data_type: TYPE_UINT8 dims: [ {height}, {width}, 3 ] zero_data: true }} }}
  }}
]
parameters {{ key: "{SHA256_PARAMETER}" value {{ string_value: "{onnx_sha256}" }} }}
"""
