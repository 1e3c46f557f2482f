"""One process's share of a fit: a Lightning Trainer with our budget, batches, average and checkpoints around it.

`flawline_train.fit` calls this in its own process, `flawline_train.ranks` in each of several. All ranks have to do the same at the
same step or they wait for each other for ever; so the first one decides when to stop and when to save, and tells the others.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import math
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.accelerators import Accelerator, CPUAccelerator, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from numpy.typing import NDArray

from flawline_inspect.errors import FlawlineError, InputError
from flawline_train.autoencoders import Autoencoder, Batch
from flawline_train.averaging import Averaging
from flawline_train.checkpoints import CHECKPOINT, SafeCheckpoints, load_checkpoint
from flawline_train.fit import Budget, FitProgress, FitResult, Schedule, has_bf16
from flawline_train.lightning_module import FittingModule

__all__ = ["CHECKPOINT_SECONDS", "Batches", "Job", "identity_of", "plain_interrupts", "run_trainer"]

CHECKPOINT_SECONDS = 120.0
"""At most this much training is lost when the machine goes down."""
SMOOTHING = 0.98
_ACCELERATORS: dict[str, type[Accelerator]] = {"cpu": CPUAccelerator, "cuda": CUDAAccelerator, "mps": MPSAccelerator}


@dataclass(frozen=True, slots=True)
class Job:
    """What to fit, by how much, and what to write meanwhile. `ema_decay` 0 takes the last weights as they are.

    `identity` tells this training from another one's checkpoints, see `identity_of`. `crop`: see `flawline_train.fit.fit`.
    """

    budget: Budget
    seed: int
    schedule: Schedule
    ema_decay: float
    checkpoint: Path | None = None
    resume: bool = False
    tensorboard: Path | None = None
    identity: str = ""
    crop: int | None = None


def identity_of(
    network: Autoencoder, frames: NDArray[np.uint8], seed: int, schedule: Schedule, crop: int | None = None
) -> str:
    """The same for two trainings exactly if the one may go on where the other stopped: network, pictures, seed, schedule, crop."""
    cropped = "" if crop is None else f" crop {crop}"
    digest = hashlib.sha256(f"{type(network).__qualname__} {seed} {schedule} {frames.shape}{cropped}".encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()


class Batches:
    """An endless series of batches, `make(step)` each from `first()` on, made ahead by `workers` threads.

    Each batch depends on its step alone, so that neither the number of threads nor their luck changes it.
    """

    def __init__(self, make: Callable[[int], Batch], first: Callable[[], int], workers: int) -> None:
        self._make = make
        self._first = first
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None

    def __iter__(self) -> Iterator[Batch]:
        step = self._first()
        if not self._workers:
            while True:
                yield self._make(step)
                step += 1
        self._pool = ThreadPoolExecutor(self._workers, "batch")
        ahead: deque[Future[Batch]] = deque()
        while True:
            while len(ahead) < self._workers:
                ahead.append(self._pool.submit(self._make, step))
                step += 1
            yield ahead.popleft().result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class _Module(FittingModule):
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Our batches are made where they are needed."""
        return batch


