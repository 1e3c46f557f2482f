"""`flawline sample`: new good parts from bundles that can draw them, one sentence from those that cannot."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from tests.train_.parts import varied_parts, write

from flawline_inspect.bundle import Bundle
from flawline_inspect.cli import main
from flawline_inspect.errors import BundleError, InputError
from flawline_train import learning, train, training
from flawline_train.sampling import draw_parts, save_sample


def bundle_of(folder: Path, method: str) -> Path:
    """Trained for thirty steps on pictures of 64 x 40 pixels, which lie in a frame of 64 x 48."""
    for i, picture in enumerate(varied_parts(12, (64, 40))):
        write(folder / "good" / f"{i}.png", picture)
    path = folder / f"{method}.flawline"
    train(folder / "good", path, method=method, steps=30, width=4, size=64, device="cpu", align="none")
    return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("bundles")
    with pytest.MonkeyPatch.context() as patch:  # what is not looked at here, and takes seconds
        patch.setattr(learning, "onnx_from_graph", lambda graph: b"no graph")
        patch.setattr(training, "choose_golden", lambda *_: SimpleNamespace(members={}, entries=[]))
        return SimpleNamespace(
            able=bundle_of(folder, "vector-quantized"),
            unable=bundle_of(folder, "vanilla"),
        )


def test_a_folder_of_parts_and_a_sheet(
    bundles: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many pictures as asked for, without the frame's border, all different; the sheet holds them row by row."""
    out = tmp_path / "new" / "drawn"
    with pytest.raises(SystemExit) as end:
        main(["sample", str(bundles.able), "-n", "5", "--out", str(out)])
    assert end.value.code == 0
    assert str(out / "sheet.png") in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [*(f"{i:04d}.png" for i in range(5)), "sheet.png"]
    pictures = [cv2.imread(str(out / f"{i:04d}.png")) for i in range(5)]
    assert all(picture is not None and picture.shape == (40, 64, 3) for picture in pictures)
    assert len({picture.tobytes() for picture in pictures if picture is not None}) == 5
    sheet = cv2.imread(str(out / "sheet.png"))
    assert sheet is not None and sheet.shape == (2 * 42 - 2, 3 * 66 - 2, 3)
    np.testing.assert_array_equal(sheet[42:82, 66:130], pictures[4])
    assert (sheet[42:, 132:] == 255).all()


def test_the_seed_decides(bundles: SimpleNamespace) -> None:
    """The same seed draws the same parts, another one others."""
    bundle = Bundle.open(bundles.able)
    first = draw_parts(bundle, 3, seed=1)
    assert first.shape == (3, 40, 64, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, draw_parts(bundle, 3, seed=1))
    assert (first != draw_parts(bundle, 3, seed=2)).any()


def test_drawn_parts_resemble_the_training_parts(bundles: SimpleNamespace) -> None:
    """Even after thirty steps: their mean is near the training pictures' mean."""
    drawn = draw_parts(Bundle.open(bundles.able), 16, seed=0).astype(float).mean(0)
    assert np.abs(drawn - varied_parts(12, (64, 40)).mean(0)).mean() < 10


def test_a_method_that_cannot_draw_says_which_can(bundles: SimpleNamespace, tmp_path: Path) -> None:
    """One sentence, exit code 2, nothing written."""
    with pytest.raises(
        InputError, match=r"vanilla draws no parts; .*variational, beta, vector-quantized, hierarchical$"
    ):
        draw_parts(Bundle.open(bundles.unable), 4, seed=0)
    with pytest.raises(SystemExit) as end:
        main(["sample", str(bundles.unable), "--out", str(tmp_path / "drawn")])
    assert end.value.code == 2 and not (tmp_path / "drawn").exists()


@pytest.mark.parametrize("number", [0, -3, 10_001])
def test_a_number_out_of_range(bundles: SimpleNamespace, number: int) -> None:
    """At least one and at most ten thousand."""
    with pytest.raises(InputError, match=rf"--number is {number}, expected 1 to 10000"):
        draw_parts(Bundle.open(bundles.able), number, seed=0)


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    """Is told before anything is written."""
    with pytest.raises(BundleError, match="does not exist"):
        draw_parts(Bundle.open(tmp_path / "part.flawline"), 1, seed=0)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A file stands in the way: the folder's name and the reason."""
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(InputError, match=r"taken.*cannot be written"):
        save_sample(np.zeros((1, 4, 4, 3), np.uint8), tmp_path / "taken")
