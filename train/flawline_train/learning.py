"""Fitting and calibrating: what a method of ours and a model of anomalib have in common once they have learnt."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from flawline_inspect.errors import EXIT_INTERRUPTED, FlawlineError, InputError
from flawline_train.autoencoders import Autoencoder
from flawline_train.autoencoders.methods import build
from flawline_train.calibrate import MapCalibration, calibrate
from flawline_train.fit import Budget, FitProgress, FitResult, fit
from flawline_train.graph import InspectionGraph, onnx_from_graph
from flawline_train.kind import CROP
from flawline_train.light import Light
from flawline_train.material import Material
from flawline_train.options import TrainOptions
from flawline_train.texture import calibrate_texture

__all__ = ["Learnt", "Listener", "TrainingInterruptedError", "learn"]


class TrainingInterruptedError(FlawlineError):
    """Training was stopped before its result was worth a bundle."""

    exit_code = EXIT_INTERRUPTED


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told of a training, and asked after each step whether to stop it."""

    on_fit: Callable[[FitProgress], None]
    on_calibrate: Callable[[int, int], None]
    should_stop: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Learnt:
    """Fitted and calibrated, on the CPU. `export` gives the graph in ONNX; `notes` are what the engineer should know."""

    graph: InspectionGraph
    calibration: MapCalibration
    result: FitResult
    export: Callable[[], bytes]
    notes: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """How many numbers the network has learnt."""
        return sum(parameter.numel() for parameter in self.graph.network.parameters())


def learn(options: TrainOptions, material: Material, budget: Budget, listener: Listener) -> Learnt:
    """Fit on what is to be learnt from, calibrate with what is held out."""
    return (_learn_anomalib if options.is_anomalib else _learn_own)(options, material, budget, listener)


def _learn_own(options: TrainOptions, material: Material, budget: Budget, listener: Listener) -> Learnt:
    network, placement = _network(options, material), material.pictures.placement
    crop = CROP if material.pictures.kind == "texture" else None
    frames = material.train_frames
    light = Light((frames.shape[1], frames.shape[2]))
    light.fit(frames)
    checkpoint = None if options.dry_run else options.checkpoint
    result = fit(
        network,
        light.usual(frames),
        budget,
        seed=options.seed,
        device=options.torch_device,
        schedule=options.schedule,
        devices=options.devices,
        checkpoint=_made(checkpoint),
        resume=options.resume and not options.dry_run,
        tensorboard=None if options.dry_run else options.tensorboard,
        crop=crop,
        on_progress=listener.on_fit,
        should_stop=listener.should_stop,
    )
    if result.interrupted and result.steps < options.schedule.warm_up:
        raise TrainingInterruptedError(
            f"training was interrupted after {result.steps} steps, too early to have learnt anything; {options.output} was not written"
        )
    calibration = (partial(calibrate, learnt=frames) if crop is None else calibrate_texture)(
        network,
        material.held_out_frames,
        placement,
        false_reject_target=options.false_rejects,
        parts=material.held_out_parts,
        doubted=material.doubted,
        keep_suspects=options.keep_suspects,
        light=light.to(options.torch_device),
        on_progress=listener.on_calibrate,
    )
    graph = InspectionGraph(
        network.cpu(),
        calibration.error_map.cpu(),
        calibration.good,
        placement,
        light.cpu(),
        places=crop is None,
    )
    return Learnt(graph, calibration, result, lambda: onnx_from_graph(graph))


def _network(options: TrainOptions, material: Material) -> Autoencoder:
    """A new one, its weights drawn by the seed, or the earlier model's."""
    if options.previous is not None:
        return options.previous.network
    torch.manual_seed(options.seed)
    spec = material.pictures.spec
    return build(options.method, options.width, (spec.height, spec.width))


def _made(checkpoint: Path | None) -> Path | None:
    try:
        if checkpoint is not None:
            checkpoint.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InputError(
            f"{checkpoint}: cannot be made ({exc.strerror or exc}); give --checkpoint another folder"
        ) from exc
    return checkpoint


def _learn_anomalib(options: TrainOptions, material: Material, budget: Budget, listener: Listener) -> Learnt:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anomalib and timm about themselves
        from flawline_train.anomalib_method import learn_anomalib

    learnt = learn_anomalib(
        options.method,
        material.train_frames,
        material.held_out_frames,
        material.pictures.placement,
        budget,
        seed=options.seed,
        device=options.torch_device,
        false_reject=options.false_rejects,
        parts=material.held_out_parts,
        doubted=material.doubted,
        keep_suspects=options.keep_suspects,
        weights=options.weights,
        on_fit=listener.on_fit,
        on_calibrate=listener.on_calibrate,
        should_stop=listener.should_stop,
    )
    return Learnt(learnt.graph, learnt.calibration, learnt.result, learnt.onnx, learnt.notes)
