"""`--from`: what is taken over from an earlier model, what is made anew, and whose pictures stay out of what."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tests.train_.parts import part, write, write_parts

from flawline_inspect.bundle import MODEL, Bundle, PictureEntry
from flawline_inspect.errors import BundleError, InputError
from flawline_inspect.frame import FrameSpec, Placement
from flawline_train import Training, learning, train
from flawline_train.fit import FROM_SCRATCH
from flawline_train.lightning_module import learning_rate
from flawline_train.parts import PartGroups
from flawline_train.pictures import GoodPictures, PictureFile
from flawline_train.retraining import RETRAINING, Previous

FIRST: dict[str, Any] = {"steps": 3, "width": 4, "size": 32, "roi": (2, 2, 40, 30), "device": "cpu", "report": False}
NEXT: dict[str, Any] = {"steps": 2, "device": "cpu", "report": False}


class Case(NamedTuple):
    good: Path
    """Twelve pictures that the first model knows and eight new ones."""
    old: Path
    first: Training


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("retraining")
    good = write_parts(folder / "good", 12, (48, 40))
    first = train(good, folder / "old.flawline", **FIRST)
    for seed in range(8):
        write(good / "new" / f"{seed}.png", part(100 + seed, (48, 40)))
    return Case(good, folder / "old.flawline", first)


@pytest.fixture
def no_export(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes seconds and is not what these tests are about: every graph is that of the first model."""
    model = case.first.bundle.member(MODEL)
    monkeypatch.setattr(learning, "onnx_from_graph", lambda graph: model)


def roles(bundle: Bundle) -> dict[str, str]:
    return {entry.sha256: entry.role for entry in bundle.manifest.data.pictures}


@pytest.mark.usefixtures("no_export")
def test_pictures_stay_on_their_side(case: Case, tmp_path: Path) -> None:
    """Learnt from stays learnt from, held out stays held out, and a quarter of the new ones is held out too."""
    made = train(case.good, tmp_path / "new.flawline", from_bundle=case.old, seed=7, **NEXT)
    before, after = roles(case.first.bundle), roles(made.bundle)
    assert len(before) == 12 and before.items() <= after.items()
    assert Counter(role for digest, role in after.items() if digest not in before) == {"train": 6, "calibration": 2}
    assert len(made.bundle.manifest.calibration.scores) == 3 + 2
    model = case.first.bundle.model_id
    assert any(
        f"trained further from {model}: of 20 pictures it has learnt from 9 and held out 3, which stay so; of 8 new ones 2"
        in note
        for note in made.notes
    )


@pytest.mark.usefixtures("no_export")
def test_method_width_and_frame_are_the_earlier_models(case: Case, tmp_path: Path) -> None:
    """Without being given again, region of interest included; the manifest names the model that it came from."""
    manifest = train(case.good, tmp_path / "new.flawline", from_bundle=case.old, **NEXT).bundle.manifest
    old = case.first.bundle.manifest
    shape = {"width", "height", "bit_depth", "roi", "picture_wh", "stretch"}
    assert manifest.frame.model_dump(include=shape) == old.frame.model_dump(include=shape)
    assert manifest.frame.roi == (2, 2, 40, 30)
    assert manifest.method.name == old.method.name and manifest.method.parameters["width"] == 4
    assert manifest.method.parameters["from"] == case.first.bundle.model_id
    assert "from" not in old.method.parameters


