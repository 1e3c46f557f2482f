"""What surrounds a training: the average of the weights, checkpoints that can be resumed, batches ahead, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from tests.train_.parts import parts
from torch import Tensor

from flawline_inspect.errors import FlawlineError, InputError
from flawline_train import trainer
from flawline_train.autoencoders import Autoencoder, Batch, FilteringAutoencoder
from flawline_train.averaging import decay_after
from flawline_train.checkpoints import CHECKPOINT, checkpoint_bytes, load_checkpoint
from flawline_train.fit import Budget, FitProgress, FitResult, check_devices, fit
from flawline_train.trainer import Batches

CPU = torch.device("cpu")
HW = (32, 32)


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    return parts(10, HW)


def fitted(frames: NDArray[np.uint8], steps: int, **options: Any) -> tuple[dict[str, Tensor], FitResult]:
    torch.manual_seed(0)
    network = FilteringAutoencoder(4, HW)
    result = fit(network, frames, Budget(steps=steps), seed=3, device=CPU, **options)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}, result


def stop_after(steps: int) -> Any:
    answers = iter([False] * (steps - 1) + [True])
    return lambda: next(answers)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# The average of the weights


@pytest.mark.parametrize(("updates", "decay"), [(0, 0.1), (10, 11 / 20), (8990, 0.999), (10**6, 0.999)])
def test_decay_warms_up(updates: int, decay: float) -> None:
    """A beginning is forgotten soon; later the decay is the one asked for."""
    assert decay_after(updates, 0.999) == pytest.approx(decay, abs=1e-6)


def test_the_network_ends_with_the_average(frames: NDArray[np.uint8]) -> None:
    """Weights and running statistics are the moving average of what the steps left, recomputed here from each of them."""
    torch.manual_seed(0)
    network = FilteringAutoencoder(4, HW)
    # `whole` has no part in the steps: it is fitted after them.
    trained = {k: v for k, v in network.state_dict().items() if v.is_floating_point() and not k.startswith("whole.")}
    expected = {k: v.clone() for k, v in trained.items()}
    seen: list[int] = []

    def follow(progress: FitProgress) -> None:
        for name, tensor in network.state_dict().items():
            if name in expected:
                expected[name].lerp_(tensor, 1 - decay_after(progress.step - 1, 0.999))
        seen.append(progress.step)

    fit(network, frames, Budget(steps=6), seed=3, device=CPU, on_progress=follow)
    assert seen == [1, 2, 3, 4, 5, 6]
    state = network.state_dict()
    # float32, and one lerp of many tensors at once may round otherwise than many
    assert all(torch.allclose(state[name], tensor, rtol=1e-5, atol=1e-7) for name, tensor in expected.items())


def test_without_average_the_last_weights_stay(frames: NDArray[np.uint8]) -> None:
    """`ema_decay=0` changes the result and nothing of the training: its loss is the same."""
    averaged, one = fitted(frames, 4)
    last, other = fitted(frames, 4, ema_decay=0.0)
    assert not same(averaged, last)
    assert one.loss == other.loss


# Checkpoints


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    """Nested values of every allowed kind, keys that are numbers, and the order of a tensor's memory."""
    weight = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    checkpoint = {
        "a": [1, 2.5, None, True, "x"],
        "b": {0: {"w": weight}},
        "c": (torch.tensor(3), torch.rand(0)),
        "d": {},
    }
    (tmp_path / "x").write_bytes(checkpoint_bytes(checkpoint))
    loaded = load_checkpoint(tmp_path / "x")
    assert loaded["a"] == checkpoint["a"] and loaded["d"] == {}
    assert torch.equal(loaded["b"][0]["w"], weight) and loaded["b"][0]["w"].stride() == weight.stride()
    assert isinstance(loaded["c"], tuple) and int(loaded["c"][0]) == 3 and loaded["c"][1].shape == (0,)


def test_what_only_a_pickle_could_hold_is_refused() -> None:
    """An object is named with its place, not written."""
    with pytest.raises(TypeError, match=r"checkpoint\.a\.0: a checkpoint cannot hold Budget"):
        checkpoint_bytes({"a": [Budget(steps=1)]})


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", safetensors.torch.save({"w": torch.zeros(1)})])
def test_another_file_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    """Empty, a pickle, or somebody else's safetensors: one sentence."""
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match="is no checkpoint of a training, or damaged"):
        load_checkpoint(tmp_path / "x")


