"""From a training to its report's data: which pictures to look at, and what the network makes of them."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flawline_inspect.bundle import SCHEMA_VERSION, Manifest
from flawline_inspect.calibration import GoodSpread
from flawline_train.autoencoders import Autoencoder
from flawline_train.evaluate import Evaluation
from flawline_train.graph import InspectionGraph, run_graph
from flawline_train.pictures import GoodPictures
from flawline_train.report.data import (
    Map,
    ReportData,
    Role,
    ScoredPicture,
    Suspect,
    Triple,
    Unusual,
    report_of_manifest,
)
from flawline_train.report.judged import JudgedPictures
from flawline_train.report.pictures import map_picture, thumbnail, triple, webp
from flawline_train.screening import Screening

__all__ = ["collect_training", "embed_frames"]

_log = logging.getLogger(__name__)

MAX_PIXELS = 240 * 128 * 128
"""Of all frames that are run again for the report: larger frames, fewer pictures."""
MIN_PICTURES = 16
HELD_OUT_SHARE = 1 / 3
"""Of the pictures on the map of the latent space; the rest were trained on."""
WORST_SHOWN, BEST_SHOWN = 4, 2
MAX_SUSPECTS = 12
MOST_UNUSUAL_SHOWN = 12
MAX_LOSS_POINTS = 300
_BATCH = 16


def collect_training(
    manifest: Mapping[str, Any],
    model: bytes,
    graph: InspectionGraph,
    pictures: GoodPictures,
    held_out: NDArray[np.intp],
    held_out_scores: NDArray[np.floating],
    good: GoodSpread,
    *,
    loss: Sequence[tuple[int, float]] = (),
    suspects: Mapping[str, str] | None = None,
    screening: Screening | None = None,
    left_out: Collection[int] = (),
    notes: Sequence[str] = (),
    promises: Sequence[str] = (),
    reference: NDArray[np.uint8] | None = None,
    judged: tuple[JudgedPictures, Evaluation | None] | None = None,
) -> ReportData:
    """All that a training knows of its model. Bounded in time: at most `MAX_PIXELS` go through the network again.

    `manifest`: as `save_bundle` takes it. `held_out` (k,): indices of `pictures`, `held_out_scores` (k,) their leave-one-out scores.
    `suspects`: file → why it may not be good. `screening` of the pictures, of which those of the indices `left_out` were neither
    learnt from nor held out. `reference` (H, W, 3): what pictures were aligned to. `judged`: test
    pictures, good and defective, with their evaluation; or pictures of known defects and None, which are judged against the held-out ones.
    """
    facts = report_of_manifest(Manifest.model_validate({"schema_version": SCHEMA_VERSION, "members": {}, **manifest}))
    scores = dict(zip(map(int, held_out), map(float, held_out_scores), strict=True))
    train, shown_held_out = _sample(pictures, held_out, scores, left_out)
    unusual = [] if screening is None else screening.ranking[:MOST_UNUSUAL_SHOWN]
    by_score = sorted(scores, key=scores.__getitem__, reverse=True)
    best = by_score[WORST_SHOWN:][-BEST_SHOWN:]
    suspects = dict(suspects or {})
    index = {file.file: i for i, file in enumerate(pictures.files)}
    asked = [index[file] for file in suspects if file in index][:MAX_SUSPECTS]

    ran = sorted({*train, *by_score[:WORST_SHOWN], *best, *asked, *unusual, *left_out})
    found_scores, heatmaps, expected = run_graph(graph, pictures.frames[ran])
    at = {i: k for k, i in enumerate(ran)}
    for i in train:
        score = float(found_scores[at[i]])
        if score > facts.threshold and len(suspects) < MAX_SUSPECTS:
            suspects.setdefault(
                pictures.files[i].file,
                "It scores above the threshold although the network was trained on it; is it good?",
            )

    on_map = [*train, *shown_held_out]
    embeddings = embed_frames(graph.network, pictures.frames[on_map])
    others = judged[0].embeddings if judged is not None else []
    places, explained = _flattened(embeddings, others)

    def dot(i: int, role: Role, score: float) -> ScoredPicture:
        place = places[on_map.index(i)] if places and i in on_map else None
        return ScoredPicture(
            pictures.files[i].file,
            role,
            score,
            place=place,
            thumbnail=thumbnail(pictures.frames[i], pictures.placement),
        )

    def role_of(i: int) -> Role:
        return "held_out" if i in scores else "left_out" if i in left_out else "train"

    def look(i: int, score: float) -> Triple:
        return triple(
            pictures.files[i].file,
            role_of(i),
            "",
            score,
            frame=pictures.frames[i],
            expected=expected[at[i]],
            heatmap=heatmaps[at[i]],
            placement=pictures.placement,
            threshold=facts.threshold,
        )

    def suspect(file: str, reason: str) -> Suspect:
        i = index.get(file)
        if i is None or i not in at:
            return Suspect(file, reason)
        score = scores.get(i, float(found_scores[at[i]]))
        seen = look(i, score)
        return Suspect(file, reason, score, seen.seen, seen.heat)

    def ranked(i: int, screened: Screening) -> Unusual:
        seen = look(i, scores.get(i, float(found_scores[at[i]])))
        is_suspect = pictures.parts[i] in screened.suspects
        deviations = float(screened.scores[i])
        return Unusual(seen.name, seen.role, deviations, is_suspect, seen.score, seen.seen, seen.expected, seen.heat)

    data = dataclasses.replace(
        facts,
        model_sha256=hashlib.sha256(model).hexdigest(),
        n_weights=sum(parameter.numel() for parameter in graph.network.parameters()),
        scored=(
            *(dot(i, "train", float(found_scores[at[i]])) for i in train),
            *(dot(i, "held_out", score) for i, score in scores.items()),
            *(dot(i, "left_out", float(found_scores[at[i]])) for i in sorted(left_out)),
        ),
        triples=tuple(look(i, scores[i]) for i in (*by_score[:WORST_SHOWN], *best)),
        suspects=tuple(suspect(file, reason) for file, reason in suspects.items()),
        unusual=() if screening is None else tuple(ranked(i, screening) for i in unusual),
        maps=_maps(pictures, good, reference),
        loss=_thinned(loss),
        explained=explained,
        promises=tuple(promises),
        notes=tuple(notes),
    )
    if judged is None:
        return data
    shown, evaluation = judged
    held_out_values = np.array(list(scores.values()))
    data = shown.known(data, held_out_values, facts.threshold) if evaluation is None else shown.into(data, evaluation)
    if places and others:
        placed = iter(places[len(on_map) :])
        scored = [
            dataclasses.replace(one, place=next(placed)) if one.role in ("test_good", "defect") else one
            for one in data.scored
        ]
        data = dataclasses.replace(data, scored=tuple(scored))
    return data


@torch.inference_mode()
def embed_frames(network: nn.Module, frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n, H, W, 3) → the network's bottleneck (n, D); (n, 0) for a network that has none to look at."""
    if not isinstance(network, Autoencoder):
        return np.empty((len(frames), 0))
    device = next(network.parameters()).device
    rows = []
    for start in range(0, len(frames), _BATCH):
        x = torch.from_numpy(frames[start : start + _BATCH]).to(device).float().permute(0, 3, 1, 2) / 255
        try:
            rows.append(network.embed(x).flatten(1).double().cpu().numpy())
        except NotImplementedError:
            return np.empty((len(frames), 0))
    return np.concatenate(rows)