@pytest.mark.usefixtures("no_export")
def test_training_begins_with_the_earlier_weights(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network that is fitted is the bundle's, at the retraining's schedule."""
    given: list[tuple[dict[str, torch.Tensor], Any]] = []
    real = learning.fit

    def keep(network: Any, *positional: Any, **named: Any) -> Any:
        given.append(({key: tensor.clone() for key, tensor in network.state_dict().items()}, named["schedule"]))
        return real(network, *positional, **named)

    monkeypatch.setattr(learning, "fit", keep)
    train(case.good, tmp_path / "new.flawline", from_bundle=case.old, **NEXT)
    ((state, schedule),) = given
    wanted = Previous(case.old).network.state_dict()
    assert schedule == RETRAINING and all(torch.equal(state[key], wanted[key]) for key in wanted)


@pytest.mark.usefixtures("no_export")
def test_grandparents_are_not_forgotten(case: Case, tmp_path: Path) -> None:
    """Pictures that are gone in between keep their role: the third model was learnt from them all the same."""
    only_new = tmp_path / "only new"
    shutil.copytree(case.good / "new", only_new)
    second = train(only_new, tmp_path / "second.flawline", from_bundle=case.old, **NEXT).bundle
    assert {entry.sha256: entry.role for entry in second.manifest.data.earlier} == roles(case.first.bundle)
    third = train(case.good, tmp_path / "third.flawline", from_bundle=tmp_path / "second.flawline", **NEXT).bundle
    assert roles(third) == {**roles(case.first.bundle), **roles(second)} and not third.manifest.data.earlier


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "vanilla"}, "--method is vanilla, but the model of --from .*old.flawline has filtering; leave --method away"),
        ({"method": "anomalib:Padim"}, "--method is anomalib:Padim, but the model of --from"),
        ({"width": 8}, "--width is 8, but the model of --from .* has 4"),
        ({"size": 64}, "--size is 64, but the model of --from .* has 32"),
        ({"align": "rotate"}, "--align is rotate, but the model of --from .* has none"),
        ({"kind": "texture"}, "--kind is texture, but the model of --from .* has object"),
    ],
)  # fmt: skip
def test_a_contradiction_is_refused_before_reading(
    case: Case, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    """One sentence with what the earlier model has; what agrees may be given again."""
    seen: list[Any] = []
    with pytest.raises(InputError, match=sentence):
        train(case.good, tmp_path / "x.flawline", from_bundle=case.old, on_progress=seen.append, **NEXT, **changes)
    assert seen == [] and list(tmp_path.iterdir()) == []


def test_what_agrees_may_be_said_again(case: Case) -> None:
    """Or left away."""
    previous = Previous(case.old)
    previous.check(method="filtering", width=4, size=previous.size, align="none", kind="object")
    previous.check(method=None, width=None, size=None, align="auto", kind="auto")


def test_no_bundle_and_an_unlike_region_are_refused(case: Case, tmp_path: Path) -> None:
    """A file that is none, and a region of another aspect ratio, which would be squeezed otherwise than what was learnt."""
    (tmp_path / "x").write_bytes(b"no bundle")
    with pytest.raises(BundleError):
        train(case.good, tmp_path / "x.flawline", from_bundle=tmp_path / "x", **NEXT)
    with pytest.raises(InputError, match=r"the pictures show 20x30 pixels, .* was trained on 40x30, another aspect"):
        train(case.good, tmp_path / "x.flawline", from_bundle=case.old, roi=(0, 0, 20, 30), **NEXT)


def test_a_model_of_anomalib_is_not_trained_further(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are in the graph alone."""
    manifest = case.first.bundle.manifest
    method = manifest.method.model_copy(update={"name": "anomalib:Padim"})
    bundle = SimpleNamespace(manifest=manifest.model_copy(update={"method": method}))
    monkeypatch.setattr(Bundle, "open", lambda path: bundle)
    with pytest.raises(InputError, match=r"is a model of anomalib \(anomalib:Padim\), .*train without --from"):
        Previous(case.old)


# The split


def pictures(parts: str) -> GoodPictures:
    """One picture for each letter, which names its part; its SHA-256 is that of its place."""
    files = tuple(PictureFile(Path(f"{i}.png"), f"{i}.png", digest(i), (32, 32)) for i in range(len(parts)))
    frames = np.zeros((len(parts), 32, 32, 3), np.uint8)
    placement = Placement((32, 32), (0, 0, 32, 32), (0, 0, 32, 32))
    groups = PartGroups(tuple(parts))
    return GoodPictures(frames, files, FrameSpec(32, 32), placement, (), Counter({(32, 32): len(parts)}), groups=groups)


def digest(i: int) -> str:
    return hashlib.sha256(str(i).encode()).hexdigest()


def split(parts: str, known: str) -> str:
    """For each picture t(rain) or c(alibration), given the same of what an earlier model did, or `-`."""
    words = {"t": "train", "c": "calibration"}
    earlier = {digest(i): words[role] for i, role in enumerate(known) if role in words}
    _, held_out = pictures(parts).split(np.random.default_rng(0), earlier)
    return "".join("c" if i in held_out else "t" for i in range(len(parts)))


def test_without_new_pictures_nothing_moves() -> None:
    """All are known: the split is the earlier one."""
    assert split("abcdefgh", "tctctctt") == "tctctctt"


def test_a_part_follows_what_is_known_of_it() -> None:
    """A new picture of a held-out part is held out, one of a learnt part learnt from; learnt from wins a dispute."""
    assert split("aabbccdde", "t-c-ctc-c") == "ttcctt" + "cc" + "c"


def test_new_parts_make_up_for_what_is_missing() -> None:
    """With one part held out so far, two of four new ones are, though a quarter would be one."""
    found = split("abcdefgh", "tttc----")
    assert found[:4] == "tttc" and found[4:].count("c") == 2


@pytest.mark.parametrize(
    ("parts", "known", "counts"),
    [
        pytest.param("abcdefgh", "ttttttt-", "learnt from 7 and held out 0, 1 are new", id="nothing to calibrate with"),
        pytest.param("abcdefgh", "cccccccc", "learnt from 0 and held out 8, 0 are new", id="nothing to learn from"),
    ],
)
def test_too_few_of_either_are_refused(parts: str, known: str, counts: str) -> None:
    """With the numbers, and what to do."""
    with pytest.raises(InputError, match=rf"of 8 parts the model of --from has {counts}; .*train without --from"):
        split(parts, known)


def test_moved_pictures_are_told(case: Case) -> None:
    """A held-out picture whose part is learnt from after all is no longer silent about it."""
    previous = Previous(case.old)
    data = SimpleNamespace(
        pictures=[PictureEntry(file=f"{i}", sha256=digest(i), role=role) for i, role in enumerate(("train", "calibration"))],
        earlier=[PictureEntry(file="copy", sha256=digest(1), role="calibration")],
    )  # fmt: skip
    manifest = SimpleNamespace(data=data)
    previous.bundle = SimpleNamespace(manifest=manifest, model_id="old-1")  # type: ignore[assignment]
    assert previous.roles == {digest(0): "train", digest(1): "calibration"}
    notes = previous.notes(pictures("aab"), {2})
    assert "pictures that old-1 held out but whose parts it has learnt from in others: 1" in notes[1]
    assert len(previous.notes(pictures("aab"), {1, 2})) == 1


# The schedule


def test_the_schedule_is_shorter_and_lower() -> None:
    """Its peak comes earlier and stays below that of a training from scratch; both end near nothing."""
    first, again = ([learning_rate(s, s / 500, x) for s in range(501)] for x in (FROM_SCRATCH, RETRAINING))
    assert max(again) < 0.5 * max(first) and np.argmax(again) < np.argmax(first)
    assert first[-1] < 0.01 * max(first) and again[-1] < 0.01 * max(again)
