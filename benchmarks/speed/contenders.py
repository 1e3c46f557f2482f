"""Making one thing that is measured, and opening it: from a picture to a decision, as its users would."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from benchmarks.accuracy.runs import code_digest

__all__ = [
    "BATCHED",
    "DISK",
    "GPU_BATCHES",
    "GPU_RUNTIMES",
    "MEMORY",
    "Contender",
    "Runtime",
    "Way",
    "opened",
    "prepare",
]

Runtime = Literal[
    "openvino",
    "onnxruntime",
    "torch",
    # on a GPU
    "tensorrt",
    "tensorrt_rtx",
    "onnxruntime cuda",
    "torch cuda",
    "torch cuda compiled",
    "torch cuda graph",
]
GPU_RUNTIMES: frozenset[Runtime] = frozenset(
    {"tensorrt", "tensorrt_rtx", "onnxruntime cuda", "torch cuda", "torch cuda compiled", "torch cuda graph"}
)
FLAWLINE = "flawline "
AE_SSIM = "AE-SSIM"
GPU_BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""Of each GPU contender, a way each."""

MEMORY, DISK, BATCHED = "memory", "disk", "batched"
"""Ways: one frame in memory to its decision, one picture on disk to its decision, `batch` frames in memory at once."""

Way = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Contender:
    """`system`: `flawline small`, one of anomalib's models or `AE-SSIM`. `threads` of the engine. `cameras`: threads that call
    one engine at the same time, which only flawline has; `batch`: of `BATCHED`; `graphs`: whether TensorRT replays CUDA graphs.
    """

    system: str
    runtime: Runtime
    precision: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    size: int = 256
    batch: int = 8
    threads: int = 1
    cameras: int = 1
    graphs: bool = True

    def file(self, work: Path) -> Path | None:
        """Where `prepare` puts what `opened` reads; None for what is made anew each time."""
        if self.runtime.startswith("torch"):
            return None
        if self.system.startswith(FLAWLINE):
            return work / f"{self.system.removeprefix(FLAWLINE)}-{self.size}-{_graph_digest()}.flawline"
        return work / f"{self.system}-{self.size}.xml" if self.runtime == "openvino" else None


@cache
def _graph_digest() -> str:
    """Of what bundles are made by: one that was made by other code is another graph."""
    return code_digest(("train/flawline_train", "benchmarks/speed/models.py"))


def prepare(contender: Contender, work: Path) -> None:
    """Write its file, if it has one and it is not there yet."""
    path = contender.file(work)
    if path is None or path.is_file():
        return
    from benchmarks.speed.models import anomalib_model, write_bundle

    if contender.system.startswith(FLAWLINE):
        smaller = contender.size == 256 or contender.runtime in GPU_RUNTIMES  # at 256 px `engines` measures them
        write_bundle(path, contender.system.removeprefix(FLAWLINE), contender.size, smaller=smaller)
        return
    module = anomalib_model(contender.system, contender.size, work)
    made: Path = module.to_openvino(work / path.stem, input_size=(contender.size, contender.size))
    made.with_suffix(".bin").replace(path.with_suffix(".bin"))
    made.replace(path)  # last: it says that both are there


