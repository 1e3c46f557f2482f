"""Training: what the network is shown, what is counted as loss, when it stops, and that it can be repeated."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.train_.parts import parts
from torch import Tensor, nn

from flawline_inspect.errors import FlawlineError, InputError
from flawline_train import fit as fitting
from flawline_train import trainer
from flawline_train.autoencoders import Autoencoder, Batch, Corruption, FilteringAutoencoder
from flawline_train.autoencoders.autoencoder import repair_loss
from flawline_train.corruption import VISIBLE
from flawline_train.fit import BATCH_SIZE, NOISE, Budget, FitProgress, FitResult, choose_device, fit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    return parts(10, (32, 32))


class Repairing(Autoencoder):
    """Trained as the filtering autoencoder is, whatever its layers."""

    corruption: ClassVar[Corruption] = "structured"

    def loss(self, batch: Batch) -> Tensor:
        return repair_loss(self(batch.inputs), batch)


class Added(Repairing):
    """Adds one number to every pixel, at first `value`; its error is known beforehand."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


class Plain(Repairing):
    """A few convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 5, padding=2), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def batch_of(frames: NDArray[np.uint8], rng: np.random.Generator | int) -> tuple[Tensor, Tensor, Tensor]:
    """What `fit` shows a repairing network in its first step: inputs, target and mask."""
    rng = fitting.batch_rng(rng, 0) if isinstance(rng, int) else rng
    batch = fitting.make_batch(frames, "structured", 0.0, rng, CPU)
    return batch.inputs, batch.target, batch.mask


def trained(frames: NDArray[np.uint8], steps: int, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = FilteringAutoencoder(4, (32, 32))
    fit(network, frames, Budget(steps=steps), seed=seed, device=CPU)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


# Budget and device


@pytest.mark.parametrize(("steps", "until"), [(10, 5.0), (None, None), (0, 0.0)], ids=["both", "neither", "both zero"])
def test_a_budget_is_steps_or_time(steps: int | None, until: float | None) -> None:
    """Both or none is the caller's mistake."""
    with pytest.raises(InputError, match="either steps or a time"):
        Budget(steps=steps, until=until)


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (1, 0.25), (4, 1.0)])
def test_share_of_steps(step: int, share: float) -> None:
    """A budget of steps is used up by steps, whatever the clock says."""
    assert Budget(steps=4).share_done(step, started=-1e9) == share


@pytest.mark.parametrize(("now", "share"), [(100.0, 0.0), (115.0, 0.5), (130.0, 1.0)], ids=["beginning", "half", "end"])
def test_share_of_time(monkeypatch: pytest.MonkeyPatch, now: float, share: float) -> None:
    """A budget of time is used up by the monotonic clock, whatever the number of steps."""
    monkeypatch.setattr(fitting, "time", SimpleNamespace(monotonic=lambda: now))
    assert Budget(until=130.0).share_done(10**9, started=100.0) == pytest.approx(share)


def test_a_time_may_end_with_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is over first; of a training that goes on, the time that it spent before counts, and its steps do not twice."""
    monkeypatch.setattr(time, "monotonic", lambda: 110.0)
    budget = Budget(until=200.0, at_most=10)
    assert budget.share_done(0, started=100.0) == pytest.approx(0.1)
    assert budget.share_done(5, started=100.0) == 0.5
    assert budget.share_done(5, started=100.0, before=0.3) == 0.5
    assert budget.share_done(5, started=100.0, before=0.6) == pytest.approx(0.7)
    for wrong in ({"steps": 3, "at_most": 2}, {"until": 200.0, "at_most": 0}):
        with pytest.raises(InputError, match="at least 1 step belongs to a time"):
            Budget(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gpu please", "cuda:99", "", "cpu:x"])
def test_an_unusable_device_is_the_users_mistake(name: str) -> None:
    """The device asked for and what is there instead are named."""
    with pytest.raises(InputError, match=rf"--device {name} cannot be used.*this machine has cpu"):
        choose_device(name)


def test_auto_and_cpu_are_devices() -> None:
    """`cpu` is always there; `auto` is CUDA exactly where torch sees it."""
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


# What the network is shown


def test_batch_shapes(frames: NDArray[np.uint8]) -> None:
    """Input, target and mask are float32 and of the frame's size; the mask is 0 and 1."""
    noisy, target, mask = batch_of(frames, 0)
    assert noisy.shape == target.shape == (BATCH_SIZE, 3, 32, 32) and mask.shape == (BATCH_SIZE, 1, 32, 32)
    assert noisy.dtype == target.dtype == mask.dtype == torch.float32
    assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_input_and_target_carry_the_same_noise(frames: NDArray[np.uint8]) -> None:
    """Outside the mask input and target differ by no more than invisible damage, mostly by nothing; inside they do."""
    inside, outside = [], []
    for seed in range(10):
        noisy, target, mask = batch_of(frames, seed)
        difference = (noisy - target).abs()
        corrupted = mask.expand_as(difference) > 0
        inside.append(difference[corrupted])
        outside.append(difference[~corrupted])
    far, near = torch.cat(outside), torch.cat(inside)
    assert float(far.max()) <= VISIBLE + 1e-6
    assert float((far < 1e-6).float().mean()) > 0.9  # exactly the same noise, but for soft rims
    assert float(near.mean()) > 0.1


