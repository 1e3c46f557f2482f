"""Models of anomalib on our frames: trained, calibrated and exported into our graph, or refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray
from tests.train_.parts import parts
from torch import Tensor, nn

pytest.importorskip("anomalib")

from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import CenterCrop, Compose, Resize

from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_engines.tensorrt import compile_plan, load_module
from flawline_inspect.calibration import GoodSpread
from flawline_inspect.errors import EngineError, FlawlineError, InputError
from flawline_inspect.frame import Placement
from flawline_train.anomalib_graph import AnomalibGraph, MapNetwork
from flawline_train.anomalib_method import AnomalibTraining, fit_anomalib, learn_anomalib, model_class
from flawline_train.fit import Budget, FitProgress
from flawline_train.graph import OPSET, run_graph

HW = (32, 48)
CPU = torch.device("cpu")
RESNET: dict[str, Any] = {"backbone": "resnet18", "pre_trained": False}


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    return parts(16, (HW[1], HW[0]))


def learnt(method: str, frames: NDArray[np.uint8], steps: int = 2, **options: Any) -> AnomalibTraining:
    placement = Placement((HW[1], HW[0]), (0, 0, HW[1], HW[0]), (0, 4, HW[1], 24))
    return learn_anomalib(
        method, frames[:10], frames[10:], placement, Budget(steps=steps),
        seed=0, device=CPU, false_reject=0.01, options=options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "options"),
    [("anomalib:Ganomaly", {}), ("anomalib:padim", RESNET), ("anomalib:Patchcore", RESNET)],
    ids=["ganomaly", "padim", "patchcore"],
)
@pytest.mark.slow
def test_a_model_becomes_our_graph(method: str, options: dict[str, Any], frames: NDArray[np.uint8]) -> None:
    """Opset 18, a batch of any size, and ONNX Runtime gives what torch gives; the border outside the picture is silent."""
    training = learnt(method, frames, **options)
    model = training.onnx()
    assert [opset.version for opset in onnx.load_from_string(model).opset_import if opset.domain == ""] == [OPSET]
    with OnnxRuntimeEngine(model, HW) as engine:
        for n in (1, 3):
            found = engine.infer(frames[:n])
            scores, heatmaps, expected = run_graph(training.graph, frames[:n])
            # Patchcore takes a distance from x^2 - 2xy + y^2, whose rounding the small spread of few pictures magnifies.
            scale = np.abs(heatmaps).max()
            assert np.abs(found.heatmaps - heatmaps).max() < 0.05 * scale
            assert np.allclose(found.scores, scores, rtol=0.01, atol=0.01)
            assert np.abs(found.expected.astype(int) - expected).max() <= 1
            assert not found.heatmaps[:, :4].any() and not found.heatmaps[:, 28:].any()
    assert training.calibration.threshold.value >= training.calibration.scores.max()


@pytest.mark.slow
def test_tensorrt_rtx_compiles_it(frames: NDArray[np.uint8], unavailable: Callable[[str], NoReturn]) -> None:
    """The builder needs no GPU; Patchcore's search through its memory is the least usual of the graphs."""
    try:
        load_module("tensorrt_rtx")
    except EngineError as exc:
        unavailable(f"{exc}; the test group has it on x86-64 Linux")
    plan, _ = compile_plan("tensorrt_rtx", learnt("anomalib:Patchcore", frames, **RESNET).onnx())
    assert len(plan) > 0