def _sample(
    pictures: GoodPictures,
    held_out: NDArray[np.intp],
    scores: Mapping[int, float],
    left_out: Collection[int] = (),
) -> tuple[list[int], list[int]]:
    """Indices to show: evenly spaced ones that were trained on, and held-out ones, the highest scores among them."""
    _, height, width, _ = pictures.frames.shape
    budget = max(MIN_PICTURES, MAX_PIXELS // (height * width))
    ordered = sorted(scores, key=scores.__getitem__, reverse=True)
    kept = _evenly(ordered, max(round(HELD_OUT_SHARE * budget), budget - (len(pictures.files) - len(held_out))))
    train = [i for i in range(len(pictures.files)) if i not in scores and i not in left_out]
    return _evenly(train, budget - len(kept)), kept


def _evenly(items: list[int], n: int) -> list[int]:
    if len(items) <= n:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, n).round().astype(int)]


def _flattened(
    embeddings: NDArray[np.float64], others: Sequence[NDArray[np.floating]]
) -> tuple[list[tuple[float, float]], float | None]:
    """The two principal components of good `embeddings` (n, D), in which `others` (D,) are shown too; empty without."""
    rows = np.vstack([embeddings, *others]) if others else embeddings
    if embeddings.shape[1] < 2 or len(embeddings) < 3 or not np.isfinite(rows).all():
        return [], None
    mean = embeddings.mean(0)
    _, singular, axes = np.linalg.svd(embeddings - mean, full_matrices=False)
    if singular[0] <= 1e-9 * max(1.0, float(np.abs(mean).max())):
        return [], None  # all alike
    axes = axes[:2] * np.sign(axes[:2][[0, 1], np.abs(axes[:2]).argmax(1)])[:, None]  # else the sign is left to chance
    flat = (rows - mean) @ axes.T
    explained = float((singular[:2] ** 2).sum() / (singular**2).sum())
    return [(float(f"{x:.5g}"), float(f"{y:.5g}")) for x, y in flat], explained


