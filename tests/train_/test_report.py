"""The report: what it says, that it loads nothing, that no name gets out of its place, and how it is made again."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from tests.inspect_.bundles import small_bundle, small_manifest
from tests.train_.parts import level_onnx, part, write, write_parts

from flawline_inspect import cli
from flawline_inspect.bundle import MODEL, REPORT, Bundle, bundle_bytes
from flawline_inspect.errors import BundleError
from flawline_inspect.frame import Placement
from flawline_train import learning, train, training_report
from flawline_train.evaluate import evaluate
from flawline_train.known_defects import find_defects, score_defects
from flawline_train.report import ReportData, interactive_html, report_of_manifest, report_path, static_html
from flawline_train.report.collect import MIN_PICTURES, _flattened, _sample, collect_training, embed_frames
from flawline_train.report.curves import pro_curve, roc_curve
from flawline_train.report.data import Curves, DefectRow, Map, ScoredPicture, Suspect, Unusual
from flawline_train.report.facts import FACTS_ID, report_from_html
from flawline_train.report.judged import JudgedPictures
from flawline_train.report.page import _percent
from flawline_train.report.pictures import thumbnail, triple, webp
from flawline_train.report.plots import rows_of
from flawline_train.training import Training

EVIL = ("<script>alert(1)<script>.png", "</script></template><img src=x onerror=alert(2)>.png", "a&\"b'{{7*7}}.png")
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
SMALL: dict[str, Any] = {"steps": 3, "width": 4, "size": 32, "device": "cpu"}
MAX_STATIC_BYTES = 1_500_000


class Page(HTMLParser):
    """A page taken apart: text by section, every attribute, every element, and what was never closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.sections: dict[str, list[str]] = {}
        self.open: list[str] = []
        self._section = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "section":
            self._section = self.elements[-1][1]["id"]
            self.sections[self._section] = []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._section:
            self.sections[self._section].append(data)

    def text(self, section: str) -> str:
        return " ".join(" ".join(self.sections[section]).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def picture(seed: int = 0, wh: tuple[int, int] = (64, 48)) -> str:
    return webp(part(seed, wh))


def example(**changes: Any) -> ReportData:
    """A report with something in every section."""
    rng = np.random.default_rng(0)
    placement = Placement((64, 48), (0, 0, 64, 48), (0, 0, 64, 48))

    def shown(name: str, role: Any, kind: str, score: float) -> Any:
        outputs = {"frame": part(1, (64, 48)), "expected": part(2, (64, 48))}
        heatmap = rng.uniform(0, 8, (48, 64)).astype(np.float32)
        return triple(name, role, kind, score, **outputs, heatmap=heatmap, placement=placement, threshold=4.0)

    base = report_of_manifest(Bundle(small_bundle(), "x").manifest)
    scored = [ScoredPicture(f"t{i}.png", "train", 1 + i / 9, "", (i / 3, -i / 5), picture(i)) for i in range(9)]
    scored += [ScoredPicture(name, "held_out", 2.0, "", (1.0, 0.5), picture(3)) for name in EVIL]
    scored += [ScoredPicture(f"dent/{i}.png", "defect", 3 + 2 * i, "dent", (3.0, 1.0 * i)) for i in range(4)]
    roc, levels = roc_curve(np.array([1.0, 2, 3, 5]), np.array([False, False, True, True]))
    values: dict[str, Any] = {
        "model_sha256": "ab" * 32,
        "model_id": "bottle-12345678",
        "created": "2026-11-20T10:07:33Z",
        "scored": tuple(scored),
        "curves": Curves(
            2, 2, 0.25, 0.5, 0.987, 0.976, (DefectRow("dent", 2, 0.987, 0.5),), roc, levels, roc, 0.9, 0.8
        ),
        "triples": (
            shown(EVIL[0], "held_out", "", 2.0),
            shown("good/1.png", "test_good", "", 4.5),
            shown("dent/1.png", "defect", "dent", 3.0),
            shown("dent/2.png", "defect", "dent", 9.0),
        ),
        "suspects": (Suspect(EVIL[1], "it stands far above the others", 3.9, picture(1), picture(2)),),
        "unusual": (
            Unusual(EVIL[2], "left_out", 7.25, True, 9.5, picture(4), picture(5), picture(6)),
            Unusual("t1.png", "train", 2.5, False, 1.5, picture(1), picture(5), picture(7)),
        ),
        "n_left_out": 1,
        "maps": (Map("Mean good part", "all averaged", picture(99)),),
        "loss": ((1, 0.5), (2, 0.25), (3, 0.125)),
        "skipped": ((EVIL[2], "not a picture"),),
        "notes": (f"note on {EVIL[0]}",),
        "promises": ("At most 30 % of defects escape.",),
        "explained": 0.625,
        "health": (("brightness", "81 to 130", "at least 51"),),
        "n_weights": 328_212,
    }
    return dataclasses.replace(base, **{**values, **changes})


@pytest.fixture(scope="module")
def pages() -> dict[str, Page]:
    data = example()
    return {"static": Page(static_html(data)), "interactive": Page(interactive_html(data))}


# What a page says


@pytest.mark.parametrize("kind", ["static", "interactive"])
@pytest.mark.parametrize(
    ("section", "sentences"),
    [
        ("headline", ["4", "≤ 25 %", "only estimated", "1.0 %", "3 held-out", "plain", "32 × 32", "ab" * 32, "At most 30 %"]),
        ("detection", ["0.9870", "0.9760", "AUPRO 0.8000", "pixel AUROC 0.9000", "dent", "50 % escape", "25 % falsely"]),
        ("pictures", [EVIL[0], "good/1.png", "dent/2.png", "score 9", "2.25 × threshold", "not OK", "expected"]),
        ("suspects", [EVIL[1], "it stands far above the others", "3.9"]),
        ("unusual", [EVIL[2], "7.2 deviations · suspect, left out · score 9.5", "2.5 deviations · learnt from · score 1.5"]),
        ("latent", ["62 % of it"]),
        ("variation", ["Mean good part", "all averaged"]),
        ("training", ["plain", "depth", "328,212"]),
        ("card", ["intended use", "tests", "knows no real part", "who may be wronged", "nobody"]),
        ("data", ["1 pictures", "3 pictures", "left out as suspects", EVIL[2], "not a picture", f"note on {EVIL[0]}", "flawline 0.1.0"]),
        ("data", ["brightness 81 to 130 at least 51"]),
    ],
)  # fmt: skip
def test_each_section_says_what_is_known(
    pages: dict[str, Page], kind: str, section: str, sentences: Sequence[str]
) -> None:
    """Figures, names and sentences stand in the section where one looks for them, in both pages."""
    text = pages[kind].text(section)
    assert [sentence for sentence in sentences if sentence not in text] == []


@pytest.mark.parametrize("kind", ["static", "interactive"])
def test_the_page_is_whole(pages: dict[str, Page], kind: str) -> None:
    """Every element is closed by its own tag, every id is there once, every link of the page leads somewhere."""
    page = pages[kind]
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert sorted(ids) == sorted(set(ids))
    targets = {attributes["href"][1:] for attributes in page.all("a")}
    assert targets <= set(ids) and "scores" in targets


def test_the_identity_is_told_only_where_it_is_known(pages: dict[str, Page]) -> None:
    """The page inside a bundle cannot name the bundle's own hash or the moment of its making."""
    html = static_html(example(model_id=None, created=None))
    assert "<h1>bottle</h1>" in html and "<h1>bottle-12345678</h1>" in pages["interactive"].html
    assert "2026-11-20T10:07:33Z" in pages["interactive"].text("headline")
    assert "2026-11-20T10:07:33Z" not in pages["static"].text("headline")


@pytest.mark.parametrize(
    ("basis", "estimated", "said"),
    [
        ("order_statistic", None, "within the promise"),
        ("exponential_tail", 0.004, "0.40 % false rejects, extrapolated from the same 3 scores by an exponential tail"),
        ("log_normal", None, "1.0 % false rejects, extrapolated from the same 3 scores by a log-normal"),
        ("cheapest", 0.03, "3.0 % false rejects at the cheapest threshold"),
    ],
)
def test_promised_and_estimated_are_not_mixed(basis: str, estimated: float | None, said: str) -> None:
    """The words follow the basis of the threshold: only the order statistic needs no estimate."""
    text = Page(static_html(example(basis=basis, estimated_false_reject_rate=estimated))).text("headline")
    assert said in text and ("only estimated" in text) is (basis != "order_statistic")


def test_the_promise_is_told_with_its_confidence() -> None:
    """Where the bundle knows one; older ones promised an average."""
    text = Page(static_html(example(confidence=0.95, exceedances=1))).text("headline")
    assert "with 95 % confidence, by 3 held-out good parts of which 1 lie above the threshold" in text
    assert "on average" in Page(static_html(example())).text("headline")


# Safety


def assert_loads_nothing(page: Page) -> None:
    """No address but data: and the page's own fragments, in any attribute, style or SVG."""
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset", "formaction"):
            if name in attributes:
                assert attributes[name].startswith(("data:image/", "#")), (tag, name, attributes[name][:80])
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert "http" not in attributes.get("style", "")
    styles = "".join(re.findall(r"<style.*?</style>", page.html, re.DOTALL))
    assert "@import" not in styles and "url(" not in styles
    assert page.all("link") == page.all("iframe") == page.all("base") == page.all("object") == []


@pytest.mark.parametrize("kind", ["static", "interactive"])
def test_nothing_is_loaded_from_anywhere(pages: dict[str, Page], kind: str) -> None:
    """No external address, and a policy that would stop one; only the interactive page may run scripts, its own."""
    page = pages[kind]
    assert_loads_nothing(page)
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "http" not in policy
    assert ("script-src" in policy) is (kind == "interactive")
    assert all("src" not in attributes for attributes in page.all("script"))


def test_the_static_page_has_no_scripts(pages: dict[str, Page]) -> None:
    """Pictures, SVG and text; the data that it carries lie in a template, which browsers do not run."""
    page = pages["static"]
    assert page.all("script") == [] and "javascript:" not in page.html
    assert [attributes.get("id") for attributes in page.all("template")] == [FACTS_ID]
    assert len(page.all("svg")) == 5  # scores, ROC, PRO, latent space, loss


@pytest.mark.parametrize("kind", ["static", "interactive"])
@pytest.mark.parametrize("name", EVIL)
def test_file_names_stay_text(pages: dict[str, Page], kind: str, name: str) -> None:
    """Whatever a file is called: it is nowhere in the page as it stands, and no element comes of it."""
    page = pages[kind]
    if "<" in name:
        assert name not in page.html
    assert not [a for a in page.all("img") if "onerror" in a or a["src"] == "x"]
    assert "{{7*7}}" in page.html and "a&\"b'49" not in page.text("data")


def test_a_kind_of_defect_may_have_any_name() -> None:
    """Folder names reach plots as labels: markup, mathematics and quotes stay what they are."""
    kinds = ("<b>&\"'", "$x^2$", "$\\frac{", "</svg><script>alert(1)</script>")
    scored = tuple(ScoredPicture(f"{i}.png", "defect", 2.0 + i, kind, (i, i * i)) for i, kind in enumerate(kinds))
    page = Page(static_html(example(scored=scored, triples=())))
    text = page.text("scores")
    assert page.all("script") == [] and all(f"{kind} (1)" in text for kind in kinds)
    assert Page(interactive_html(example(scored=scored, triples=()))).open == []


# The data inside the page


def test_a_static_page_gives_back_its_data() -> None:
    """Names, numbers and pictures return as they were, also those that the page itself shows."""
    data = example(model_id=None, created=None)
    html = static_html(data)
    assert report_from_html(html, "x") == data
    assert html.count(data.maps[0].picture) == 1  # shown, and not a second time in the data


@pytest.mark.parametrize("name", ["#picture-0", "\\u0000picture-0", "data:image/webp;base64,AAAA"])
def test_names_that_look_like_references_return(name: str) -> None:
    """A file cannot be called so that it turns into a picture."""
    data = example(notes=(name,), suspects=(Suspect(name, "why"),))
    assert report_from_html(static_html(data), "x") == data


@pytest.mark.parametrize(
    "html",
    [
        pytest.param("", id="empty"),
        pytest.param("<html><body>an older report</body></html>", id="no data"),
        pytest.param(f'<template id="{FACTS_ID}">{{"name": 3}}</template>', id="other data"),
        pytest.param(f'<template id="{FACTS_ID}">' + "[" * 100_000, id="nested"),
    ],
)
def test_a_page_without_data_is_refused(html: str) -> None:
    """One sentence that names the bundle."""
    with pytest.raises(BundleError, match=r"part\.flawline: its report\.html has no data"):
        report_from_html(html, "part.flawline")


def test_data_cannot_bring_scripts_into_a_page() -> None:
    """A picture's address is a WebP or nothing: whoever alters a bundle's page gets no further than text."""
    html = static_html(example()).replace(picture(99), "javascript:alert(1)")
    with pytest.raises(BundleError, match="no data"):
        report_from_html(html, "x")


def test_the_same_data_give_the_same_page() -> None:
    """Byte by byte: the page lies in the bundle, whose hash is the model's identity."""
    assert static_html(example()) == static_html(example())


# Few and many pictures


def test_without_defects_there_is_no_detection() -> None:
    """No curve, and the headline says that the escape rate is unknown."""
    data = example(curves=None, triples=example().triples[:2], scored=example().scored[:12])
    for html in (static_html(data), interactive_html(data)):
        page = Page(html)
        assert "detection" not in page.sections and "unknown" in page.text("headline")
        assert "Defects" not in page.text("pictures")


def test_a_manifest_alone_makes_a_report() -> None:
    """Three scores, no picture, no loss: both pages are made, and say what there is."""
    data = report_of_manifest(Bundle(small_bundle(), "x").manifest)
    for html in (static_html(data), interactive_html(data)):
        page = Page(html)
        assert page.sections.keys() == {"headline", "scores", "suspects", "training", "card", "data"}
        assert "None: no picture" in page.text("suspects")


@pytest.mark.parametrize(
    "scores",
    [
        pytest.param([2.0], id="one"),
        pytest.param([0.0, 0.0], id="zeros"),
        pytest.param([-1.0, 5e6], id="negative and huge"),
    ],
)
def test_odd_scores_are_drawn(scores: list[float]) -> None:
    """One dot, no score above zero, a logarithmic axis with a score below zero."""
    data = example(scored=tuple(ScoredPicture("a.png", "held_out", score) for score in scores))
    assert Page(static_html(data)).open == [] and Page(interactive_html(data)).open == []


def test_three_hundred_pictures_stay_small() -> None:
    """The static page of a large training, with a thumbnail a dot and 30 pictures in triples, is below 1.5 MB."""
    rng = np.random.default_rng(0)
    texture = [rng.integers(0, 255, (12, 16, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(30)]
    whole = Placement((128, 96), (0, 0, 128, 96), (0, 0, 128, 96))
    dots = [
        ScoredPicture(f"{i:03d}.png", "train", 1 + i / 99, "", (i / 7, i / 9), thumbnail(texture[i % 30], whole))
        for i in range(300)
    ]
    heat = rng.uniform(0, 9, (96, 128)).astype(np.float32)
    outputs = {"heatmap": heat, "placement": whole, "threshold": 4.0}
    shown = [
        triple(f"{i}.png", "held_out", "", 1.0, frame=frame, expected=frame, **outputs)
        for i, frame in enumerate(texture)
    ]
    html = static_html(example(scored=tuple(dots), triples=tuple(shown)))
    assert len(html.encode()) < MAX_STATIC_BYTES


def test_rows_keep_roles_and_kinds_apart() -> None:
    """Good parts on top, one row a kind of defect, dots within their row and all at different heights."""
    scored = [ScoredPicture("a", "held_out", 1.0)] * 40
    scored += [ScoredPicture("b", "defect", 9.0, kind) for kind in ("dent", "scratch")]
    rows = rows_of(example(scored=tuple(scored)))
    assert [row.label for row in rows] == ["good, held out (40)", "dent (1)", "scratch (1)"]
    assert [row.y for row in rows] == [2.0, 1.0, 0.0]
    assert len(set(rows[0].heights)) == 40 and all(abs(y - rows[0].y) < 0.5 for y in rows[0].heights)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.0033, "0.33 %"), (0.025, "2.5 %"), (0.1, "10 %"), (0.9, "90 %"), (0.9995, "99.95 %")],
)  # fmt: skip
def test_shares_are_rounded_to_what_matters(share: float, text: str) -> None:
    """Two digits, also close to 100 %, where 99.95 % and 100 % are not the same."""
    assert _percent(share) == text


