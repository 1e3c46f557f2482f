"""The trivial ways against scikit-learn and plain NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.accuracy.floors import (
    FLOORS,
    LINEAR,
    TRIVIAL,
    LinearAutoencoder,
    Template,
    auroc,
    auroc_interval,
    floor_figures,
    scores,
)
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from tests.benchmarks.stand_ins import small_set


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 12, 10), np.float32)


@pytest.mark.parametrize("components", [1, 5, 19])
def test_linear_autoencoder_is_principal_component_analysis(components: int) -> None:
    """The residual is that of scikit-learn's exact PCA; float32 pictures, float64 arithmetic."""
    good, test = pictures(20), pictures(7, seed=1)
    pca = PCA(components, svd_solver="full").fit(good.reshape(20, -1).astype(np.float64))
    rows = test.reshape(7, -1).astype(np.float64)
    expected = (rows - pca.inverse_transform(pca.transform(rows))) ** 2
    found = LinearAutoencoder.fit(good, components).residual(test)
    np.testing.assert_allclose(found.reshape(7, -1), expected, rtol=1e-5, atol=1e-9)


def test_linear_autoencoder_has_fewer_components_than_pictures() -> None:
    """32 of 5 pictures are 4: those reproduce the pictures themselves."""
    good = pictures(5)
    model = LinearAutoencoder.fit(good)
    assert len(model.components) == 4
    assert model.residual(good).max() < 1e-9


def test_linear_autoencoder_of_equal_pictures_has_no_components() -> None:
    model = LinearAutoencoder.fit(np.repeat(pictures(1), 6, 0))
    assert len(model.components) == 0
    assert np.isfinite(model.residual(pictures(2))).all()


def test_template_standardises_by_the_good_pictures() -> None:
    """A difference as large as is usual in its place is 0; where all good pictures are equal nothing divides by 0."""
    good = pictures(50)
    good[:, 0, 0] = 0.5
    model = Template.fit(good)
    assert abs(model.residual(good).mean()) < 1e-3
    assert np.isfinite(model.residual(pictures(2, seed=1))).all()


def test_score_is_the_mean_of_the_largest_values() -> None:
    """A spot in a flat residual scores more the brighter it is, and a flat residual its level."""
    flat = np.full((3, 64, 64), 0.25, np.float32)
    flat[1, 30:34, 30:34] = 1
    flat[2, 30:34, 30:34] = 2
    found = scores(flat)
    assert found[0] == pytest.approx(0.25, rel=1e-5)
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize("levels", [3, 1000], ids=["many ties", "few ties"])
def test_auroc_is_that_of_scikit_learn(levels: int) -> None:
    rng = np.random.default_rng(0)
    values, labels = rng.integers(0, levels, 80).astype(float), rng.random(80) < 0.4
    assert auroc(values, labels) == pytest.approx(roc_auc_score(labels, values))


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Normal scores one deviation apart have an AUROC of 0.760; of 100 intervals of 95 % some 95 hold it."""
    rng = np.random.default_rng(0)
    labels = np.arange(100) >= 50
    held = 0
    for _ in range(100):
        low, high = auroc_interval(rng.normal(labels.astype(float)), labels)
        held += low <= 0.7602 <= high
    assert 88 <= held <= 99


def test_floors_separate_white_corners(tmp_path: Path) -> None:
    """Each way finds defects that anything would find; the trivial one says which figure did."""
    data = small_set(tmp_path / "plates")
    found = {name: floor_figures(name, data) for name in FLOORS}
    assert found[LINEAR]["image_auroc"] == 1
    assert found[TRIVIAL]["best"] == "sharpness"
    assert found[TRIVIAL]["image_auroc"] == max(found[TRIVIAL]["each"].values())
    assert found[TRIVIAL]["each"]["size"] == 0.5
    for figures in found.values():
        assert (figures["n_good"], figures["n_bad"]) == (6, 8)
        low, high = figures["image_auroc_interval"]
        assert 0 <= low <= figures["image_auroc"] <= high <= 1
