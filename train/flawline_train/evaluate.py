"""How good a bundle is, on a data set with good and defective parts that it never saw.

The layout is the usual one of anomaly-detection sets: `test/good`, `test/<defect>`, and where masks exist
`ground_truth/<defect>/<stem>_mask.png` (or `<stem>.png`). Metrics are torchmetrics' and anomalib's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawline_engines import EngineKind, Precision, open_engine
from flawline_inspect.bundle import Bundle
from flawline_inspect.decision import DecisionRule
from flawline_inspect.errors import HealthError, InputError, PictureError
from flawline_inspect.frame import Placement, find_pictures, read_picture
from flawline_inspect.verdict import Result
from flawline_train.binomial import interval

__all__ = ["DefectKind", "Evaluation", "Judged", "evaluate"]

GOOD = "good"
RESAMPLES = 2000
"""Of the bootstrap of the image AUROC."""
_RESAMPLES_AT_ONCE = 100
Interval = tuple[float, float]
"""Of 95 %, both ends in 0-1."""
AUPRO_LIMIT = 0.3
"""False-positive rate up to which the per-region overlap is integrated, as usual since Bergmann et al. 2019."""


@dataclass(frozen=True, slots=True)
class DefectKind:
    n: int
    image_auroc: float
    escape_rate: float
    escape_interval: Interval


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All figures are shares in 0-1; None where the set has no masks. Pixel metrics are taken in the model's frame.

    `false_reject_rate`: good parts not OK at `threshold`; `escape_rate`: defective parts that are OK. Their intervals are
    Clopper & Pearson's, that of the AUROC is from a bootstrap. They take each picture for another part. `promise_kept`:
    whether the false rejects are compatible with what the bundle promises, which is False only when their interval
    lies above `promised_false_reject_rate`. Of the `n_good` and `n_bad` pictures, `..._unhealthy` cannot be judged
    (NotDecidable `health`).
    """

    image_auroc: float
    average_precision: float
    pixel_auroc: float | None
    aupro: float | None
    false_reject_rate: float
    escape_rate: float
    threshold: float
    n_good: int
    n_bad: int
    n_good_unhealthy: int
    n_bad_unhealthy: int
    by_defect: dict[str, DefectKind]
    skipped: list[str]
    image_auroc_interval: Interval
    false_reject_interval: Interval
    escape_interval: Interval
    promised_false_reject_rate: float
    promise_kept: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Judged:
    """A test picture with the graph's outputs for it, for whoever wants to look at more than the figures.

    `frame` and `expected` (H, W, 3) BGR uint8, `heatmap` (H, W); `mask` (H, W) of 0 and 1, empty for good parts, None
    where the defect has no mask or the set has none at all. `score` may be non-finite.
    """

    path: Path
    kind: str
    """`good`, or the defect."""
    score: float
    frame: NDArray[np.uint8]
    heatmap: NDArray[np.float32]
    expected: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None
    placement: Placement


@dataclass(frozen=True, slots=True)
class _Sample:
    path: Path
    kind: str
    mask: Path | None