# Curves


def test_roc_has_the_area_of_scikit_learn() -> None:
    """With ties between good and bad; from (0, 0) to (1, 1), never falling, a level for each point."""
    rng = np.random.default_rng(0)
    scores = np.rint(rng.normal(0, 3, 80))
    labels = rng.random(80) < 0.4
    scores[labels] += 2
    points, levels = roc_curve(scores, labels)
    x, y = np.array(points).T
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert points[0] == (0, 0) and points[-1] == (1, 1) and (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()
    assert len(levels) == len(points) and list(levels) == sorted(levels, reverse=True)


def test_roc_of_many_scores_is_thinned() -> None:
    """Ten thousand pictures give 200 points and still the same area."""
    rng = np.random.default_rng(1)
    labels = rng.random(10_000) < 0.5
    scores = rng.normal(0, 1, 10_000) + labels
    points, _ = roc_curve(scores, labels)
    x, y = np.array(points).T
    assert len(points) <= 201
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)


def plain_overlaps(maps: NDArray[np.float32], masks: NDArray[np.uint8], rates: NDArray[np.floating]) -> list[float]:
    """The mean overlap of all 8-connected regions where a share `rate` of the good pixels lies at or above the level."""
    background = np.sort(maps[masks == 0])[::-1]
    found = []
    for rate in rates:
        level = background[max(0, round(rate * len(background)) - 1)]
        overlaps = []
        for heatmap, mask in zip(maps, masks, strict=True):
            labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
            overlaps += [(heatmap[labels == k] >= level).mean() for k in range(1, count + 1)]
        found.append(float(np.mean(overlaps)))
    return found


