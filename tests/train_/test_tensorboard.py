"""What TensorBoard is given, and what is said where it is not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tests.train_.parts import parts

from flawline_inspect.errors import InputError
from flawline_train import tensorboard
from flawline_train.autoencoders import FilteringAutoencoder
from flawline_train.fit import Budget, fit
from flawline_train.lightning_module import learning_rate
from flawline_train.tensorboard import ERROR_GAIN, check_tensorboard, picture_strip


class Writer:
    """Keeps what a SummaryWriter would write."""

    made: ClassVar[list[Writer]] = []

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.scalars: list[tuple[str, float, int]] = []
        self.pictures: list[tuple[str, Any, int]] = []
        self.closed = False
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def add_image(self, name: str, picture: Any, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.pictures.append((name, picture, step))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> type[Writer]:
    """The package in torch's place for it, whether or not the real one is installed."""
    package = type(sys)("torch.utils.tensorboard")
    package.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    monkeypatch.setattr(Writer, "made", [])
    return Writer


def fitted(folder: Path | None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = FilteringAutoencoder(4, (32, 32))
    fit(network, parts(8, (32, 32)), Budget(steps=4), seed=0, device=torch.device("cpu"), tensorboard=folder)
    return network.state_dict()


def test_it_is_told_loss_rate_speed_and_pictures(
    tmp_path: Path, writer: type[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scalars of every step here, the pictures of the first; the file is closed at the end."""
    monkeypatch.setattr(tensorboard, "SCALARS_EVERY_S", 0.0)
    fitted(tmp_path)
    (made,) = writer.made
    assert made.folder == str(tmp_path) and made.closed
    assert [step for name, _, step in made.scalars if name == "loss"] == [1, 2, 3, 4]
    assert [step for name, _, step in made.scalars if name == "steps per second"] == [2, 3, 4]
    rates = [value for name, value, _ in made.scalars if name == "learning rate"]
    assert rates == pytest.approx([learning_rate(step, step / 4) for step in range(4)])
    assert [(picture.shape, step) for _, picture, step in made.pictures] == [((4 * 32, 3 * 32, 3), 1)]


def test_being_looked_at_changes_nothing(tmp_path: Path, writer: type[Writer]) -> None:
    """The same weights with and without."""
    seen, unseen = fitted(tmp_path), fitted(None)
    assert len(writer.made) == 1
    assert all(torch.equal(seen[name], unseen[name]) for name in unseen)


def test_strip_is_input_expected_error_in_rgb() -> None:
    """A blue picture (BGR) expected grey: blue left, grey in the middle, the error's brightness right."""
    blue = torch.tensor([0.6, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    strip = picture_strip(blue, torch.full((1, 3, 2, 2), 0.1))
    assert strip.shape == (2, 6, 3) and strip.dtype == np.uint8
    error = round(255 * ERROR_GAIN * (0.5 + 0.1 + 0.1) / 3)
    assert strip[0, 0].tolist() == [0, 0, 153] and strip[0, 2].tolist() == [26, 26, 26]
    assert strip[0, 4].tolist() == [min(255, error)] * 3


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        InputError, match="needs the package tensorboard, which is not installed: pip install tensorboard"
    ):
        check_tensorboard()