def test_target_is_a_good_picture_with_noise() -> None:
    """On a grey picture the target's deviation is the noise: there, and never above its largest sigma."""
    grey: NDArray[np.uint8] = np.full((3, 64, 64, 3), 128, np.uint8)
    sigmas = []
    for seed in range(6):
        _, target, _ = batch_of(grey, seed)
        sigmas += target.flatten(1).std(1).tolist()
    # The estimate of sigma from 12288 values is off by 0.7 %.
    assert max(sigmas) <= NOISE * 1.03
    assert max(sigmas) > NOISE / 2 and min(sigmas) < NOISE / 4  # each picture draws its own


def test_some_pictures_stay_whole(frames: NDArray[np.uint8]) -> None:
    """About one in ten is shown undamaged, so that doing nothing is learnt: its input is its target exactly."""
    batches = [batch_of(frames, seed) for seed in range(40)]
    whole = sum(
        torch.equal(noisy[k], target[k]) and not mask[k].any()
        for noisy, target, mask in batches
        for k in range(BATCH_SIZE)
    )
    assert 0.03 < whole / (40 * BATCH_SIZE) < 0.3  # and a few whose shape fell outside


def test_batches_follow_the_generator(frames: NDArray[np.uint8]) -> None:
    """The same generator gives the same batch, the next call another."""
    rng = np.random.default_rng(3)
    first, second = batch_of(frames, rng), batch_of(frames, rng)
    for one, again in zip(first, batch_of(frames, 3), strict=True):
        assert torch.equal(one, again)
    assert not torch.equal(first[1], second[1])


# Loss