def _maps(pictures: GoodPictures, good: GoodSpread, reference: NDArray[np.uint8] | None) -> tuple[Map, ...]:
    mean, spread = _mean_and_spread(pictures.frames)
    x, y, w, h = pictures.placement.content
    out = [
        Map(
            "Mean good part",
            "All pictures averaged; blurred where parts or poses differ.",
            webp(mean[y : y + h, x : x + w]),
        ),
        Map("Spread of the pictures", "Standard deviation of the grey level.", map_picture(spread, pictures.placement)),
        Map(
            "Mean error",
            "What the network usually fails to rebuild; subtracted before scoring.",
            map_picture(_to_frame(good.mean, spread), pictures.placement),
        ),
        Map(
            "Spread of the error",
            "The unit of the heatmap: errors count less where it is large.",
            map_picture(_to_frame(good.spread, spread), pictures.placement),
        ),
    ]
    if reference is not None:
        out.append(
            Map("Alignment reference", "Every picture is turned and shifted to match this one.", webp(reference))
        )
    return tuple(out)


def _to_frame(values: NDArray[np.float32], frame: NDArray[np.float64]) -> NDArray[np.float32]:
    """A map of cells at the frame's size, that of `frame` (H, W)."""
    return np.asarray(cv2.resize(values, frame.shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def _mean_and_spread(frames: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Mean (H, W, 3) and standard deviation (H, W) over n frames, one at a time: all as floats would not fit."""
    total = np.zeros(frames.shape[1:], np.float64)
    squares = np.zeros(frames.shape[1:], np.float64)
    for frame in frames:
        values = frame.astype(np.float64)
        total += values
        squares += values * values
    mean = total / len(frames)
    variance = np.maximum(squares / len(frames) - mean * mean, 0)
    return np.rint(mean).astype(np.uint8), np.sqrt(variance.mean(2))


def _thinned(loss: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    if len(loss) <= MAX_LOSS_POINTS:
        return tuple(loss)
    return tuple(loss[i] for i in np.linspace(0, len(loss) - 1, MAX_LOSS_POINTS).round().astype(int))
