"""`--method anomalib:NAME`: any image model of anomalib, trained by its Engine and brought into our graph.

The pictures are our fitted frames, so that region of interest, frame and alignment are the same as for our own networks; what the
model puts out is its raw anomaly map, which our calibration standardises and thresholds as it does ours. Models are built with
the network cut off: what would be downloaded has to be on this machine already.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule, MemoryBankMixin
from anomalib.models.image.patchcore import torch_model as patchcore
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms.v2 import Compose, Normalize, Resize, Transform  # type: ignore[import-untyped]

from flawline_inspect.errors import FlawlineError, InputError
from flawline_inspect.frame import Placement
from flawline_train.anomalib_graph import AnomalibGraph, MapNetwork
from flawline_train.autoencoders.methods import ANOMALIB
from flawline_train.calibrate import MapCalibration, calibrate_maps
from flawline_train.fit import Budget, FitProgress, FitResult
from flawline_train.graph import OPSET, onnx_from_graph
from flawline_train.trainer import plain_interrupts

__all__ = ["AnomalibFit", "AnomalibTraining", "fit_anomalib", "learn_anomalib", "model_class", "raw_maps"]

_BATCH = 16
_LONG = 1_000_000  # epochs; the budget ends it


@dataclass(frozen=True, slots=True)
class AnomalibFit:
    """The fitted model, in evaluation mode, and what the engineer should know of it."""

    network: MapNetwork
    result: FitResult
    notes: list[str]


@dataclass(frozen=True, slots=True)
class AnomalibTraining:
    """Fitted and calibrated, on the CPU."""

    graph: AnomalibGraph
    calibration: MapCalibration
    result: FitResult
    notes: list[str]
    method: str

    def onnx(self) -> bytes:
        """Raises `FlawlineError` for a model that opset 18 or our contract cannot express."""
        try:
            # Patchcore looks its memory through in pieces when there are many patches, a branch on the size of the batch.
            with mock.patch.object(patchcore, "DEFAULT_CHUNK_SIZE", sys.maxsize):
                return onnx_from_graph(self.graph)
        except Exception as exc:  # the exporter has many kinds
            reason = _first_line(exc.__cause__ or exc)
            raise FlawlineError(
                f"--method {self.method} was trained, but cannot be exported to ONNX opset {OPSET} for a batch of any size "
                f"({reason}); choose another model"
            ) from exc


def learn_anomalib(
    method: str,
    frames: NDArray[np.uint8],
    held_out: NDArray[np.uint8],
    placement: Placement,
    budget: Budget,
    *,
    seed: int,
    device: torch.device,
    false_reject: float,
    parts: Sequence[str] | None = None,
    doubted: Collection[str] = (),
    keep_suspects: bool = False,
    weights: Path | None = None,
    options: Mapping[str, Any] | None = None,
    on_fit: Callable[[FitProgress], None] | None = None,
    on_calibrate: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> AnomalibTraining:
    """Train `anomalib:NAME` on good `frames`, calibrate it with `held_out` good ones, both (n, H, W, 3) BGR uint8.

    `parts`, `doubted` and `keep_suspects` of the held-out ones as in `flawline_train.calibrate.calibrate`.
    """
    fitted = fit_anomalib(
        method, frames, budget, seed=seed, device=device, weights=weights, options=options,
        on_progress=on_fit, should_stop=should_stop,
    )  # fmt: skip
    maps = raw_maps(fitted.network, held_out, on_calibrate)
    calibration = calibrate_maps(
        maps,
        placement,
        false_reject_target=false_reject,
        parts=parts,
        doubted=doubted,
        keep_suspects=keep_suspects,
        cell=AnomalibGraph.cell,
    )
    graph = AnomalibGraph(fitted.network.cpu(), calibration.good, placement).eval()
    return AnomalibTraining(graph, calibration, fitted.result, fitted.notes, method)


def model_class(method: str) -> type[AnomalibModule]:
    """The class behind `anomalib:NAME`; NAME in anomalib's spelling or any other case. Raises `InputError`."""
    wanted = method.removeprefix(ANOMALIB).replace("_", "").replace("-", "").lower()
    found = {cls.__name__.lower(): cls for cls in AnomalibModule.__subclasses__() if ".image." in cls.__module__}
    if wanted not in found:
        names = ", ".join(sorted(cls.__name__ for cls in found.values()))
        raise InputError(f"--method {method}: anomalib has no image model of that name; it has {names}")
    return found[wanted]


