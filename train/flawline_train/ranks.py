"""Fitting with several processes on one machine, one a GPU (NCCL), or on the CPU (gloo): distributed data parallelism.

Each rank has its own copy of the network and draws its own batches; after each step's backward pass the gradients are averaged,
so the weights stay the same everywhere and the first rank's are the result. A step sees `devices` times the pictures at the
learning rate of one. Batch normalisation uses each rank's own batch; its running statistics are the first rank's.

The processes are spawned, not forked: CUDA and the threads of torch do not survive a fork. Everything that crosses between them
goes through pipes of this very program; nothing is left on disk.
"""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
import safetensors.torch
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from numpy.typing import NDArray
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from flawline_inspect.errors import FlawlineError
from flawline_train.autoencoders import Autoencoder, Batch
from flawline_train.fit import FitProgress, FitResult, batch_rng, batch_workers, check_devices, make_batch
from flawline_train.trainer import Job, run_trainer

__all__ = ["fit_on_ranks"]

_POLL_S = 0.1


def fit_on_ranks(
    network: Autoencoder,
    frames: NDArray[np.uint8],
    job: Job,
    device: torch.device,
    devices: int,
    on_progress: Callable[[FitProgress], None] | None,
    should_stop: Callable[[], bool],
) -> FitResult:
    """`flawline_train.fit.fit` on `devices` processes. An error in one of them, or here, ends all."""
    check_devices(device, devices)
    context = get_context("spawn")
    stop = context.Event()
    pipes = [context.Pipe(duplex=False) for _ in range(devices)]
    threads = max(1, torch.get_num_threads() // devices)
    # What torch hands to another process lies in shared memory: a copy, or the ranks would train in each other's weights.
    network.cpu()
    arguments = (
        devices, find_free_network_port(), threads, device.type, copy.deepcopy(network), frames, job,
        [sender for _, sender in pipes], stop,
    )  # fmt: skip
    resource_tracker.ensure_running()  # its own start would unblock the signal again
    # Ctrl-C reaches every process of the terminal; what becomes of the training is decided here alone.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        ranks = start_processes(  # type: ignore[no-untyped-call]  # torch has no types there
            _rank, arguments, devices, join=False, daemon=True, start_method="spawn"
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for _, sender in pipes:
        sender.close()
    try:
        weights, result = _follow(ranks, [receiver for receiver, _ in pipes], stop, on_progress, should_stop)
    finally:
        for process in ranks.processes:
            if process.is_alive():
                process.kill()
            process.join()
    network.load_state_dict(safetensors.torch.load(weights))
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    network.eval()
    return result


def _follow(
    ranks: Any,
    receivers: list[Connection],
    stop: Event,
    on_progress: Callable[[FitProgress], None] | None,
    should_stop: Callable[[], bool],
) -> tuple[bytes, FitResult]:
    """The first rank's weights and result, once all ranks have ended well."""
    weights, result = b"", None
    ended = False
    while not ended:
        open_pipes = [receiver for receiver in receivers if not receiver.closed]
        for receiver in connection.wait(open_pipes, _POLL_S if open_pipes else None):
            assert isinstance(receiver, Connection)
            try:
                kind, content = receiver.recv()
            except EOFError:
                receiver.close()
                continue
            if kind == "error":
                raise FlawlineError(content)
            if kind == "progress" and on_progress is not None:
                on_progress(FitProgress(*content))
            if kind == "done":
                result = FitResult(**content)
                weights = receiver.recv_bytes()
        if should_stop():
            stop.set()
        try:
            ended = ranks.join(timeout=0 if open_pipes else _POLL_S)
        except (ProcessRaisedException, ProcessExitedException) as exc:
            raise FlawlineError(
                f"training process {exc.error_index} of {len(receivers)} failed ({str(exc).strip().splitlines()[-1]}); "
                "the others were stopped"
            ) from exc
    assert result is not None
    return weights, result


def _rank(
    rank: int,
    devices: int,
    port: int,
    threads: int,
    device_type: str,
    network: Autoencoder,
    frames: NDArray[np.uint8],
    job: Job,
    senders: list[Connection],
    stop: Event,
) -> None:
    """One of the processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for other, sender in enumerate(senders):
        if other != rank:
            sender.close()
    pipe = senders[rank]
    # What torchrun would set: Lightning then starts no processes of its own.
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(devices), LOCAL_RANK=str(rank), NODE_RANK="0"
    )
    torch.set_num_threads(threads)
    torch.manual_seed(job.seed + rank)
    device = torch.device(device_type) if device_type == "cpu" else torch.device(device_type, rank)
    own = copy.deepcopy(network)  # out of the memory that all ranks share

    def make(step: int) -> Batch:
        return make_batch(frames, own.corruption, 0.0, batch_rng(job.seed, step, rank), device, job.crop)

    def tell(progress: FitProgress) -> None:
        pipe.send(("progress", (progress.share, progress.step, progress.loss)))

    try:
        result = run_trainer(
            own,
            make,
            job,
            device=device,
            workers=batch_workers(device),
            ranks=devices,
            on_progress=tell if rank == 0 else None,
            should_stop=stop.is_set,
        )
    except FlawlineError as exc:
        pipe.send(("error", str(exc)))
        return
    if rank == 0:
        state = {name: tensor.cpu().contiguous().clone() for name, tensor in own.state_dict().items()}
        pipe.send(("done", asdict(result)))
        pipe.send_bytes(safetensors.torch.save(state))
    torch.distributed.destroy_process_group()