def evaluate(
    bundle: Bundle | Path | str,
    dataset: Path | str,
    *,
    engine: EngineKind = "auto",
    precision: Precision = "fp32",
    threads: int = 0,
    state_dir: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_judged: Callable[[Judged], None] | None = None,
) -> Evaluation:
    """Score every test picture at the bundle's own threshold; `on_judged` gets each in turn.

    `state_dir` is where compiled plans lie, see `open_engine`.
    Unreadable pictures are skipped and named in `skipped`; those that cannot be judged are rejected, as on the
    line. Raises `InputError` when the layout is another, or when good or defective pictures are missing.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    dataset = Path(dataset)
    samples = _samples(dataset)
    has_masks = any(sample.mask is not None for sample in samples)
    spec, rule = bundle.frame, DecisionRule(bundle.threshold)
    scores: list[float] = []
    rejected: list[bool] = []
    unhealthy: list[str] = []
    kinds: list[str] = []
    heatmaps: list[NDArray[np.float32]] = []
    masks: list[NDArray[np.uint8]] = []
    skipped: list[str] = []
    with open_engine(bundle, engine, precision=precision, threads=threads, state_dir=state_dir) as runner:
        for done, sample in enumerate(samples, 1):
            try:
                frame, placement = bundle.fit(read_picture(sample.path))
                mask = _mask_in_frame(sample.mask, placement, (spec.height, spec.width)) if sample.mask else None
            except HealthError:
                # On the line it is NotDecidable, and not passed: rank it on top, like a score that is not finite.
                scores.append(float("nan"))
                rejected.append(True)
                kinds.append(sample.kind)
                unhealthy.append(sample.kind)
                continue
            except PictureError as exc:
                skipped.append(str(exc))
                continue
            finally:
                if on_progress is not None:
                    on_progress(done, len(samples))
            result = runner.infer(frame[None])
            decision = rule.decide(result.scores[0], result.heatmaps[0])
            scores.append(float(result.scores[0]))
            rejected.append(decision.result is not Result.OK)
            kinds.append(sample.kind)
            if has_masks and mask is None and sample.kind == GOOD:
                mask = np.zeros((spec.height, spec.width), np.uint8)
            if mask is not None:
                heatmaps.append(result.heatmaps[0])
                masks.append(mask)
            if on_judged is not None:
                found = (scores[-1], frame, result.heatmaps[0], result.expected[0])
                on_judged(Judged(sample.path, sample.kind, *found, mask, placement))

    labels = np.array([kind != GOOD for kind in kinds])
    if labels.all() or not labels.any():
        missing = "good" if labels.all() else "defective"
        raise InputError(f"{dataset}: no readable {missing} test pictures; both are needed to measure")
    values, not_ok = np.nan_to_num(np.array(scores), nan=np.inf), np.array(rejected)
    finite_top = values[np.isfinite(values)].max(initial=0.0) + 1
    values = np.where(np.isfinite(values), values, finite_top)  # what cannot be scored is rejected: rank it on top
    by_defect = {}
    for kind in sorted(set(kinds) - {GOOD}):
        chosen = np.array([k == kind for k in kinds])
        subset = chosen | ~labels
        by_defect[kind] = DefectKind(
            int(chosen.sum()),
            image_auroc(values[subset], labels[subset]),
            float((~not_ok[chosen]).mean()),
            interval(int((~not_ok[chosen]).sum()), int(chosen.sum())),
        )
    pixel_auroc, aupro = (
        _pixel_metrics(np.stack(heatmaps), np.stack(masks)) if any(m.any() for m in masks) else (None, None)
    )
    false_rejects = interval(int(not_ok[~labels].sum()), int((~labels).sum()))
    promised = bundle.manifest.calibration.promised_false_reject_rate
    return Evaluation(
        image_auroc=image_auroc(values, labels),
        average_precision=average_precision(values, labels),
        pixel_auroc=pixel_auroc,
        aupro=aupro,
        false_reject_rate=float(not_ok[~labels].mean()),
        escape_rate=float((~not_ok[labels]).mean()),
        threshold=bundle.threshold,
        n_good=int((~labels).sum()),
        n_bad=int(labels.sum()),
        n_good_unhealthy=unhealthy.count(GOOD),
        n_bad_unhealthy=len(unhealthy) - unhealthy.count(GOOD),
        by_defect=by_defect,
        skipped=skipped,
        image_auroc_interval=_auroc_interval(values, labels),
        false_reject_interval=false_rejects,
        escape_interval=interval(int((~not_ok[labels]).sum()), int(labels.sum())),
        promised_false_reject_rate=promised,
        promise_kept=false_rejects[0] <= promised,
    )


def _samples(dataset: Path) -> list[_Sample]:
    test = dataset / "test"
    if not dataset.is_dir():
        raise InputError(
            f"{dataset}: {'is a file' if dataset.exists() else 'does not exist'}; give a data set's folder"
        )
    if not test.is_dir():
        raise InputError(
            f"{dataset}: has no folder test/; expected test/good, test/<defect> and perhaps ground_truth/<defect>"
        )
    kinds = sorted(folder.name for folder in test.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if GOOD not in kinds or len(kinds) < 2:
        raise InputError(
            f"{test}: has the folders {', '.join(kinds) or 'none'}; expected good and at least one kind of defect"
        )
    return [
        _Sample(path, kind, None if kind == GOOD else _mask_of(dataset, kind, path))
        for kind in kinds
        for path in find_pictures(test / kind)
    ]


def _mask_of(dataset: Path, kind: str, picture: Path) -> Path | None:
    folder = dataset / "ground_truth" / kind
    for name in (f"{picture.stem}_mask.png", f"{picture.stem}.png", picture.name):
        if (folder / name).is_file():
            return folder / name
    return None


def _mask_in_frame(path: Path, placement: Placement, hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask file as (H, W) of 0 and 1. Raises `PictureError` naming it."""
    mask = read_picture(path)
    grey = np.asarray(mask if mask.ndim == 2 else mask.max(2), np.float32)
    # JPEG-like noise around 0 is no defect; masks are 0 and 255, or 0 and 1.
    binary = (grey > (127 if grey.max() > 1 else 0)).astype(np.uint8)
    try:
        return placement.mask_to_frame(binary, hw)
    except PictureError as exc:
        raise PictureError(f"{path}: {exc}") from exc


