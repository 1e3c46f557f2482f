"""Which errors are believed: constructed error maps whose right mixture is known, and the copies that it is chosen by."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from tests.train_.parts import parts, varied_parts

from flawline_inspect.errors import InputError
from flawline_train.weighing import HALF_AT, LINEAR, MIN_COPIES, USUAL, _auroc, damaged_copies, weigh
from flawline_train.withheld import WITHHELD

F32 = NDArray[np.float32]
NAMES = ("absolute", "ssim", "msgms", "coarse", "patches")
N, COPIES, HW = 10, len(WITHHELD) * 12, (16, 24)
TOP = 16


def trusted(*weights: float, n: int = N) -> tuple[float, ...]:
    """What is asked of `n` parts: half the weight at forty for what rests on principal components."""
    return tuple(w * n / (n + HALF_AT) if name in LINEAR else w for name, w in zip(NAMES, weights, strict=True))


def usual_of(names: tuple[str, ...], n: int = N) -> tuple[float, ...]:
    return tuple(dict(zip(NAMES, trusted(*(USUAL[name] for name in NAMES), n=n), strict=True))[name] for name in names)


USUAL_OF_ALL = usual_of(NAMES)


def maps(seen: dict[str, float], wild: dict[str, float] | None = None, seed: int = 0) -> tuple[F32, F32]:
    """Good (N, 5, h, w) and damaged maps (K m, 4, h, w): noise of deviation 1, and a spot of height `seen` where damaged.

    `wild`: good and damaged pictures alike have spots of up to this height in the channel, as parts that differ have.
    """
    rng = np.random.default_rng(seed)
    good, damaged = (rng.normal(0, 1, (n, len(NAMES), *HW)).astype(np.float32) for n in (N, COPIES))
    for name, height in (wild or {}).items():
        for errors in (good, damaged):
            for one in errors[:, NAMES.index(name)]:
                y, x = rng.integers(0, 13), rng.integers(0, 21)
                one[y : y + 3, x : x + 3] += rng.uniform(0, height)
    for k in range(COPIES):
        y, x = rng.integers(0, 13), rng.integers(0, 21)
        for name, height in seen.items():
            damaged[k, NAMES.index(name), y : y + 3, x : x + 3] += height
    return good, damaged


@pytest.mark.parametrize(
    ("seen", "wild", "wanted"),
    [
        pytest.param({"ssim": 2.0, "msgms": 2.0}, {"coarse": 30.0}, trusted(0, 1, 1, 0, 9), id="coarse only disturbs"),
        pytest.param(
            {"ssim": 3.0, "msgms": 3.0}, {"absolute": 30.0}, trusted(0, 1, 1, 0, 9), id="absolute only disturbs"
        ),
        pytest.param({"coarse": 3.0}, {}, trusted(0, 1, 1, 9, 9), id="coarse alone sees"),
        pytest.param({"absolute": 2.0, "coarse": 1.5}, {}, trusted(2, 1, 1, 9, 9), id="these two see"),
        pytest.param({"absolute": 5.0}, {}, USUAL_OF_ALL, id="absolute alone sees: not by more than the margin"),
        pytest.param(dict.fromkeys(NAMES, 50.0), {}, USUAL_OF_ALL, id="all see all"),
    ],
)
def test_the_mixture_follows_what_sees(
    seen: dict[str, float], wild: dict[str, float], wanted: tuple[float, ...]
) -> None:
    """What only disturbs is left out, what alone sees is believed; of mixtures that tell all apart the usual one is taken."""
    assert weigh(NAMES, *maps(seen, wild), TOP) == pytest.approx(wanted)


def test_a_noise_channel_is_left_out_whatever_the_draw() -> None:
    """Not a lucky seed: eight draws."""
    for seed in range(8):
        assert weigh(NAMES, *maps({"ssim": 2.0, "msgms": 2.0}, {"coarse": 30.0}, seed), TOP)[3] == 0


@pytest.mark.parametrize("names", [NAMES[:3], NAMES[1:3], ("msgms", "ssim")], ids=str)
def test_weights_come_in_the_order_of_the_names(names: tuple[str, ...]) -> None:
    """For what a network without a coarse picture has, too."""
    good, damaged = maps({"ssim": 50.0, "msgms": 50.0})
    chosen = [NAMES.index(name) for name in names]
    assert weigh(names, good[:, chosen], damaged[:, chosen], TOP) == pytest.approx(usual_of(names))


def test_few_parts_choose_less() -> None:
    """What ten parts decide, three leave at the usual mixture: their AUROC is less certain, and so the margin wider."""
    good, damaged = maps({"coarse": 3.0}, seed=5)
    assert weigh(NAMES, good, damaged, TOP) == pytest.approx(trusted(0, 1, 1, 9, 9))
    assert weigh(NAMES, good[:3], damaged, TOP) == pytest.approx(usual_of(NAMES, n=3))


def test_three_pictures_can_be_weighed_and_two_parts_cannot() -> None:
    """Each good picture is judged by the other parts, of which there are two at least."""
    good, damaged = maps({"ssim": 3.0, "msgms": 3.0})
    assert len(weigh(NAMES, good[:3], damaged, TOP)) == len(NAMES)
    with pytest.raises(InputError, match="show one part"):
        weigh(NAMES, good[:3], damaged, TOP, ["a", "a", "b"])


def test_pictures_of_one_part_do_not_vouch_for_each_other() -> None:
    """Three parts, eight pictures of each, disturb the coarse error at a place of their own. Taken for 24 parts, they are
    excused by their own other pictures; another such part would be rejected."""
    good, damaged = maps({"coarse": 5.0})
    good = np.concatenate([good, maps({}, seed=1)[0], maps({}, seed=2)[0]])[:24]
    parts_of = np.arange(24) % 3
    for part, x in enumerate((2, 10, 18)):
        good[parts_of == part, 3, 6:9, x : x + 3] += 20.0
    as_parts, as_strangers = weigh(NAMES, good, damaged, TOP, list(parts_of)), weigh(NAMES, good, damaged, TOP)
    assert as_parts[3] == 0 < as_strangers[3]


def test_constant_maps_give_the_usual_mixture() -> None:
    """Nothing varies and nothing is seen: no number is missing and nothing is chosen by chance."""
    good, damaged = np.zeros((3, len(NAMES), *HW), np.float32), np.zeros((COPIES, len(NAMES), *HW), np.float32)
    assert weigh(NAMES, good, damaged, TOP) == pytest.approx(usual_of(NAMES, n=3))


def test_auroc_against_scipy() -> None:
    """Mann and Whitney's U over the number of pairs; ties count half."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        good, bad = (rng.integers(0, 6, n).astype(np.float32) for n in rng.integers(1, 12, 2))
        wanted = stats.mannwhitneyu(bad, good).statistic / (len(good) * len(bad))
        assert _auroc(good, bad) == pytest.approx(wanted)