@pytest.mark.parametrize("area", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_inside_and_outside_weigh_the_same(monkeypatch: pytest.MonkeyPatch, area: float) -> None:
    """An error of 0.4 inside and 0.1 outside costs half of each square, however large the damage is."""
    height = width = 64
    mask = torch.zeros(8, 1, height, width)
    mask.view(-1)[: round(area * mask.numel())] = 1
    target = torch.rand(8, 3, height, width, generator=torch.Generator().manual_seed(0))
    noisy = target + 0.4 * mask + 0.1 * (1 - mask)
    monkeypatch.setattr(fitting, "make_batch", lambda *_: Batch(noisy, target, mask, 0.0))
    result = fit(Added(), parts(1, (64, 64)), Budget(steps=1), seed=0, device=CPU)
    expected = 0.5 * 0.4**2 + 0.5 * 0.1**2
    # One pixel is added to each area so that an empty one does not divide by zero: 1/328 of the smallest.
    assert result.loss == pytest.approx(expected, rel=4e-3)


@pytest.mark.parametrize(("value", "filled"), [(0.0, True), (0.3, True), (0.3, False)])
def test_loss_of_a_fixed_batch(
    monkeypatch: pytest.MonkeyPatch, frames: NDArray[np.uint8], value: float, filled: bool
) -> None:
    """The first loss, recomputed plainly from the batch that the seed gives; without any damage only half counts."""
    batch = batch_of(frames, 11)
    if not filled:
        batch = (batch[1], batch[1], torch.zeros_like(batch[2]))
        monkeypatch.setattr(fitting, "make_batch", lambda *_: Batch(*batch, share=0.0))
    result = fit(Added(value), frames, Budget(steps=1), seed=11, device=CPU)

    noisy, target, mask = (tensor.numpy().astype(np.float64) for tensor in batch)
    sums, areas = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for k in range(len(noisy)):
        for y in range(32):
            for x in range(32):
                where = bool(mask[k, 0, y, x])
                sums[where] += float(np.mean((noisy[k, :, y, x] + value - target[k, :, y, x]) ** 2))
                areas[where] += 1
    expected = sum(sums[where] / (areas[where] + 1) for where in (True, False)) / 2
    assert result.loss == pytest.approx(expected, rel=1e-4)


def test_loss_falls_on_an_easy_set() -> None:
    """Grey parts, a few convolutions from random weights: batches never trained on come back better than they came."""
    grey: NDArray[np.uint8] = np.full((4, 32, 32, 3), 128, np.uint8)
    torch.manual_seed(0)
    network = Plain()
    held_out = [batch_of(grey, 1000 + k) for k in range(8)]

    @torch.inference_mode()
    def damage(network: nn.Module) -> float:
        """Mean squared error inside the damage."""
        errors = [((network(noisy) - target).square() * mask).sum() / mask.sum() for noisy, target, mask in held_out]
        return float(torch.stack(errors).mean())

    as_it_came, before = damage(nn.Identity()), damage(network)
    result = fit(network, grey, Budget(steps=120), seed=0, device=CPU)
    after = damage(network)
    assert result.steps == 120 and not result.interrupted
    assert after < 0.1 * before and after < 0.8 * as_it_came, f"{before:.4f} → {after:.4f}, as it came {as_it_came:.4f}"


def test_a_diverged_training_is_an_error(frames: NDArray[np.uint8]) -> None:
    """A loss that is no number stops the training with the step and what to try; nobody gets such a model."""
    with pytest.raises(FlawlineError, match=r"diverged at step 0 \(loss nan\); try another --seed"):
        fit(Added(float("nan")), frames, Budget(steps=3), seed=0, device=CPU)


# Stopping and repeating


def test_same_steps_and_seed_give_the_same_weights(frames: NDArray[np.uint8]) -> None:
    """Bit for bit the same, running statistics included; another seed gives others."""
    first, again, other = trained(frames, 4, 7), trained(frames, 4, 7), trained(frames, 4, 8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_more_steps_give_other_weights(frames: NDArray[np.uint8]) -> None:
    """The optimiser does something with every step."""
    first, more = trained(frames, 2, 7), trained(frames, 3, 7)
    assert any(not torch.equal(first[name], more[name]) for name in first)


def test_training_leaves_evaluation_mode_and_no_old_gradient_mode(frames: NDArray[np.uint8]) -> None:
    """Afterwards every layer is in evaluation mode, so that a picture's result does not depend on its batch."""
    network = FilteringAutoencoder(4, (32, 32))
    fit(network, frames, Budget(steps=1), seed=0, device=CPU)
    assert not any(module.training for module in network.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("stop", [False, True], ids=["to the end", "interrupted"])
def test_the_network_may_finish(frames: NDArray[np.uint8], stop: bool) -> None:
    """After the last step, once, in evaluation mode, with every training picture as it is."""
    seen: list[Tensor] = []

    class Finishing(Added):
        def finish(self, pictures: Iterable[Tensor]) -> None:
            assert not self.training and not seen
            seen.extend(pictures)

    fit(Finishing(), frames, Budget(steps=3), seed=0, device=CPU, should_stop=lambda: stop)
    wanted = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(torch.cat(seen), wanted)


def test_it_stops_when_asked(frames: NDArray[np.uint8]) -> None:
    """`should_stop` is asked after every step: the third yes ends it after the third step, in evaluation mode."""
    answers = iter([False, False, True])
    network = Added()
    result = fit(network, frames, Budget(steps=1000), seed=0, device=CPU, should_stop=lambda: next(answers))
    assert (result.steps, result.interrupted) == (3, True)
    assert not network.training


def test_progress_is_told_every_step(frames: NDArray[np.uint8]) -> None:
    """Steps count from 1, shares rise to 1, the last loss is the result's."""
    seen: list[FitProgress] = []
    result = fit(Added(0.1), frames, Budget(steps=5), seed=0, device=CPU, on_progress=seen.append)
    assert isinstance(result, FitResult) and result.steps == 5 and not result.interrupted
    assert [progress.step for progress in seen] == [1, 2, 3, 4, 5]
    assert [progress.share for progress in seen] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert seen[-1].loss == result.loss and all(progress.loss > 0 for progress in seen)


def test_a_budget_of_time_ends(frames: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that moves 1 s each time it is read, training ends once the moment is reached, share 1 included."""
    ticks = iter(range(10_000))
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))
    monkeypatch.setattr(fitting, "time", clock)
    monkeypatch.setattr(trainer, "time", clock)
    seen: list[FitProgress] = []
    result = fit(Added(), frames, Budget(until=40.0), seed=0, device=CPU, on_progress=seen.append)
    assert 5 <= result.steps <= 40 and not result.interrupted
    assert max(progress.share for progress in seen) <= 1
