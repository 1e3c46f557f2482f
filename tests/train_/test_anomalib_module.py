"""Our networks under anomalib's own Engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.train_.parts import Blur, shaken, write_parts

pytest.importorskip("anomalib")

from anomalib.data import Folder
from anomalib.engine import Engine

from flawline_train.anomalib_module import ErrorModel, FlawlineModule
from flawline_train.autoencoders import FilteringAutoencoder


def test_anomalibs_engine_trains_and_predicts(tmp_path: Path) -> None:
    """A few steps on a folder of pictures move the weights; predictions are scores and maps of the frame's size."""
    write_parts(tmp_path / "good", 10, (40, 30))
    data = Folder(
        "parts", "good", tmp_path, train_batch_size=4, eval_batch_size=4, num_workers=0,
        test_split_mode="synthetic", val_split_mode="same_as_test", seed=0,
    )  # fmt: skip
    torch.manual_seed(0)
    module = FlawlineModule(width=4, image_size=(32, 48), visualizer=False)
    before = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
    engine = Engine(
        max_steps=3, default_root_dir=tmp_path / "results", accelerator="cpu", devices=1, enable_progress_bar=False
    )
    engine.fit(module, datamodule=data)
    assert engine.trainer.global_step == 3 and 0 < module.share < 1
    assert any(not torch.equal(before[name], tensor) for name, tensor in module.network.state_dict().items())
    predicted = engine.predict(module, datamodule=data)
    assert predicted
    for batch in predicted:
        assert batch.anomaly_map.shape[-2:] == (32, 48)
        assert torch.isfinite(batch.pred_score).all() and len(batch.pred_score) == len(batch.image)


def test_map_is_the_error_in_the_networks_colours() -> None:
    """The network sees BGR though anomalib gives RGB; the map is the mean error over the colours, the score its maximum."""
    network = shaken(FilteringAutoencoder(4))
    rgb = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = ErrorModel(network)(rgb)
        bgr = rgb[:, [2, 1, 0]]
        expected = (bgr - network(bgr)).abs().mean(1, keepdim=True)
    assert torch.allclose(found.anomaly_map, expected, atol=1e-6)
    assert torch.equal(found.pred_score, found.anomaly_map.flatten(1).max(1).values)


def test_it_takes_a_network_of_ones_own() -> None:
    """Any autoencoder of the family; anomalib's default is ours."""
    network = Blur()
    assert FlawlineModule(network, image_size=(48, 64)).network is network  # type: ignore[arg-type]
    assert isinstance(FlawlineModule(width=4).network, FilteringAutoencoder)
    assert FlawlineModule(width=4, image_size=(48, 64)).input_size == (48, 64)