def test_pro_agrees_with_a_plain_implementation() -> None:
    """Ragged regions labelled by SciPy, every point of the curve; up to a rate of 0.3, never falling."""
    rng = np.random.default_rng(0)
    masks = (ndimage.gaussian_filter(rng.standard_normal((4, 40, 48)), (0, 1.5, 1.5)) > 0.3).astype(np.uint8)
    masks[0] = 0
    maps = (rng.normal(0, 1, masks.shape) + masks).astype(np.float32)
    points = pro_curve(list(maps), list(masks))
    x, y = np.array(points[1:]).T
    assert 0 < x[0] < 0.01 and 0.29 < x[-1] <= 0.3 and (np.diff(y) >= 0).all()
    assert y == pytest.approx(plain_overlaps(maps, masks, x), abs=1e-9)


def test_pro_without_regions_is_empty() -> None:
    """Nothing marked, nothing to cover."""
    assert pro_curve([np.zeros((4, 4), np.float32)], [np.zeros((4, 4), np.uint8)]) == ()


# Places and samples


def test_the_map_shows_the_directions_of_largest_variance() -> None:
    """Two planted directions are found in order, others are projected on the same axes, and signs are fixed."""
    rng = np.random.default_rng(0)
    flat = rng.normal(0, (5, 2), (200, 2))
    embeddings = np.concatenate([flat[:, ::-1], 0.01 * rng.normal(size=(200, 3))], 1) + 7
    places, explained = _flattened(embeddings, [embeddings.mean(0)])
    assert len(places) == 201 and explained == pytest.approx(1, abs=1e-3)
    assert np.abs(np.corrcoef(np.array(places)[:200, 0], flat[:, 0])[0, 1]) > 0.999
    assert places[-1] == pytest.approx((0, 0), abs=1e-6)
    assert _flattened(embeddings, [])[0] == places[:200]


