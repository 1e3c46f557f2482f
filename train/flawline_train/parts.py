"""Which pictures show the same part: a promise counts parts, and ten frames of one part are one.

Either a pattern on the file name says so, or near-duplicates are found: frames of a burst, a part under two exposures, a
copy. "Near" is not absolute: good parts are meant to look alike, and where they all do (up to the sensor's noise, which
bounds every distance from below) nothing tells two frames of a part from two parts. So a group is a cluster of pictures
that are much closer to each other than to any other, a gap in the single-linkage tree, and close against what is usual between
pictures of the set. Only a shift is made good, no rotation: that a part lies at the same angle twice is evidence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.errors import InputError

__all__ = ["MIN_PARTS", "PartGroups", "group_by_name", "group_near_duplicates"]

MIN_PARTS = 4
"""Three to hold out and one to learn from."""

MAX_GAP = 0.5
"""Within a group no link is longer than this share of the one that leaves it (a ratio test, as Lowe's for key points)."""
MAX_SHARE_OF_USUAL = 0.2
"""... nor than this share of the median distance of two pictures of the set."""
MAX_GAP_IN_SEQUENCE, MAX_SHARE_IN_SEQUENCE = 2 / 3, 0.25
"""The same where the pictures follow each other in the order of their names, as frames of a burst do."""
MAX_GROUP = 24
"""A larger cluster is rather a kind of part than one part, and is named instead of grouped."""

MIN_USUAL = 0.01
"""Pictures whose median distance is below this share of their own detail differ by rounding: nothing can be told."""

_SIDE = 128
_LEAST_DETAIL = 0.5
"""Grey levels: less contrast than this is not spread to 1, so that a blank picture's rounding is no detail."""
_SHIFT_SHARE = 0.08
"""How far, as a share of the side, a part may have moved between two frames."""
_CANDIDATES = 6
"""Closest pictures, by thumbnail, that each picture is compared with."""
_USUAL_PAIRS = 200

_GREY = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PartGroups:
    """`parts`: the part's name for each of n pictures, in their order; `notes`: a sentence for what was assumed."""

    parts: tuple[str, ...]
    notes: tuple[str, ...] = ()


def group_by_name(files: Sequence[str], pattern: str) -> PartGroups:
    """Name the part of each file by `pattern`, a regular expression searched in its relative path.

    The first group names the part, or the whole match where there is none. Raises `InputError` when the pattern is no
    regular expression, a file does not match, or fewer than 4 parts remain.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as exc:
        raise InputError(f"--group {pattern!r} is no regular expression ({exc})") from exc
    parts: list[str] = []
    for file in files:
        found = compiled.search(file)
        name = None if found is None else found.group(1 if compiled.groups else 0)
        if not name:
            raise InputError(
                f"--group {pattern!r} does not name the part of {file}; it has to match every picture's path"
            )
        parts.append(name)
    _check_number(parts, f"--group {pattern!r} finds")
    note = f"{len(parts)} pictures of {len(set(parts))} parts by --group: pictures of a part are held out together"
    return PartGroups(tuple(parts), (note,) if len(set(parts)) < len(parts) else ())


def group_near_duplicates(
    files: Sequence[str], hashes: Sequence[str], frames: NDArray[np.uint8], content: tuple[int, int, int, int]
) -> PartGroups:
    """Group `frames` (n, H, W, 3) that look like the same part; copies by their files' `hashes` as well.

    `content` is x, y, width, height of what the camera saw. A group has the name of its first file. Raises
    `InputError` when fewer than 4 parts remain.
    """
    n = len(files)
    parent = list(range(n))
    first: dict[str, int] = {}
    for i, digest in enumerate(hashes):
        parent[i] = first.setdefault(digest, i)
    distinct = sorted(first.values())
    left, top, width, height = content
    small = [_detail(frames[i, top : top + height, left : left + width]) for i in distinct]
    groups, too_large = _clusters(small) if len(small) > MIN_PARTS else ([], [])
    for members in groups:
        for j in members[1:]:
            parent[distinct[j]] = distinct[members[0]]
    parts = tuple(files[parent[parent[i]]] for i in range(n))
    n_parts = len(set(parts))
    notes = []
    if n_parts < n:
        largest = max(set(parts), key=parts.count)
        alike = [file for file, part in zip(files, parts, strict=True) if part == largest]
        shown = ", ".join(alike[:3]) + (", ..." if len(alike) > 3 else "")
        notes.append(
            f"{n} pictures look like {n_parts} parts: near-duplicates count once and are held out together, such as {shown}; "
            "--group says which pictures show one part"
        )
    for members in too_large:
        notes.append(
            f"{len(members)} pictures look alike, {files[distinct[members[0]]]} and {files[distinct[members[1]]]} among them; they "
            "were taken for different parts: if they show one, the promise does not hold until --group says so"
        )
    _check_number(parts, "near-duplicates counted once, the pictures show")
    return PartGroups(parts, tuple(notes))


def _check_number(parts: Sequence[str], found: str) -> None:
    distinct = len(set(parts))
    if distinct < MIN_PARTS:
        raise InputError(
            f"{found} {distinct} part{'s' * (distinct != 1)} in {len(parts)} pictures; at least {MIN_PARTS} are needed, 20 to 100 are "
            "better; --group REGEX says which pictures show one part"
        )


def _detail(picture: NDArray[np.uint8]) -> _GREY:
    """Grey, at most 128 pixels long, without its shading and its contrast: mean 0 and, where it has any detail, spread 1."""
    grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_BGR2GRAY)
    scale = min(1.0, _SIDE / max(grey.shape))
    wh = (max(16, round(grey.shape[1] * scale)), max(16, round(grey.shape[0] * scale)))
    small = cv2.resize(grey, wh, interpolation=cv2.INTER_AREA).astype(np.float32)
    detail = cv2.GaussianBlur(small, (0, 0), 1.0) - cv2.GaussianBlur(small, (0, 0), 8.0)
    return np.asarray(detail / max(float(detail.std()), _LEAST_DETAIL), np.float32)


def _distance(a: _GREY, b: _GREY) -> float:
    """Root mean square of what is left of `a` when `b` is shifted and scaled onto it, borders left out; symmetric."""
    height, width = a.shape
    limit = _SHIFT_SHARE * max(height, width)
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    # Windowed here: given the window, OpenCV multiplies the pictures themselves in place.
    (dx, dy), _ = cv2.phaseCorrelate(a * window, b * window)
    shifts = [(0.0, 0.0)]
    if abs(dx) <= limit and abs(dy) <= limit:
        shifts.append((dx, dy))
    edge = int(np.ceil(limit))
    inner = (slice(edge, height - edge), slice(edge, width - edge))

    def left_over(fixed: _GREY, moved: _GREY, x: float, y: float) -> float:
        back = cv2.warpAffine(
            moved,
            np.array([[1, 0, x], [0, 1, y]], np.float32),
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )
        p, q = fixed[inner], back[inner]
        gain = float(np.clip((p * q).sum() / max(float((q * q).sum()), 1e-9), 0.5, 2.0))
        return float(np.sqrt(((p - gain * q) ** 2).mean()))

    return min(min(left_over(a, b, x, y), left_over(b, a, -x, -y)) for x, y in shifts)


def _clusters(small: list[_GREY]) -> tuple[list[list[int]], list[list[int]]]:
    """Clusters of pictures (by index, ascending) that stand apart: those small enough for one part, and larger ones."""
    n = len(small)
    rng = np.random.default_rng(0)
    pairs = [rng.choice(n, 2, replace=False) for _ in range(_USUAL_PAIRS)]
    usual = float(np.median([_distance(small[i], small[j]) for i, j in pairs]))
    if usual < MIN_USUAL:
        return [], []
    edges = sorted((_distance(small[i], small[j]), i, j) for i, j in _candidate_pairs(small))
    root = list(range(n))
    members: dict[int, list[int]] = {i: [i] for i in range(n)}
    longest = [0.0] * n
    apart: list[list[int]] = []

    def close_cluster(cluster: int, leaving: float) -> None:
        inner, found = longest[cluster], sorted(members[cluster])
        in_sequence = found[-1] - found[0] <= len(found)  # one may be missing
        gap = MAX_GAP_IN_SEQUENCE if in_sequence else MAX_GAP
        share = MAX_SHARE_IN_SEQUENCE if in_sequence else MAX_SHARE_OF_USUAL
        if len(found) > 1 and inner <= min(gap * leaving, share * usual):
            apart.append(found)

    for distance, i, j in edges:
        a, b = root[i], root[j]
        if a == b:
            continue
        close_cluster(a, distance)
        close_cluster(b, distance)
        for k in members[b]:
            root[k] = a
        members[a] += members.pop(b)
        longest[a] = distance
    for cluster in members:
        close_cluster(cluster, usual)
    return _largest_disjoint([c for c in apart if len(c) <= MAX_GROUP]), _largest_disjoint(
        [c for c in apart if len(c) > MAX_GROUP]
    )


def _largest_disjoint(clusters: list[list[int]]) -> list[list[int]]:
    """Clusters nest: the largest of each nest."""
    chosen: list[list[int]] = []
    taken: set[int] = set()
    for cluster in sorted(clusters, key=len, reverse=True):
        if not taken & set(cluster):
            chosen.append(cluster)
            taken |= set(cluster)
    return sorted(chosen)


def _candidate_pairs(small: list[_GREY]) -> set[tuple[int, int]]:
    """Pairs worth a closer look: neighbours in the order of names, and each picture's closest thumbnails."""
    flat = np.stack([_thumbnail(each) for each in small])
    pairs = {(i, i + 1) for i in range(len(small) - 1)}
    for start in range(0, len(small), 1024):  # not all correlations at once: that is n x n
        likeness = flat[start : start + 1024] @ flat.T
        for row, values in enumerate(likeness):
            i = start + row
            values[i] = -np.inf
            for j in np.argsort(-values, kind="stable")[:_CANDIDATES]:
                pairs.add((min(i, int(j)), max(i, int(j))))
    return pairs


def _thumbnail(detail: _GREY) -> _GREY:
    blurred = cv2.GaussianBlur(detail, (0, 0), 2.0)
    wh = (min(32, detail.shape[1]), min(32, detail.shape[0]))
    flat = cv2.resize(blurred, wh, interpolation=cv2.INTER_AREA).reshape(-1)
    return np.asarray(flat / (np.linalg.norm(flat) + 1e-9), np.float32)