@contextlib.contextmanager
def opened(contender: Contender, work: Path) -> Iterator[dict[str, Way]]:
    """Its ways, each a call that decides about one picture, or `batch` of them.

    The picture is a part of the size that the model takes, so that nobody resizes; on disk it is a PNG.
    """
    if contender.runtime in GPU_RUNTIMES:
        from benchmarks.speed.gpu import opened_on_gpu

        with opened_on_gpu(contender, work) as ways:
            yield ways
        return
    picture = np.random.default_rng(1).integers(0, 256, (contender.size // 8, contender.size // 8, 3), np.uint8)
    picture = cv2.resize(picture, (contender.size, contender.size), interpolation=cv2.INTER_CUBIC)
    path = work / f"picture-{os.getpid()}.png"
    cv2.imwrite(str(path), picture)
    try:
        if contender.system.startswith(FLAWLINE):
            with _flawline(contender, work, picture, path) as ways:
                yield ways
        else:
            yield _peer(contender, work, picture, path)
    finally:
        path.unlink()


@contextlib.contextmanager
def _flawline(contender: Contender, work: Path, picture: Any, path: Path) -> Iterator[dict[str, Way]]:
    """The same steps as `flawline check` and the daemon."""
    from flawline_engines.engine import Engine, open_engine
    from flawline_engines.shared import SharedEngine
    from flawline_inspect.bundle import Bundle
    from flawline_inspect.decision import DecisionRule
    from flawline_inspect.frame import fit_picture, read_picture

    file = contender.file(work)
    assert file is not None and (contender.runtime == "openvino" or contender.runtime == "onnxruntime")  # noqa: PLR1714
    bundle = Bundle.open(file)
    rule = DecisionRule(bundle.threshold)

    def judge(shown: Any, engine: Engine) -> object:
        frame, _ = fit_picture(shown, bundle.frame)
        found = engine.infer(frame[None])
        return rule.decide(found.scores[0], found.heatmaps[0])

    def judge_all(engine: Engine) -> object:
        frames = np.stack([fit_picture(picture, bundle.frame)[0] for _ in range(contender.batch)])
        found = engine.infer(frames)
        return [rule.decide(score, heatmap) for score, heatmap in zip(found.scores, found.heatmaps, strict=True)]

    engine = open_engine(bundle, contender.runtime, precision=contender.precision, threads=contender.threads)
    if contender.cameras == 1:
        with engine as entered:
            yield {
                MEMORY: lambda: judge(picture, entered),
                DISK: lambda: judge(read_picture(path), entered),
                BATCHED: lambda: judge_all(entered),
            }
        return
    with contextlib.ExitStack() as stack:
        hw = (bundle.frame.height, bundle.frame.width)
        shared = stack.enter_context(SharedEngine(engine, hw, max_batch=contender.batch, timeout_s=120))
        cameras = [stack.enter_context(shared.camera(f"camera{i}")) for i in range(contender.cameras)]
        pool = stack.enter_context(ThreadPoolExecutor(contender.cameras))
        # A part in front of each camera at once: the time is that until the last of them is judged.
        yield {MEMORY: lambda: list(pool.map(lambda camera: judge(picture, camera), cameras))}


def _peer(contender: Contender, work: Path, picture: Any, path: Path) -> dict[str, Way]:
    """anomalib's inferencers as its documentation uses them, and plain torch; pictures are RGB there."""
    import torch

    torch.set_num_threads(contender.threads)
    rgb = np.ascontiguousarray(picture[..., ::-1])
    many = np.stack([rgb] * contender.batch)
    if contender.runtime == "openvino":
        from anomalib.deploy import OpenVINOInferencer

        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if contender.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": contender.threads,
        }
        inferencer = OpenVINOInferencer(str(contender.file(work)), device="CPU", config=config)
        return {
            MEMORY: lambda: inferencer.predict(rgb).pred_label,
            DISK: lambda: inferencer.predict(path).pred_label,
            BATCHED: lambda: inferencer.predict(many).pred_label,
        }
    if contender.system == AE_SSIM:
        from benchmarks.speed.models import AeSsim

        network = AeSsim(contender.size).eval()

        @torch.inference_mode()
        def judge(pictures: Any) -> object:
            x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
            return (network(x)[0] > 0.5).tolist()

        return {
            MEMORY: lambda: judge(rgb[None]),
            DISK: lambda: judge(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)[None]),  # type: ignore[arg-type]
            BATCHED: lambda: judge(many),
        }
    return _torch_inferencer(contender, work, rgb, many, path)


def _torch_inferencer(contender: Contender, work: Path, rgb: Any, many: Any, path: Path) -> dict[str, Way]:
    import torch
    from anomalib.deploy import TorchInferencer
    from benchmarks.speed.models import anomalib_model

    class Inferencer(TorchInferencer):
        """With a model that is at hand, instead of a pickle of it."""

        def load_model(self, path: str | Path) -> Any:
            return anomalib_model(contender.system, contender.size, work)

    inferencer = Inferencer("unused", device="cpu")

    # Theirs records gradients unless it is told not to, which costs time and memory for nothing.
    @torch.inference_mode()
    def predict(shown: Any) -> object:
        return inferencer.predict(shown).pred_label

    def tensor() -> Any:
        return torch.from_numpy(many).permute(0, 3, 1, 2).float() / 255

    return {MEMORY: lambda: predict(rgb), DISK: lambda: predict(path), BATCHED: lambda: predict(tensor())}