def fit_anomalib(
    method: str,
    frames: NDArray[np.uint8],
    budget: Budget,
    *,
    seed: int,
    device: torch.device,
    weights: Path | None = None,
    options: Mapping[str, Any] | None = None,
    on_progress: Callable[[FitProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> AnomalibFit:
    """Train the model `anomalib:NAME` on good `frames` (n, H, W, 3) BGR uint8 with its own optimiser and settings.

    Models that remember (Patchcore, Padim) see each picture once, whatever the budget. `weights`: a safetensors file for the
    backbone, in timm's names; `options`: arguments of the model's class. Nothing is ever downloaded: raises `InputError`
    naming the weights that are missing, or what else the model asks for that a frame cannot give.
    """
    cls = model_class(method)
    hw = (frames.shape[1], frames.shape[2])
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory(prefix="flawline-") as name:
        folder = Path(name)
        arguments, notes = _arguments(cls, hw, folder, dict(options or {}))
        with _quiet(), _offline(cls, method, weights):
            module = cls(**arguments)
            mean, std = _normalisation(module, method, hw)
            pace = _Pace(budget, _remembers(module), on_progress, should_stop)
            _write_frames(folder / "good", frames)
            data = Folder(
                "frames", "good", folder, train_batch_size=_batch_size(cls, len(frames)), num_workers=0,
                test_split_mode="none", val_split_mode="none", seed=seed,
            )  # fmt: skip
            engine = Engine(
                [pace],
                default_root_dir=folder / "results",
                accelerator="gpu" if device.type == "cuda" else device.type,
                devices=1 if device.index is None else [device.index],
                max_epochs=_LONG,
                limit_val_batches=0,
                num_sanity_val_steps=0,
                barebones=True,
            )
            with plain_interrupts():
                _fit(engine, module, data, method, hw)
    network = MapNetwork(module.model, mean, std, frames).to(device).eval()
    return AnomalibFit(network, FitResult(pace.step, pace.loss, pace.seconds, False, pace.interrupted), notes)


def _fit(engine: Engine, module: AnomalibModule, data: Folder, method: str, hw: tuple[int, int]) -> None:
    try:
        engine.fit(module, datamodule=data)
    except (FlawlineError, OSError):
        raise
    except Exception as exc:
        if _is_refusal(exc):
            raise
        raise FlawlineError(
            f"--method {method} cannot be trained on {hw[1]}x{hw[0]} frames ({_first_line(exc)}); many models need "
            "a --size whose both sides are multiples of 32"
        ) from exc


@torch.inference_mode()
def raw_maps(
    network: MapNetwork, frames: NDArray[np.uint8], on_progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float32]:
    """Anomaly maps (n, H, W) of `frames` (n, H, W, 3) BGR uint8, for `flawline_train.calibrate.calibrate_maps`."""
    device = network.mean_good.device
    maps = []
    for start in range(0, len(frames), _BATCH):
        x = torch.from_numpy(frames[start : start + _BATCH]).to(device).float().permute(0, 3, 1, 2) / 255
        maps.append(network(x)[0][:, 0].float().cpu().numpy())
        if on_progress is not None:
            on_progress(min(start + _BATCH, len(frames)), len(frames))
    return np.concatenate(maps)


def _arguments(
    cls: type[AnomalibModule], hw: tuple[int, int], folder: Path, options: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    accepted = inspect.signature(cls.__init__).parameters
    if unknown := sorted(set(options) - set(accepted)):
        raise InputError(f"{cls.__name__} takes no {', '.join(unknown)}")
    notes = []
    if "dtd_dir" in accepted and "dtd_dir" not in options:
        textures = accepted["dtd_dir"].default
        if textures is None or not Path(textures).is_dir():
            (folder / "no textures").mkdir()
            options["dtd_dir"] = folder / "no textures"
            notes.append(
                f"{cls.__name__} was trained with noise for damage: the textures of DTD are not at {textures}, and nothing is downloaded"
            )
    parts: dict[str, Any] = {"pre_processor": cls.configure_pre_processor(hw)}
    parts |= {part: False for part in ("post_processor", "evaluator", "visualizer") if part in accepted}
    return {**parts, **options}, notes


def _normalisation(module: AnomalibModule, method: str, hw: tuple[int, int]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that the model subtracts and divides by. Raises `InputError` for anything but that."""
    transform: Transform | None = module.pre_processor.transform if module.pre_processor else None
    steps = transform.transforms if isinstance(transform, Compose) else [transform] if transform is not None else []
    mean, std = [0.0] * 3, [1.0] * 3
    for step in steps:
        if isinstance(step, Normalize):
            mean, std = list(step.mean), list(step.std)
        elif isinstance(step, Resize):
            if tuple(step.size) != hw:
                raise InputError(
                    f"--method {method} works at {step.size[1]}x{step.size[0]} pixels only, the frame has {hw[1]}x{hw[0]}; "
                    "choose --size and --roi so that they agree"
                )
        else:
            raise InputError(f"--method {method} prepares pictures by {type(step).__name__}, which the graph has not")
    return mean, std


def _first_line(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {str(exc).strip()}".splitlines()[0]


def _remembers(module: AnomalibModule) -> bool:
    return isinstance(module, MemoryBankMixin)


def _batch_size(cls: type[AnomalibModule], n: int) -> int:
    return 1 if cls.__name__ == "EfficientAd" else min(_BATCH, n)  # it refuses others


def _write_frames(folder: Path, frames: NDArray[np.uint8]) -> None:
    folder.mkdir()
    for i, frame in enumerate(frames):
        if not cv2.imwrite(str(folder / f"{i:06d}.png"), frame):
            raise FlawlineError(f"{folder}: cannot be written; is the disk full?")


class _Pace(pl.Callback):
    """Ends a training when its budget is spent; `memory` models after the one pass that they need."""

    def __init__(
        self,
        budget: Budget,
        memory: bool,
        on_progress: Callable[[FitProgress], None] | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self._budget = budget
        self._memory = memory
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._started = time.monotonic()
        self.step, self.loss, self.seconds, self.interrupted = 0, math.nan, 0.0, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.step += 1
        value = sum(float(part) for part in _losses(outputs))
        if not math.isfinite(value):
            raise FlawlineError(f"training diverged at step {self.step - 1} (loss {value}); try another --seed")
        self.loss = value if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * value
        share = (
            self.step / trainer.num_training_batches
            if self._memory
            else self._budget.share_done(self.step, self._started)
        )
        self.seconds = time.monotonic() - self._started
        if self._on_progress is not None:
            self._on_progress(FitProgress(min(1.0, share), self.step, self.loss))
        self.interrupted = self._should_stop()
        trainer.should_stop = self.interrupted or share >= 1


def _losses(outputs: Any) -> list[Any]:
    if isinstance(outputs, Mapping):
        return [outputs["loss"]] if "loss" in outputs else list(outputs.values())
    return [outputs] if isinstance(outputs, Tensor) else []


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What anomalib and Lightning print is not for those who call us."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # their loggers are many, and some are set back to talk when they are imported
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _NetworkRefusedError(OSError):
    pass


@contextlib.contextmanager
def _offline(cls: type[AnomalibModule], method: str, weights: Path | None) -> Iterator[None]:
    """No name is resolved within; timm reads `weights` for its pretrained backbone where given."""
    import huggingface_hub.constants
    import timm

    if weights is not None and (weights.suffix != ".safetensors" or not weights.is_file()):
        raise InputError(
            f"--weights {weights}: expected a .safetensors file of the backbone's weights, in timm's names"
        )
    create_model = timm.create_model

    def create(*args: Any, **kwargs: Any) -> nn.Module:
        if kwargs.get("pretrained") and weights is not None:
            kwargs["pretrained_cfg_overlay"] = {"file": str(weights)}
        return create_model(*args, **kwargs)

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise _NetworkRefusedError("the network is cut off")

    with (
        mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True),
        mock.patch.object(socket, "getaddrinfo", refuse),
        mock.patch.object(timm, "create_model", create),
    ):
        try:
            yield
        except Exception as exc:
            if _is_refusal(exc):
                raise InputError(_missing_weights(cls, method)) from exc
            raise


def _is_refusal(exc: BaseException | None) -> bool:
    """Whether a download was tried, however many layers have wrapped it by now."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    while exc is not None:
        if isinstance(exc, _NetworkRefusedError | LocalEntryNotFoundError | OfflineModeIsEnabled):
            return True
        if "network is cut off" in str(exc) or "offline mode" in str(exc).lower():
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def _missing_weights(cls: type[AnomalibModule], method: str) -> str:
    import timm
    from anomalib.utils.path import get_pretrained_weights_dir

    backbone = getattr(inspect.signature(cls.__init__).parameters.get("backbone"), "default", None)
    found = timm.get_pretrained_cfg(str(backbone)) if isinstance(backbone, str) and timm.is_model(backbone) else None
    if found is None:
        return (
            f"--method {method} needs pretrained weights or pictures that are not on this machine, and nothing is downloaded; "
            f"put what anomalib's {cls.__name__} asks for into {get_pretrained_weights_dir()}"
        )
    return (
        f"--method {method} needs the pretrained weights of {backbone} (timm: {found.hf_hub_id or backbone}), which are not on "
        "this machine, and nothing is downloaded; give its safetensors file with --weights FILE or fill the Hugging Face cache"
    )