@pytest.mark.parametrize(
    "embeddings",
    [np.empty((9, 0)), np.ones((9, 4)), np.full((9, 4), np.nan), np.eye(2)],
    ids=["no bottleneck", "all alike", "not finite", "two pictures"],
)
def test_without_directions_there_is_no_map(embeddings: NDArray[np.float64]) -> None:
    """Nothing to show is no error."""
    assert _flattened(embeddings, []) == ([], None)


@pytest.mark.parametrize(
    ("side", "n", "at_most"), [(128, 1000, 240), (512, 1000, MIN_PICTURES), (32, 40, 40)], ids=["usual", "large", "all"]
)
def test_larger_frames_mean_fewer_pictures(side: int, n: int, at_most: int) -> None:
    """The report's time is bounded; the highest held-out score is always among those shown."""
    held_out = np.arange(0, n, 4)
    scores = {int(i): float(i) for i in held_out}

    class Pictures(NamedTuple):
        frames: Any
        files: range

    frames = np.broadcast_to(np.uint8(0), (n, side, side, 3))
    trained, kept = _sample(Pictures(frames, range(n)), held_out, scores)  # type: ignore[arg-type]
    assert len(trained) + len(kept) <= at_most and max(scores) in kept and trained
    assert not set(trained) & set(scores) and set(kept) <= set(scores)