def test_a_model_that_remembers_sees_every_picture_once(frames: NDArray[np.uint8]) -> None:
    """Patchcore's memory holds patches of all pictures, though the budget is one step."""
    seen: list[FitProgress] = []
    fitted = fit_anomalib(
        "anomalib:Patchcore", frames, Budget(steps=1), seed=0, device=CPU,
        options={**RESNET, "coreset_sampling_ratio": 1.0}, on_progress=seen.append,
    )  # fmt: skip
    patches = len(frames) * (HW[0] // 8) * (HW[1] // 8)
    assert fitted.network.model.memory_bank.shape[0] == patches
    assert seen[-1].share == 1.0


def test_a_budget_of_steps_ends_a_training(frames: NDArray[np.uint8]) -> None:
    """Batches are counted, not the turns of two optimisers."""
    seen: list[FitProgress] = []
    fitted = fit_anomalib(
        "anomalib:Ganomaly", frames, Budget(steps=3), seed=0, device=CPU,
        options={"n_features": 8, "latent_vec_size": 8}, on_progress=seen.append,
    )  # fmt: skip
    assert [progress.step for progress in seen] == [1, 2, 3] and fitted.result.steps == 3
    assert np.isfinite(fitted.result.loss) and not fitted.result.interrupted


# What is refused


def test_an_unknown_name_lists_what_there_is() -> None:
    """Without having tried anything."""
    with pytest.raises(InputError, match=r"no image model of that name; it has .*Padim.*Patchcore"):
        model_class("anomalib:Nope")


@pytest.mark.parametrize("name", ["EfficientAd", "efficient_ad", "efficient-ad"])
def test_names_are_taken_as_people_write_them(name: str) -> None:
    """anomalib's own spelling, with underscores, with dashes."""
    assert model_class(f"anomalib:{name}").__name__ == "EfficientAd"


def test_missing_weights_are_named_and_not_downloaded(
    frames: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The backbone and where timm knows it from, and the two ways to give it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        InputError, match=r"needs the pretrained weights of resnet18 \(timm: timm/resnet18.*--weights FILE"
    ):
        fit_anomalib("anomalib:Stfpm", frames, Budget(steps=1), seed=0, device=CPU)


def test_weights_from_a_file_are_the_backbones(frames: NDArray[np.uint8], tmp_path: Path) -> None:
    """timm's names in a safetensors file; a pickle is not even opened."""
    torch.manual_seed(5)
    state = timm.create_model("resnet18", pretrained=False).state_dict()
    safetensors.torch.save_file(state, tmp_path / "resnet18.safetensors")
    fitted = fit_anomalib(
        "anomalib:Padim", frames, Budget(steps=1), seed=0, device=CPU, weights=tmp_path / "resnet18.safetensors"
    )
    found = fitted.network.model.feature_extractor.feature_extractor.state_dict()
    assert torch.equal(found["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])
    (tmp_path / "resnet18.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"expected a \.safetensors file"):
        fit_anomalib("anomalib:Padim", frames, Budget(steps=1), seed=0, device=CPU, weights=tmp_path / "resnet18.pth")


def test_a_frame_that_a_model_cannot_have_is_told(frames: NDArray[np.uint8]) -> None:
    """One size only, a crop that the graph has not, or sides that its layers cannot halve often enough."""
    resize = PreProcessor(Compose([Resize((448, 448))]))
    with pytest.raises(InputError, match="works at 448x448 pixels only, the frame has 48x32"):
        fit_anomalib("anomalib:Draem", frames, Budget(steps=1), seed=0, device=CPU, options={"pre_processor": resize})
    crop = PreProcessor(Compose([CenterCrop((16, 16))]))
    with pytest.raises(InputError, match="prepares pictures by CenterCrop, which the graph has not"):
        fit_anomalib("anomalib:Draem", frames, Budget(steps=1), seed=0, device=CPU, options={"pre_processor": crop})
    with pytest.raises(FlawlineError, match=r"cannot be trained on 48x32 frames .*multiples of 32"):
        fit_anomalib("anomalib:Draem", frames[:2], Budget(steps=1), seed=0, device=CPU)


def test_options_that_a_model_does_not_take_are_refused(frames: NDArray[np.uint8]) -> None:
    """By name."""
    with pytest.raises(InputError, match="Ganomaly takes no colour"):
        fit_anomalib("anomalib:Ganomaly", frames, Budget(steps=1), seed=0, device=CPU, options={"colour": 1})


# The graph


class Red(nn.Module):
    """A model whose map is its normalised red channel at half the size."""

    def forward(self, z: Tensor) -> Any:
        class Found:
            anomaly_map = nn.functional.avg_pool2d(z[:, :1], 2)[:, 0]

        return Found


def test_normalisation_colours_and_size_are_the_graphs(frames: NDArray[np.uint8]) -> None:
    """BGR bytes in; the model sees RGB, normalised its own way; the map comes back at the frame's size."""
    network = MapNetwork(Red(), [0.2, 0.0, 0.0], [0.5, 1.0, 1.0], frames)
    spread = GoodSpread(np.full(HW, 0.1, np.float32), np.full(HW, 2.0, np.float32))
    graph = AnomalibGraph(network, spread, Placement((48, 32), (0, 0, 48, 32), (0, 0, 48, 32))).eval()
    red = np.zeros((2, *HW, 3), np.uint8)
    red[0, ..., 2] = 255
    scores, heatmaps, expected = run_graph(graph, red)
    assert np.allclose(heatmaps[0], ((1 - 0.2) / 0.5 - 0.1) / 2, atol=1e-5)
    assert np.allclose(heatmaps[1], ((0 - 0.2) / 0.5 - 0.1) / 2, atol=1e-5)
    assert np.allclose(scores, heatmaps[:, 0, 0], atol=1e-5)
    assert np.abs(expected[0].astype(float) - frames.mean(0)).max() <= 0.51  # the mean good frame


def test_a_model_without_a_map_is_refused(frames: NDArray[np.uint8]) -> None:
    """A score alone shows nobody where to look."""

    class Scoring(nn.Module):
        def forward(self, z: Tensor) -> Any:
            class Found:
                anomaly_map = None

            return Found

    with pytest.raises(InputError, match="Scoring gives no anomaly map"):
        MapNetwork(Scoring(), [0.0] * 3, [1.0] * 3, frames)(torch.zeros(1, 3, *HW))


def test_what_cannot_be_exported_is_told(frames: NDArray[np.uint8]) -> None:
    """One sentence with the method's name, after which another model is chosen."""

    class Branching(Red):
        def forward(self, z: Tensor) -> Any:
            return super().forward(z * 2 if float(z.sum()) > 0 else z)

    training = learnt("anomalib:Padim", frames, **RESNET)
    training.graph.network.model = Branching()
    with pytest.raises(
        FlawlineError, match="--method anomalib:Padim was trained, but cannot be exported to ONNX opset 18"
    ):
        training.onnx()