def image_auroc(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """Of n pictures' scores (n,), the defective ones labelled."""
    from torchmetrics.functional.classification import binary_auroc  # imports torchvision: seconds

    return float(binary_auroc(_ranks(scores), torch.from_numpy(labels).int()))


def average_precision(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """The area under precision over recall of n pictures' scores (n,), the defective ones labelled."""
    from torchmetrics.functional.classification import binary_average_precision

    return float(binary_average_precision(_ranks(scores), torch.from_numpy(labels).int()))


def _auroc_interval(scores: NDArray[np.floating], labels: NDArray[np.bool_], seed: int = 0) -> Interval:
    """The 95 % percentile interval of the AUROC over resamples of the good and of the defective parts, each by itself."""
    ranks = np.unique(scores, return_inverse=True)[1].reshape(-1)
    top = int(ranks.max()) + 1
    rng = np.random.default_rng(seed)
    # How often each rank occurs is all that the AUROC of a resample depends on.
    shares = [np.bincount(side, minlength=top) / len(side) for side in (ranks[~labels], ranks[labels])]
    sizes = [int((~labels).sum()), int(labels.sum())]
    aurocs = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, _RESAMPLES_AT_ONCE):
        good, bad = (
            rng.multinomial(size, share, size=_RESAMPLES_AT_ONCE) / size
            for size, share in zip(sizes, shares, strict=True)
        )  # (100, top) each
        below = np.cumsum(good, 1) - good / 2  # a tie counts half
        aurocs[start : start + _RESAMPLES_AT_ONCE] = (bad * below).sum(1)
    low, high = np.quantile(aurocs, [0.025, 0.975])
    return float(low), float(high)


def _ranks(scores: NDArray[np.floating]) -> Tensor:
    """The scores' ranks in 0-1, equal ones alike. torchmetrics takes a sigmoid of what is outside 0-1, which makes all
    scores from about 37 up equal; its metrics depend on the order only."""
    distinct, place = np.unique(scores, return_inverse=True)
    return torch.from_numpy(place.reshape(np.shape(scores)).astype(np.float64) / max(1, len(distinct) - 1))


def _pixel_metrics(heatmaps: NDArray[np.float32], masks: NDArray[np.uint8]) -> tuple[float, float]:
    """AUROC over all pixels, and the area under the per-region overlap up to a false-positive rate of 0.3."""
    from anomalib.metrics.aupro import _AUPRO  # heavy: imported where it is needed
    from torchmetrics.functional.classification import binary_auroc

    shown = np.where(np.isfinite(heatmaps), heatmaps, np.finfo(np.float32).max)  # what cannot be scored is rejected
    maps, truth = _ranks(shown).float(), torch.from_numpy(masks).int()
    metric = _AUPRO(fpr_limit=AUPRO_LIMIT)
    metric.update(maps, truth)
    return float(binary_auroc(maps.flatten(), truth.flatten())), float(metric.compute())