# Training


class Case(NamedTuple):
    good: Path
    output: Path
    training: Training


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Eight pictures that are wider than high, some with names that want to be more."""
    folder = tmp_path_factory.mktemp("report")
    good = write_parts(folder / "good", 6, (60, 40))
    for i, name in enumerate(("<script>alert(1)<script>.png", "a&\"b'.png")):
        write(good / name, part(50 + i, (60, 40)))
    (good / "<i>broken.png").write_bytes(b"not a picture")
    output = folder / "part.flawline"
    return Case(good, output, train(good, output, **SMALL))


@pytest.fixture
def no_export(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes seconds and is not what the test is about: every graph is that of `case`."""
    model = case.training.bundle.member(MODEL)
    monkeypatch.setattr(learning, "onnx_from_graph", lambda graph: model)


def test_training_writes_both_reports(case: Case) -> None:
    """One inside the bundle, verified with it, and one beside it that knows the model's id."""
    bundle = Bundle.open(case.output)
    inside, beside = Page(bundle.member(REPORT).decode()), Page(report_path(case.output).read_text("utf-8"))
    assert case.training.report == report_path(case.output) == case.output.parent / "part.report.html"
    assert bundle.model_id in beside.html and bundle.model_id not in inside.html
    for page in (inside, beside):
        assert_loads_nothing(page)
        assert page.sections.keys() == {
            "headline", "scores", "pictures", "suspects", "unusual", "latent", "variation", "training", "card", "data"
        }  # fmt: skip
        assert bundle.manifest.members[MODEL].sha256 in page.text("headline")
        assert "32 × 32" in page.text("headline") and "<i>broken.png" in page.text("data")
    assert len(bundle.member(REPORT)) < MAX_STATIC_BYTES


def test_the_collected_data_are_the_trainings(case: Case) -> None:
    """Scores, roles and names as in the manifest, a loss a step, every picture with a thumbnail and a place."""
    manifest = case.training.bundle.manifest
    data = report_from_html(case.training.bundle.member(REPORT).decode(), "x")
    held_out = {one.name: one.score for one in data.scored if one.role == "held_out"}
    files = {
        entry.role: [e.file for e in manifest.data.pictures if e.role == entry.role] for entry in manifest.data.pictures
    }
    assert list(held_out) == files["calibration"] and list(held_out.values()) == manifest.calibration.scores
    assert [one.name for one in data.scored if one.role == "train"] == files["train"]
    assert all(one.thumbnail and one.place for one in data.scored)
    assert [step for step, _ in data.loss] == [1, 2, 3]
    assert [one.title for one in data.maps][:2] == ["Mean good part", "Spread of the pictures"]
    assert data.triples and data.n_weights == case.training.parameters


@pytest.mark.usefixtures("no_export")
def test_the_report_is_part_of_what_is_reproducible(case: Case, tmp_path: Path) -> None:
    """The same steps and seed give the same page, byte by byte."""
    again = train(case.good, tmp_path / "part.flawline", **SMALL).bundle
    assert again.member(REPORT) == case.training.bundle.member(REPORT)


@pytest.mark.usefixtures("no_export")
def test_without_report_there_is_none(case: Case, tmp_path: Path) -> None:
    """Neither inside nor beside, and no note about it."""
    made = train(case.good, tmp_path / "part.flawline", report=False, **SMALL)
    assert REPORT not in made.bundle.manifest.members and made.report is None
    assert [path.name for path in tmp_path.iterdir()] == ["part.flawline"]
    assert not any("report could not" in note for note in made.notes)