# Damaged copies


@pytest.mark.parametrize(("n", "a_kind"), [(3, 24), (5, 25), (24, 24), (30, 24)])
def test_there_are_enough_copies_of_each_kind(n: int, a_kind: int) -> None:
    """Few pictures are damaged several times, of many a spread-out choice; no kind lacks any."""
    assert a_kind >= MIN_COPIES
    frames = parts(n, (32, 16))
    frames[:, 0, 0] = np.arange(n)[:, None]  # outside the content, so that each says where it comes from
    found = damaged_copies(frames, (1, 1, 31, 15))
    assert found.shape == (len(WITHHELD) * a_kind, 16, 32, 3) and found.dtype == np.uint8
    origins = found[:, 0, 0, 0].reshape(len(WITHHELD), a_kind)
    np.testing.assert_array_equal(origins, np.broadcast_to(origins[0], origins.shape))
    assert {0, n - 1} <= set(origins[0]) and len(set(origins[0])) == min(n, 24)


def test_copies_are_damaged_inside_the_content_alone() -> None:
    """Border stays border, every copy is another one, the pictures themselves are not touched, and it is the same again."""
    frames = varied_parts(4, (64, 48))
    before = frames.copy()
    x, y, w, h = content = (6, 8, 50, 30)
    found = damaged_copies(frames, content)
    np.testing.assert_array_equal(frames, before)
    np.testing.assert_array_equal(found, damaged_copies(frames, content))
    origins = np.tile(np.arange(4), len(found) // 4)
    outside = np.ones((48, 64), bool)
    outside[y : y + h, x : x + w] = False
    np.testing.assert_array_equal(found[:, outside], frames[origins][:, outside])
    assert (found != frames[origins]).any((1, 2, 3)).all()
    assert len({copy.tobytes() for copy in found}) == len(found)