def test_an_interrupted_training_goes_on_where_it_was(frames: NDArray[np.uint8], tmp_path: Path) -> None:
    """Stopped after three of eight steps and resumed: bit for bit the weights and the loss of eight steps in a row."""
    whole, result = fitted(frames, 8)
    _, first = fitted(frames, 8, checkpoint=tmp_path, should_stop=stop_after(3))
    assert (first.steps, first.interrupted) == (3, True)
    seen: list[FitProgress] = []
    resumed, second = fitted(frames, 8, checkpoint=tmp_path, resume=True, on_progress=seen.append)
    assert [progress.step for progress in seen] == [4, 5, 6, 7, 8]
    assert (second.steps, second.loss, second.interrupted) == (8, result.loss, False)
    assert same(whole, resumed)


def test_a_finished_training_is_resumed_without_a_step(frames: NDArray[np.uint8], tmp_path: Path) -> None:
    """What is spent is spent: the average is there again, no step is added."""
    whole, _ = fitted(frames, 4, checkpoint=tmp_path)
    again, result = fitted(frames, 4, checkpoint=tmp_path, resume=True)
    assert result.steps == 4 and same(whole, again)


def test_a_checkpoint_reads_without_pickles(frames: NDArray[np.uint8], tmp_path: Path) -> None:
    """One safetensors file whose header is JSON, and nothing beside it."""
    fitted(frames, 2, checkpoint=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    with safetensors.safe_open(tmp_path / CHECKPOINT, framework="pt") as file:
        assert "dict" in json.loads(file.metadata()["tree"])
        assert any("exp_avg" in key for key in file.keys())  # noqa: SIM118  # no mapping


def test_a_checkpoint_of_another_training_is_refused(frames: NDArray[np.uint8], tmp_path: Path) -> None:
    """Other pictures, or none there, or one that would be overwritten: a sentence each."""
    with pytest.raises(InputError, match=f"holds no {CHECKPOINT} to resume from"):
        fitted(frames, 2, checkpoint=tmp_path, resume=True)
    fitted(frames, 2, checkpoint=tmp_path)
    with pytest.raises(InputError, match="is the checkpoint of another training"):
        fitted(255 - frames, 2, checkpoint=tmp_path, resume=True)
    with pytest.raises(InputError, match="a training was saved there; go on with --resume"):
        fitted(frames, 2, checkpoint=tmp_path)


KILLED = """
import sys, os, numpy as np, torch
from pathlib import Path
from flawline_train import trainer
from flawline_train.autoencoders import FilteringAutoencoder
from flawline_train.fit import Budget, fit
trainer.CHECKPOINT_SECONDS = 0.0
torch.set_num_threads(1)
torch.manual_seed(0)
frames = np.load(sys.argv[1])
fit(FilteringAutoencoder(4, (32, 32)), frames, Budget(steps=10**6), seed=3, device=torch.device("cpu"), checkpoint=Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_killed_training_can_be_resumed(frames: NDArray[np.uint8], tmp_path: Path) -> None:
    """SIGKILL between two savings costs what came since; the steps it had saved are not done again."""
    np.save(tmp_path / "frames.npy", frames)
    folder = tmp_path / "saved"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "frames.npy"), str(folder)])
    deadline = time.monotonic() + 90
    while not (folder / CHECKPOINT).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = load_checkpoint(folder / CHECKPOINT)["global_step"]
    seen: list[FitProgress] = []
    _, result = fitted(frames, done + 3, checkpoint=folder, resume=True, on_progress=seen.append)
    assert [progress.step for progress in seen] == [done + 1, done + 2, done + 3]
    assert result.steps == done + 3 and np.isfinite(result.loss)


def test_ctrl_c_in_a_step_is_a_keyboard_interrupt(frames: NDArray[np.uint8]) -> None:
    """The second Ctrl-C is raised wherever the program is; Lightning must not make an exit of it, nor keep the signal."""
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(_: FitProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(frames, 3, on_progress=interrupt)
    assert signal.getsignal(signal.SIGINT) == handler


def test_it_trains_beside_the_main_thread(frames: NDArray[np.uint8]) -> None:
    """Signals can only be handled in the main thread; elsewhere they are left alone."""
    results: list[FitResult] = []
    thread = threading.Thread(target=lambda: results.append(fitted(frames, 2)[1]))
    thread.start()
    thread.join()
    assert results[0].steps == 2


# Batches


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_however_many_make_them(workers: int) -> None:
    """From the first step on, one a step, whichever thread was faster."""

    def make(step: int) -> Any:
        time.sleep(0.01 if step % 2 else 0)
        return step

    batches = Batches(make, lambda: 5, workers)
    series = iter(batches)
    assert [next(series) for _ in range(7)] == list(range(5, 12))
    batches.close()


def test_a_batch_that_cannot_be_made_is_an_error() -> None:
    """What goes wrong in a thread ends the training, with its own message."""

    def make(step: int) -> Batch:
        raise FlawlineError("no batch")

    batches = Batches(make, lambda: 0, 2)
    with pytest.raises(FlawlineError, match="no batch"):
        next(iter(batches))
    batches.close()


# Several processes


class Failing(FilteringAutoencoder):
    """Fails in the second step of any process but the first."""

    def loss(self, batch: Batch) -> Tensor:
        if os.environ.get("LOCAL_RANK") == "1" and batch.share > 0:
            raise ValueError("out of luck")
        return super().loss(batch)


@pytest.mark.parametrize(
    ("device", "devices", "sentence"),
    [
        ("cpu", 0, "--devices is 0, expected at least 1"),
        ("cuda:1", 2, "leave the number away"),
        ("mps", 2, "only cpu and cuda"),
        ("cuda", 99, "--devices is 99, this machine has"),
    ],
)
def test_devices_that_cannot_be(device: str, devices: int, sentence: str) -> None:
    """Said before anything is started."""
    with pytest.raises(InputError, match=sentence):
        check_devices(torch.device(device), devices)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_train_one_network(frames: NDArray[np.uint8]) -> None:
    """Each draws its own batches, all steps are told once, the result can be repeated and is not that of one process."""
    alone, _ = fitted(frames, 3)
    seen: list[FitProgress] = []
    torch.manual_seed(0)
    network = FilteringAutoencoder(4, HW)
    result = fit(network, frames, Budget(steps=3), seed=3, device=CPU, devices=2, on_progress=seen.append)
    assert [progress.step for progress in seen] == [1, 2, 3]
    assert (result.steps, result.interrupted) == (3, False) and not network.training
    assert not same(alone, network.state_dict())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_stop_together(frames: NDArray[np.uint8]) -> None:
    """A wish to stop reaches both at the same step; neither waits for the other for ever."""
    seen: list[FitProgress] = []
    network = FilteringAutoencoder(4, HW)
    result = fit(
        network, frames, Budget(steps=10**6), seed=3, device=CPU, devices=2,
        on_progress=seen.append, should_stop=lambda: len(seen) >= 2,
    )  # fmt: skip
    assert result.interrupted and 2 <= result.steps < 10**6


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_error_in_one_process_ends_all(frames: NDArray[np.uint8]) -> None:
    """Its last line is told, and no process is left behind."""
    network: Autoencoder = Failing(4, HW)
    with pytest.raises(FlawlineError, match=r"training process 1 of 2 failed \(ValueError: out of luck\)"):
        fit(network, frames, Budget(steps=100), seed=3, device=CPU, devices=2)


def test_saving_is_told_by_the_clock(
    frames: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every `CHECKPOINT_SECONDS`, and once more at the end."""
    saved: list[int] = []
    real = trainer.pl.Trainer.save_checkpoint
    monkeypatch.setattr(
        trainer.pl.Trainer,
        "save_checkpoint",
        lambda self, path: (saved.append(self.global_step), real(self, path))[1],
    )
    fitted(frames, 3, checkpoint=tmp_path)
    assert saved == [3]
    (tmp_path / CHECKPOINT).unlink()
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    fitted(frames, 3, checkpoint=tmp_path)
    assert saved == [3, 1, 2, 3]
