"""What a bundle says of itself: how it was trained, on which pictures, what it promises and whom it may wrong."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import torch
from torch import nn

from flawline_inspect import __version__
from flawline_train.calibrate import MapCalibration
from flawline_train.golden import GoldenSet
from flawline_train.health import LearntHealth
from flawline_train.known_defects import DefectScores
from flawline_train.learning import Learnt
from flawline_train.material import Material
from flawline_train.options import TrainOptions
from flawline_train.pictures import GoodPictures
from flawline_train.promise import calibration_section, promise_sentence

__all__ = ["half_weights", "manifest_of"]


def manifest_of(
    options: TrainOptions,
    material: Material,
    learnt: Learnt,
    calibration: MapCalibration,
    known: DefectScores | None,
    golden: GoldenSet,
    align_section: dict[str, Any],
    health: LearntHealth,
) -> dict[str, Any]:
    """As `save_bundle` takes it. `calibration`: at the threshold that was chosen; `known` defects' scores, if any."""
    pictures = material.pictures
    return {
        "name": options.name,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "method": {"name": options.method, "parameters": _parameters(options, pictures, learnt)},
        "frame": {
            "width": pictures.spec.width,
            "height": pictures.spec.height,
            "bit_depth": pictures.spec.bit_depth,
            "roi": options.roi,
            "picture_wh": pictures.placement.picture_wh,
            "align": align_section,
            "stretch": pictures.spec.stretch,
            "kind": pictures.kind,
        },
        "calibration": calibration_section(calibration, known, options.costs),
        "data": _data_section(options, material),
        "card": _model_card(options.good.name, pictures, calibration, len(material.left_out)),
        "golden": golden.entries,
        "versions": _versions(options),
        "health": health.section,
    }


def half_weights(network: nn.Module) -> bytes:
    """`WEIGHTS`. fp16 halves the file; retraining starts from these, inference never sees them."""
    state = {
        key: tensor.half().contiguous() if tensor.is_floating_point() else tensor.contiguous()
        for key, tensor in network.state_dict().items()
    }
    return safetensors.torch.save(state)


def _parameters(options: TrainOptions, pictures: GoodPictures, learnt: Learnt) -> dict[str, bool | int | float | str]:
    return {
        **options.settings,
        **({} if options.is_anomalib else {"width": options.width}),
        "steps": learnt.result.steps,
        "seed": options.seed,
        "size": max(pictures.spec.width, pictures.spec.height),
        "bf16": learnt.result.autocast,
        **({} if options.previous is None else {"from": options.previous.bundle.model_id}),
    }


def _versions(options: TrainOptions) -> dict[str, str]:
    return {
        "flawline": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lightning": version("lightning"),
        **({"anomalib": version("anomalib")} if options.is_anomalib else {}),
        "onnx": version("onnx"),
        "onnxruntime": version("onnxruntime"),
        "opencv": cv2.__version__,
        "numpy": np.__version__,
    }


def _data_section(options: TrainOptions, material: Material) -> dict[str, Any]:
    pictures, screening = material.pictures, material.screening
    roles = {
        **dict.fromkeys(material.held_out.tolist(), "calibration"),
        **dict.fromkeys(material.left_out.tolist(), "left_out"),
    }
    suspects = [
        {"file": pictures.files[i].file, "score": float(screening.scores[i])}
        for i in screening.ranking
        if pictures.parts[i] in screening.suspects
    ]
    earlier = [] if options.previous is None else options.previous.others(pictures)
    return {
        "pictures": [
            {"file": file.file, "sha256": file.sha256, "role": roles.get(i, "train")}
            for i, file in enumerate(pictures.files)
        ],
        "skipped": [{"file": file, "reason": reason} for file, reason in pictures.skipped],
        **({"earlier": earlier} if earlier else {}),
        **({"suspects": suspects} if suspects else {}),
    }


def _model_card(folder: str, pictures: GoodPictures, calibration: MapCalibration, left_out: int) -> dict[str, str]:
    n, held_out = len(pictures.files), len(calibration.scores)
    without = f", {left_out} left out as suspects" if left_out else ""
    width, height = pictures.placement.picture_wh
    turns = pictures.spec.alignment is not None and pictures.spec.alignment.motion.turns
    pose = (
        "may lie and be turned as in the training pictures"
        if turns
        else "are expected in the pose of the training pictures"
    )
    if pictures.kind == "texture":
        pose = "are taken for a texture, whose places are all judged alike"
    return {
        "intended_use": "Telling parts that look like the training pictures from parts that do not, under the same camera, light and pose.",
        "limits": (
            f"Sees what {pictures.spec.width}x{pictures.spec.height} pixels show; parts {pose}; "
            "no defect was ever shown to it, so its escape rate is unknown until it is measured with `flawline eval`. "
            "It is no safety function (ISO 13849)."
        ),
        "data": (
            f"{n} pictures of good parts from {folder!r}, mostly {width}x{height} pixels, {held_out} of them held out to "
            f"calibrate{without}."
        ),
        "who_may_be_wronged": (
            f"Good parts unlike the training pictures are scrapped. {promise_sentence(calibration)}"
        ),
    }