@pytest.mark.usefixtures("no_export")
def test_a_report_never_overruns_the_minutes(case: Case, tmp_path: Path) -> None:
    """What began 29 s ago and may take 30 is not kept waiting for a report; a note tells how to get one."""
    options = {**SMALL, "steps": None, "minutes": 0.5}
    made = train(case.good, tmp_path / "part.flawline", started=time.monotonic() - 29, **options)
    assert made.report is None and REPORT not in made.bundle.manifest.members
    assert any("no time was left" in note and "flawline report" in note for note in made.notes)


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("failing", ["collect_training", "static_html", "interactive_html"])
def test_a_failing_report_does_not_cost_the_bundle(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """The bundle is written and verifies; a note says what happened."""

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise ValueError("no such colour")

    monkeypatch.setattr(training_report, failing, fail)
    made = train(case.good, tmp_path / "part.flawline", **SMALL)
    assert Bundle.open(tmp_path / "part.flawline").model_id == made.bundle.model_id
    assert (REPORT in made.bundle.manifest.members) is (failing == "interactive_html")
    assert made.report is None and [path.name for path in tmp_path.iterdir()] == ["part.flawline"]
    assert [note for note in made.notes if "report could not be made" in note and "no such colour" in note]


@pytest.mark.usefixtures("no_export")
def test_a_disk_that_fills_up_after_the_bundle_leaves_the_bundle(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space for the page beside it: the bundle stays, nothing half lies around."""
    real, calls = os.fsync, iter(range(100))

    def full_after_the_bundle(descriptor: int) -> None:
        if next(calls) >= 2:  # the bundle's file and its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_the_bundle)
    made = train(case.good, tmp_path / "part.flawline", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["part.flawline"] and made.report is None
    assert any("No space left" in note for note in made.notes)


@pytest.mark.usefixtures("no_export")
def test_a_suspect_is_shown_with_its_reason(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What training doubts, held out or not, is in the report with its picture and score."""
    reason = "scores far above the others"
    monkeypatch.setattr(training_report, "suspect_reasons", lambda calibration: {calibration.parts[0]: reason})
    made = train(case.good, tmp_path / "part.flawline", **SMALL)
    data = report_from_html(made.bundle.member(REPORT).decode(), "x")
    (found,) = [one for one in data.suspects if one.reason == reason]
    assert found.seen and found.heat and found.score in made.bundle.manifest.calibration.scores
    assert found.name in Page(made.bundle.member(REPORT).decode()).text("suspects")


@pytest.mark.usefixtures("no_export")
def test_test_pictures_of_a_training_are_on_the_map(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defects that are given with the training get curves, triples and places among the good pictures."""
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(*positional: Any, **named: Any) -> ReportData:
        given.append((positional, named))
        return collect_training(*positional, **named)

    monkeypatch.setattr(training_report, "collect_training", keep)
    made = train(case.good, tmp_path / "part.flawline", **SMALL)
    ((positional, named),) = given
    network = positional[2].network
    pictures = JudgedPictures(made.bundle.threshold, lambda frame: embed_frames(network, frame[None])[0])
    dataset = write_set(tmp_path / "set", on_parts=True)
    result = evaluate(made.bundle, dataset, engine="onnxruntime", on_judged=pictures.add)
    reference = part(7, (32, 32))
    shown: dict[str, Any] = {"judged": (pictures, result), "reference": reference, "promises": ["kept"]}
    data = collect_training(*positional, **{**named, **shown})
    assert data.curves is not None and data.curves.n_bad == 8
    assert {one.role for one in data.scored} == {"train", "held_out", "test_good", "defect"}
    assert all(one.place for one in data.scored) and len(data.scored) == 8 + 16
    assert data.maps[-1].title == "Alignment reference" and data.maps[-1].picture == webp(reference)
    page = Page(static_html(data))
    assert "kept" in page.text("headline") and "Alignment reference" in page.text("variation")


# Test pictures


SIDE = 32


def level_bundle(**changes: Any) -> Bundle:
    manifest = small_manifest(golden=[], **changes)
    manifest["calibration"] = {**manifest["calibration"], "threshold": 12.05}
    return Bundle(bundle_bytes(manifest, {MODEL: level_onnx((SIDE, SIDE), gain=0.1)}), "level.flawline")


def write_set(folder: Path, n: int = 8, masks: bool = True, on_parts: bool = False) -> Path:
    """Grey pictures, or parts like those of `case`, with a patch: `n` good ones up to level 100, dents from 90 up; the last
    good one is 255 bright.
    """
    for kind, levels in (("good", range(60, 60 + 5 * n, 5)), ("<dent>", range(90, 90 + 20 * n, 20))):
        for i, level in enumerate(levels):
            patch = np.s_[4 + i % 8 : 9 + i % 8, 6:12]
            picture = part(i, (48, SIDE)) if on_parts else np.full((SIDE, SIDE), 20, np.uint8)
            picture[patch] = min(255, level)
            write(folder / "test" / kind / f"{i}.png", picture)
            if masks and kind != "good":
                mask = np.zeros(picture.shape[:2], np.uint8)
                mask[patch] = 255
                write(folder / "ground_truth" / kind / f"{i}_mask.png", mask)
    return folder


def test_judged_pictures_become_dots_triples_and_curves(tmp_path: Path) -> None:
    """The figures are the evaluation's; the weakest and strongest defects and the highest good scores are shown."""
    bundle, pictures = level_bundle(), JudgedPictures(12.05)
    result = evaluate(bundle, write_set(tmp_path), engine="onnxruntime", on_judged=pictures.add)
    data = pictures.into(report_of_manifest(bundle.manifest), result)
    curves = data.curves
    assert curves is not None and curves.image_auroc == result.image_auroc and curves.aupro == result.aupro
    assert (curves.escape_rate, curves.false_reject_rate) == (result.escape_rate, result.false_reject_rate)
    x, y = np.array(curves.roc).T
    assert np.trapezoid(y, x) == pytest.approx(result.image_auroc, abs=1e-6)
    assert curves.pro and curves.by_defect[0].kind == "<dent>"
    assert [t.name for t in data.triples if t.role == "test_good"] == [f"good/{i}.png" for i in (7, 6, 5, 4)]
    assert [t.name for t in data.triples if t.role == "defect"] == [f"<dent>/{i}.png" for i in (0, 1, 2, 3, 6, 7)]
    assert sum(one.role == "defect" for one in data.scored) == 8
    twice = pictures.into(data, result)
    assert len(twice.scored) == len(data.scored) and len(twice.triples) == len(data.triples)


def test_known_defects_are_judged_against_the_held_out_parts(tmp_path: Path) -> None:
    """Their scores beside those that the threshold came from: ROC, escapes by kind, triples; and the page says whose they are."""
    bundle, pictures = level_bundle(), JudgedPictures(1.0)
    write_set(tmp_path)
    score_defects(
        bundle.member(MODEL),
        bundle.frame,
        find_defects(tmp_path / "test" / "<dent>", tmp_path / "test" / "good"),
        on_judged=pictures.add,
    )
    good = np.array([6.0, 8.0, 12.0, 14.0])
    data = pictures.known(report_of_manifest(bundle.manifest), good, 12.05)
    curves, scores = data.curves, np.array([one.score for one in pictures.scored])
    assert curves is not None and (curves.n_good, curves.n_bad) == (4, 8)
    assert curves.image_auroc == pytest.approx(float((scores[:, None] > good).mean()), abs=1e-6)
    assert (curves.false_reject_rate, curves.escape_rate) == (0.25, float((scores <= 12.05).mean()))
    assert 0 < curves.escape_rate < 1 and curves.by_defect[0].escape_rate == curves.escape_rate
    assert [t.role for t in data.triples] == ["defect"] * 6
    for html in (static_html(data), interactive_html(data)):
        assert "held-out good pictures" in Page(html).text("detection")


def test_a_single_defect_without_mask(tmp_path: Path) -> None:
    """One good and one defective picture, no ground truth: a ROC, no PRO, both pages."""
    bundle, pictures = level_bundle(), JudgedPictures(12.05)
    result = evaluate(bundle, write_set(tmp_path, 1, masks=False), engine="onnxruntime", on_judged=pictures.add)
    data = pictures.into(report_of_manifest(bundle.manifest), result)
    assert data.curves is not None and data.curves.pro == ()
    for html in (static_html(data), interactive_html(data)):
        assert "<dent>" in Page(html).text("detection") and "PRO" not in Page(html).text("detection")


def test_scores_that_are_no_numbers_are_drawn_far_out(tmp_path: Path) -> None:
    """They count as rejected, in the curve as in the figures."""
    manifest = small_manifest(golden=[])
    model = level_onnx((SIDE, SIDE), gain=0.1, white_is_nan=True)
    bundle, pictures = Bundle(bundle_bytes(manifest, {MODEL: model}), "level.flawline"), JudgedPictures(4.0)
    result = evaluate(bundle, write_set(tmp_path, 10), engine="onnxruntime", on_judged=pictures.add)
    assert max(one.score for one in pictures.scored) == 4e4
    data = pictures.into(report_of_manifest(bundle.manifest), result)
    x, y = np.array(data.curves.roc).T if data.curves else ((), ())
    assert np.trapezoid(y, x) == pytest.approx(result.image_auroc, abs=1e-6)
    assert Page(static_html(data)).open == []


def test_what_cannot_be_judged_is_in_the_curve(case: Case, tmp_path: Path) -> None:
    """Pictures that have nothing in common with the training's are no dots, and count as rejected in curve and figures."""
    bundle, pictures = case.training.bundle, JudgedPictures(case.training.bundle.threshold)
    result = evaluate(bundle, write_set(tmp_path), engine="onnxruntime", on_judged=pictures.add)
    assert (result.n_good_unhealthy, result.n_bad_unhealthy) == (8, 8) and pictures.scored == ()
    assert (result.false_reject_rate, result.escape_rate, result.image_auroc) == (1, 0, 0.5)
    data = pictures.into(report_of_manifest(bundle.manifest), result)
    assert data.curves is not None and data.curves.roc == ((0, 0), (1, 1))
    assert "8 defective pictures" in Page(static_html(data)).text("headline")


# Commands


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_report_again_from_a_bundle_alone(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that the training knew is there again, from the page inside the bundle."""
    assert run("report", case.output, "-o", tmp_path / "again.html") == 0
    assert f"report of {case.training.bundle.model_id}" in capsys.readouterr().out
    again, first = Page((tmp_path / "again.html").read_text("utf-8")), Page(report_path(case.output).read_text("utf-8"))
    assert again.sections.keys() == first.sections.keys()
    for section in ("headline", "pictures", "suspects", "variation", "card", "data"):
        assert again.text(section) == first.text(section)


def test_report_with_a_data_set(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the bundle by default, with the defects of the set and the pictures of the training."""
    bundle = tmp_path / "part.flawline"
    bundle.write_bytes(case.output.read_bytes())
    assert run("report", bundle, write_set(tmp_path / "set", on_parts=True), "--engine", "onnxruntime") == 0
    page = Page((tmp_path / "part.report.html").read_text("utf-8"))
    assert "<dent>" in page.text("detection") and "AUPRO" in page.text("detection")
    assert "latent" in page.sections and "8 defective pictures" in page.text("headline")
    assert "part.report.html" in capsys.readouterr().out


def test_a_bundle_without_report_shows_its_golden_pictures(case: Case, tmp_path: Path) -> None:
    """Made with --no-report or by an older version: scores, golden pictures and the manifest's facts."""
    old = case.training.bundle
    manifest = old.manifest.model_dump(exclude={"schema_version", "members"})
    members = {name: old.member(name) for name in old.manifest.members if name != REPORT}
    (tmp_path / "old.flawline").write_bytes(bundle_bytes(manifest, members))
    assert run("report", tmp_path / "old.flawline", "--engine", "onnxruntime") == 0
    page = Page((tmp_path / "old.report.html").read_text("utf-8"))
    assert "synthetic damage" in page.text("pictures") and "latent" not in page.sections


@pytest.mark.parametrize(
    ("out", "sentence"),
    [("gone/x.html", "folder that does not exist"), ("", "is a folder")],
    ids=["no folder", "folder"],
)
def test_a_report_that_cannot_be_written_is_refused(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, sentence: str
) -> None:
    """The user's mistake, in a sentence."""
    assert run("report", case.output, "-o", tmp_path / out) == 2
    assert sentence in capsys.readouterr().err


def test_the_report_can_be_taken_out_of_a_bundle(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`bundle show --report` writes the page inside; a bundle without one says what it has instead."""
    assert run("bundle", "show", case.output, "--report", tmp_path / "page.html") == 0
    assert (tmp_path / "page.html").read_bytes() == case.training.bundle.member(REPORT)
    (tmp_path / "small.flawline").write_bytes(small_bundle())
    assert run("bundle", "show", tmp_path / "small.flawline", "--report", tmp_path / "none.html") == 2
    assert "has no member report.html" in capsys.readouterr().err and not (tmp_path / "none.html").exists()


# A browser


def console_of(browser: Path, html: str, folder: Path, *options: str) -> tuple[list[str], str]:
    """What Chromium logs while it shows the page, and the page's elements afterwards."""
    page = folder / "report.html"
    page.write_text(html, encoding="utf-8")
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--log-level=0",
            "--window-size=1280,1800", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", *options,
            "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stdout


@pytest.mark.needs_browser
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["static", "interactive"])
def test_a_browser_shows_it_without_complaint(tmp_path: Path, require_browser: Callable[[], Path], kind: str) -> None:
    """Bokeh draws every plot under the page's own policy, nothing is blocked, no error is logged."""
    html = static_html(example()) if kind == "static" else interactive_html(example())
    console, elements = console_of(require_browser(), html, tmp_path)
    complaints = ("error", "refused", "violat", "uncaught", "blocked", "warning")
    assert [line for line in console if any(word in line.lower() for word in complaints)] == []
    if kind == "interactive":
        assert elements.count('class="bk-Figure"') == 5


HOVER = """<script>
setTimeout(() => {
  const plot = Bokeh.index.roots[0];
  const dots = [...plot.renderer_views.values()].find(view => view.glyph?.sx?.length > 2);
  const box = plot.canvas_view.events_el.getBoundingClientRect();
  const at = {clientX: box.left + dots.glyph.sx[1], clientY: box.top + dots.glyph.sy[1]};
  plot.canvas_view.events_el.dispatchEvent(
    new PointerEvent('pointermove', {...at, bubbles: true, pointerType: 'mouse', isPrimary: true}));
}, 2000);
setTimeout(() => {
  const look = node => {
    if (node.classList?.contains('bk-tooltip-content')) console.log('TOOLTIP ' + node.innerHTML.replaceAll('\\n', ' '));
    for (const child of [...(node.shadowRoot?.children ?? []), ...node.children]) look(child);
  };
  look(document.documentElement);
}, 5000);
</script>"""


@pytest.mark.needs_browser
@pytest.mark.timeout(180)
def test_hovering_shows_the_picture_and_the_name_as_text(tmp_path: Path, require_browser: Callable[[], Path]) -> None:
    """A dot under the pointer tells its picture, name and score; a name with markup in it stays a name."""
    name = "<img src=x onerror=alert(3)>.png"
    scored = tuple(dataclasses.replace(one, name=name) for one in example().scored)
    html = interactive_html(example(scored=scored)).replace("</body>", HOVER + "</body>")
    console, _ = console_of(require_browser(), html, tmp_path)
    (tooltip,) = [line for line in console if "TOOLTIP" in line]
    assert "&lt;img src=x onerror=alert(3)&gt;.png" in tooltip and "<img src=x" not in tooltip.replace('\\"', "")
    assert "data:image/webp;base64," in tooltip and "good, trained on" in tooltip and "1.1111" in tooltip