class Pace(pl.Callback):
    """Knows the budget: sets the share that is done, ends the training, and saves it now and then."""

    def __init__(
        self, job: Job, on_progress: Callable[[FitProgress], None] | None, should_stop: Callable[[], bool]
    ) -> None:
        self._job = job
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._started = self._saved = time.monotonic()
        self._done_before = 0.0  # share of the budget that an earlier run has spent
        self._rng: dict[str, Any] | None = None
        self.loss = math.nan
        self.share = 0.0
        self.seconds = 0.0
        self.interrupted = False

    def _share_at(self, step: int) -> float:
        return self._job.budget.share_done(step, self._started, self._done_before)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = self._saved = time.monotonic()
        if self._rng is not None and trainer.is_global_zero:
            torch.set_rng_state(self._rng["cpu"])
            if "cuda" in self._rng and pl_module.device.type == "cuda":
                torch.cuda.set_rng_state(self._rng["cuda"], pl_module.device)
        self._go_on(trainer, pl_module, self._share_at(trainer.global_step), stop=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, value = trainer.global_step, float(outputs["loss"])
        if not math.isfinite(value):
            raise FlawlineError(f"training diverged at step {step - 1} (loss {value}); try another --seed")
        self.loss = value if math.isnan(self.loss) else SMOOTHING * self.loss + (1 - SMOOTHING) * value
        share = self._share_at(step)
        if self._on_progress is not None:
            self._on_progress(FitProgress(min(1.0, share), step, self.loss))
        stop = self._should_stop()
        save = self._job.checkpoint is not None and (
            stop or share >= 1 or time.monotonic() - self._saved > CHECKPOINT_SECONDS
        )
        if trainer.world_size > 1:
            share, stop, save = _from_first_rank(share, stop, save, pl_module.device)
        self._go_on(trainer, pl_module, share, stop)
        if save:
            assert self._job.checkpoint is not None
            trainer.save_checkpoint(self._job.checkpoint / CHECKPOINT)
            self._saved = time.monotonic()

    def _go_on(self, trainer: pl.Trainer, module: pl.LightningModule, share: float, stop: bool) -> None:
        assert isinstance(module, FittingModule)
        self.share = module.share = share
        self.interrupted = stop
        self.seconds = time.monotonic() - self._started
        trainer.should_stop = stop or share >= 1

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        rng = {"cpu": torch.get_rng_state()}
        if pl_module.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(pl_module.device)
        checkpoint["flawline"] = {
            "identity": self._job.identity,
            "share": self.share,
            "loss": self.loss,
            "rng": rng,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = checkpoint["flawline"]
        self._done_before, self.loss, self._rng = state["share"], state["loss"], state["rng"]


def _from_first_rank(share: float, stop: bool, save: bool, device: torch.device) -> tuple[float, bool, bool]:
    told = torch.tensor([share, stop, save], dtype=torch.float32, device=device)
    torch.distributed.broadcast(told, 0)
    share, stop, save = told.tolist()
    return share, bool(stop), bool(save)


def run_trainer(
    network: Autoencoder,
    make: Callable[[int], Batch],
    job: Job,
    *,
    device: torch.device,
    workers: int,
    ranks: int = 1,
    on_progress: Callable[[FitProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> FitResult:
    """Fit `network` in place with the batches of `make(step)`; leaves it in evaluation mode on `device`.

    Of several `ranks` the environment says which one this process is, as torchrun's does. Raises `InputError` for a checkpoint
    that is missing or another training's, `FlawlineError` when the loss is no longer finite.
    """
    ckpt_path = _checkpoint_to_resume(job)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    network.train()
    module = _Module(network, job.schedule)
    pace = Pace(job, on_progress, should_stop)
    callbacks: list[pl.Callback] = [Averaging(job.ema_decay)] if job.ema_decay else []
    if job.tensorboard is not None:
        from flawline_train.tensorboard import TensorBoard

        callbacks.append(TensorBoard(job.tensorboard))
    callbacks.append(pace)  # last: what it saves holds the average of this very step
    with _quiet(), plain_interrupts():
        trainer = pl.Trainer(
            accelerator=_ACCELERATORS[device.type](),
            strategy=_strategy(device, ranks, network, make),
            devices=ranks if ranks > 1 or device.index is None else [device.index],
            max_epochs=-1,  # the budget ends it
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
            plugins=[SafeCheckpoints()],
        )
        batches = Batches(make, lambda: trainer.global_step, workers)
        try:
            trainer.fit(module, batches, ckpt_path=ckpt_path)
        finally:
            batches.close()
    network.to(device)
    network.eval()
    return FitResult(trainer.global_step, pace.loss, pace.seconds, has_bf16(device), pace.interrupted)


def _strategy(device: torch.device, ranks: int, network: Autoencoder, make: Callable[[int], Batch]) -> Strategy:
    if ranks == 1:
        return SingleDeviceStrategy(device)
    # Weights that the loss does not touch hold up the ranks for ever unless they are looked for, which costs every step.
    probe = copy.deepcopy(network)
    probe.loss(make(0)).backward()  # type: ignore[no-untyped-call]  # torch has no types there
    unused = any(weight.requires_grad and weight.grad is None for weight in probe.parameters())
    backend = "nccl" if device.type == "cuda" else "gloo"
    return DDPStrategy(process_group_backend=backend, find_unused_parameters=unused)


def _checkpoint_to_resume(job: Job) -> Path | None:
    if job.checkpoint is None:
        if job.resume:
            raise InputError("--resume needs --checkpoint DIR, the folder in which the interrupted training saved")
        return None
    path = job.checkpoint / CHECKPOINT
    if not job.resume:
        if path.is_file():
            raise InputError(
                f"{path}: a training was saved there; go on with --resume, or give --checkpoint another folder"
            )
        return None
    if not path.is_file():
        raise InputError(f"{job.checkpoint}: holds no {CHECKPOINT} to resume from; begin without --resume")
    found = cast(dict[str, Any], load_checkpoint(path).get("flawline", {})).get("identity")
    if found != job.identity:
        raise InputError(
            f"{path}: is the checkpoint of another training; resume with the same pictures, method, size, width and seed"
        )
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's remarks on hardware and loaders are for people who call it themselves."""
    logger = logging.getLogger("lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    for child in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(child).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def plain_interrupts() -> Iterator[None]:
    """Ctrl-C in the middle of a step is a `KeyboardInterrupt` here too.

    Lightning turns it into `exit(1)` and leaves the signal ignored.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit as exc:
        if main:
            signal.signal(signal.SIGINT, handler)
        if isinstance(exc.__context__, KeyboardInterrupt):
            raise exc.__context__ from None
        raise
