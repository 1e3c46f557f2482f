"""`flawline bench`: what this machine makes of a bundle, and what the daemon adds to it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import json as json_module
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from flawline_edge.bench_tables import Report, print_report
from flawline_edge.cameras import CameraFrame
from flawline_edge.demo_command import DEMO_BUNDLE
from flawline_edge.station import Inspection, Station
from flawline_engines.bench import (
    GraphCost,
    Latency,
    engine_for,
    graph_cost,
    has_precision,
    measure,
    peak_gflops,
    python_cost,
    times_in_turn,
)
from flawline_engines.engine import (
    GPU_KINDS,
    MODEL_MEMBERS,
    Engine,
    EngineKind,
    Hint,
    Precision,
    installed_kinds,
    model_for,
    open_engine,
)
from flawline_engines.gpu_memory import open_memory
from flawline_engines.onnx_file import network_alone
from flawline_engines.roofline import bound, copy_gb_per_s, gpu_copy_gb_per_s, traffic
from flawline_inspect.bundle import MODEL, Bundle
from flawline_inspect.clock import wall_clock
from flawline_inspect.config import EMBEDDED_BROKER, parse_config
from flawline_inspect.errors import EXIT_DONE, BrokerError, CameraError, EngineError, InputError

__all__ = ["bench"]

MAX_BATCH = 64
MIN_SHARE_RUNS = 8
"""Of the network and of the whole: a large batch of a large network takes a second."""
PAUSE_S = 0.02
"""Between a verdict and the next part, so that no part waits for the one before it."""
STARTING_S = 0.1
"""Until the first verdict, pictures are handed over at this pace."""
WARM_UP_PARTS = 10
"""Parts that the daemon inspects first and that are not measured."""
FSYNCS = 200
FSYNC_BYTES = 4096  # a page of the journal's file
DEMO_PARTS = 30
DEMO_TIMEOUT_S = 120.0
DEADLINE_MS = 10_000.0
"""Long: a part that misses its deadline tells nothing of the daemon."""

_MOSQUITTO_START_S = 5.0
_SYSTEM_PROGRAMS = "/usr/sbin"  # Debian puts mosquitto where no ordinary PATH looks


def bench(
    bundle: Path = DEMO_BUNDLE,
    /,
    *,
    engines: list[Literal["tensorrt", "tensorrt_rtx", "openvino", "onnxruntime"]] | None = None,
    threads: list[int] | None = None,
    hint: Hint = "latency",
    batches: list[int] | None = None,
    seconds: float = 1.0,
    parts: int = 200,
    state_dir: Path | None = None,
    json: bool = False,
) -> None:
    """Measure latency, throughput, how much of the machine's limit that is, and what the daemon adds.

    Parameters
    ----------
    bundle
        A .flawline file; without it the demo's.
    engines
        tensorrt, tensorrt_rtx, openvino or onnxruntime; may be repeated. Without it all that work here. Each is measured in
        every precision that it and the bundle have.
    threads
        Of the engine, 0 leaves their number to it; may be repeated. Without it 1 and all cores.
    hint
        Of openvino: latency, or throughput, which spreads the frames of a call over several requests.
    batches
        Frames per call; may be repeated. Without it 1 and 8.
    seconds
        Time for each measurement of an engine.
    parts
        Parts that the daemon inspects for its overhead; 0 leaves the daemon out.
    state_dir
        Where `flawline build` keeps plans; without it the user's cache folder. TensorRT's plan is compiled if there is none.
    json
        Print one JSON object instead of tables.
    """
    cores = _cores()
    threads = _unique(threads or [1, cores])
    batches = _unique(batches or [1, 8])
    _check_options(threads, batches, seconds, parts)
    opened = Bundle.open(bundle)
    progress = Console(stderr=True, highlight=False)
    progress.print("counting the graph's operations", markup=False)
    cost = graph_cost(opened.member(MODEL), _hw(opened))
    report: Report = {
        "model": opened.model_id,
        "frame_wh": [opened.frame.width, opened.frame.height],
        "machine": _machine(cores),
        "gflop_per_frame": {"network": cost.network_gflop, "tail": cost.tail_gflop, "total": cost.gflop},
        "bytes": {
            precision: dataclasses.asdict(traffic(model_for(opened, precision), _hw(opened), cost, precision))
            for precision in _precisions(opened)
        },
        "engines": list(
            _engine_rows(
                opened, cost, engines or installed_kinds(), threads, hint, batches, seconds, state_dir, progress
            )
        ),
        "daemon": None,
        "memory": None,
    }
    if not report["engines"]:
        raise EngineError("no engine could be measured; see above for the reasons")
    if parts:
        report["daemon"] = _daemon(bundle, parts, progress)
        report["memory"] = _memory(bundle, progress)
    if json:
        print(json_module.dumps(report))
    else:
        print_report(Console(highlight=False), report)


def _check_options(threads: list[int], batches: list[int], seconds: float, parts: int) -> None:
    for number in threads:
        if not 0 <= number <= 256:
            raise InputError(f"--threads is {number}, expected 0 to 256")
    for number in batches:
        if not 1 <= number <= MAX_BATCH:
            raise InputError(f"--batches is {number}, expected 1 to {MAX_BATCH}")
    if not 0 < seconds <= 3600:
        raise InputError(f"--seconds is {seconds}, expected more than 0 and at most 3600")
    if parts < 0:
        raise InputError(f"--parts is {parts}, expected at least 1, or 0 to leave the daemon out")


def _unique(numbers: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(numbers))


def _cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine(cores: int) -> Report:
    processor = platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    return {
        "processor": processor,
        "cores": cores,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {kind: _version(kind) for kind in installed_kinds()},
    }


def _version(kind: EngineKind) -> str:
    try:
        return version(kind)
    except PackageNotFoundError:  # a system package, as a Jetson's TensorRT
        return str(importlib.import_module(kind).__version__)


# --- engines ---------------------------------------------------------------------------------------------------------


def _engine_rows(
    bundle: Bundle,
    cost: GraphCost,
    kinds: Sequence[EngineKind],
    threads: list[int],
    hint: Hint,
    batches: list[int],
    seconds: float,
    state_dir: Path | None,
    progress: Console,
) -> Iterator[Report]:
    golden = [picture.fitted for picture in bundle.golden()] or [_blank(bundle)]
    progress.print("how fast memory is copied", markup=False)
    copy = {n: copy_gb_per_s(n) for n in threads}
    network_gflop = graph_cost(network_alone(bundle.member(MODEL)), _hw(bundle)).gflop
    for kind in dict.fromkeys(kinds):
        is_gpu = kind in GPU_KINDS
        for precision in _precisions(bundle, kind):
            for n in [0] if is_gpu else threads:
                try:
                    with contextlib.ExitStack() as stack:
                        progress.print(f"{kind} {precision}, {_threads(n)}: what its convolutions reach", markup=False)
                        peak = peak_gflops(kind, precision=precision, threads=n)
                        rate = gpu_copy_gb_per_s(open_memory()) if is_gpu else copy[n]
                        network: Engine | None = None
                        if not is_gpu:  # whose engines take no graph without a heatmap
                            alone = network_alone(model_for(bundle, precision))
                            network = stack.enter_context(engine_for(alone, _hw(bundle), kind, precision, n))
                        engine = stack.enter_context(
                            open_engine(bundle, kind, precision=precision, threads=n, hint=hint, state_dir=state_dir)
                        )
                        for batch in batches:
                            progress.print(f"{kind} {precision}, {_threads(n)}: batch {batch}", markup=False)
                            frames = np.stack([golden[i % len(golden)] for i in range(batch)])
                            row = _engine_row(engine, n, measure(engine, frames, seconds=seconds), cost, peak)
                            row |= _roofline(bundle, engine, row, cost, peak, rate)
                            if network is not None:
                                row |= _shares(engine, network, frames, network_gflop, peak, seconds)
                            if batch == 1:
                                row |= _python(engine, frames, seconds)
                            yield row
                except EngineError as exc:
                    progress.print(f"flawline: {kind} {precision} is left out: {exc}", style="yellow", markup=False)
                    break


def _precisions(bundle: Bundle, kind: EngineKind | None = None) -> list[Precision]:
    """What this engine, or any, can compute of what the bundle has."""
    found: list[Precision] = ["fp32"]
    if kind in ("openvino", None) and "openvino" in installed_kinds() and has_precision("openvino", "bf16"):
        found.append("bf16")
    smaller: tuple[Precision, ...] = ("fp16", "int8")
    return [*found, *(name for name in smaller if MODEL_MEMBERS[name] in bundle.manifest.members)]


def _engine_row(engine: Engine, threads: int, latency: Latency, cost: GraphCost, peak: float | None) -> Report:
    gflops = cost.gflop * latency.batch / latency.median_ms * 1e3
    return {
        "engine": engine.kind,
        "precision": engine.precision,
        "threads": threads,
        **dataclasses.asdict(latency),
        "gflop_per_s": gflops,
        "peak_gflop_per_s": peak,
        "share_of_peak": None if peak is None else gflops / peak,
        # Unknown until measured, and for some engines and batches never.
        "copy_gb_per_s": None,
        "bound_ms": None,
        "bound_by": None,
        "share_of_bound": None,
        "layers_through_memory_ms": None,
        "network_ms": None,
        "network_share_of_peak": None,
        "tail_share_of_network": None,
        "bare_ms": None,
        "python_ms": None,
        "python_share": None,
    }


def _roofline(bundle: Bundle, engine: Engine, row: Report, cost: GraphCost, peak: float, copy: float) -> Report:
    """How fast this call could be, and how much of that it is."""
    moved = traffic(model_for(bundle, engine.precision), _hw(bundle), cost, engine.precision)
    least = bound(cost, moved, row["batch"], peak_gflops=peak, copy_gb_per_s=copy)
    return {
        "copy_gb_per_s": copy,
        "bound_ms": least.ms,
        "bound_by": least.limited_by,
        "share_of_bound": least.ms / row["median_ms"],
        "layers_through_memory_ms": row["batch"] * moved.layers / copy / 1e6,
    }


def _shares(
    engine: Engine, network: Engine, frames: NDArray[np.uint8], gflop: float, peak: float, seconds: float
) -> Report:
    """The network without its tail against the whole, in turn, and the fastest runs, as for the peak: on a machine that does
    other things too, the shorter of two calls is interrupted less often, and their medians would exaggerate.
    """
    calls = [lambda: engine.infer(frames), lambda: network.infer(frames)]
    whole_ms, network_ms = (float(ms.min()) for ms in times_in_turn(calls, seconds=seconds, min_runs=MIN_SHARE_RUNS))
    return {
        "network_ms": network_ms,
        "network_share_of_peak": gflop * len(frames) / network_ms * 1e3 / peak,
        "tail_share_of_network": (whole_ms - network_ms) / network_ms,
    }


def _python(engine: Engine, frames: NDArray[np.uint8], seconds: float) -> Report:
    """What we add to a call of the runtime itself."""
    found = python_cost(engine, frames, seconds=seconds)
    return {} if found is None else {"bare_ms": found.bare_ms, "python_ms": found.ms, "python_share": found.share}


def _hw(bundle: Bundle) -> tuple[int, int]:
    return bundle.frame.height, bundle.frame.width


def _blank(bundle: Bundle) -> NDArray[np.uint8]:
    return np.zeros((bundle.frame.height, bundle.frame.width, 3), np.uint8)


def _threads(n: int) -> str:
    return "threads as it likes" if n == 0 else f"{n} thread{'s' if n > 1 else ''}"


# --- the daemon ------------------------------------------------------------------------------------------------------


class _PreparedLine:
    """A live camera whose pictures were made beforehand, and the observer that asks it for the next one.

    A picture is handed over `PAUSE_S` after the last verdict: the station is idle then, as between two parts of a line
    that it keeps up with.
    """

    live = True
    interval_s = 0.0

    def __init__(self, pictures: Sequence[NDArray[np.generic]], parts: int) -> None:
        self.inspections: list[Inspection] = []
        self._pictures, self._parts = pictures, parts
        self._given = 0
        self._left, self._answered = threading.Event(), threading.Event()

    def __enter__(self) -> _PreparedLine:
        self._left.clear()
        self._answered.set()
        return self

    def __exit__(self, *exc: object) -> None:
        self._left.set()
        self._answered.set()  # a read that waits for the last verdict ends, too

    def read(self) -> CameraFrame | None:
        # A station that is still starting drops what it sees; afterwards a verdict comes at the deadline at the latest.
        self._answered.wait(2 * DEADLINE_MS / 1e3 if self.inspections else STARTING_S)
        if self._left.wait(PAUSE_S):
            raise CameraError("the prepared camera was left")
        if len(self.inspections) >= self._parts:
            return None
        self._answered.clear()
        picture = self._pictures[self._given % len(self._pictures)]
        self._given += 1
        return CameraFrame(picture, wall_clock(), time.monotonic(), f"B{self._given:06d}")

    def __call__(self, inspection: Inspection) -> None:
        if not inspection.late:  # its trigger has had its answer
            self.inspections.append(inspection)
            self._answered.set()


def _daemon(bundle: Path, parts: int, progress: Console) -> Report | None:
    """The overhead of a whole station, on the engine that it takes by itself. None where there is no broker."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flawline-bench-", dir=_folder_on_disk())))
        progress.print(f"daemon: {FSYNCS} fsyncs of the disk, then {parts} parts", markup=False)
        fsync_ms = _fsync_ms(folder, FSYNCS // 2)
        try:
            host, port, broker = stack.enter_context(_broker())
        except BrokerError as exc:
            progress.print(f"flawline: the daemon is left out: {exc}", style="yellow", markup=False)
            return None
        config = parse_config(
            {
                "station": "bench",
                "state_dir": str(folder / "state"),
                "cameras": [{"name": "top", "source": {"kind": "simulated"}}],
                "trigger": {"kind": "free", "max_rate": 2 / PAUSE_S},
                "recipes": {1: str(bundle.resolve())},
                "mqtt": {"host": host, "port": port, "root": "flawline/bench"},
                "deadline_ms": DEADLINE_MS,
            },
            base=folder,
        )
        opened = Bundle.open(bundle)
        pictures = [golden.raw for golden in opened.golden()] or [_blank(opened)]
        line = _PreparedLine(pictures, WARM_UP_PARTS + parts)
        station = Station(config, observers=[line], camera=line)
        code = station.run(threading.Event())
        fsync_ms += _fsync_ms(folder, FSYNCS - len(fsync_ms))  # before and after, since others use the disk, too
        filesystem = _filesystem(folder)
    judged = [
        (inspection, inspection.judgement)
        for inspection in line.inspections[WARM_UP_PARTS:][:parts]
        if inspection.judgement is not None
    ]
    if not judged:
        raise EngineError("the daemon judged no part in time; see the warnings above")
    overhead = [inspection.overhead_ms for inspection, _ in judged]
    return {
        "parts": len(judged),
        "not_in_time": station.counts.late,
        "acknowledged": code == EXIT_DONE,
        "broker": broker,
        "state_dir": str(folder.parent),
        "filesystem": filesystem,
        "overhead_ms": _spread(overhead),
        "journal_ms": _spread([inspection.journal_ms for inspection, _ in judged]),
        "fit_ms": _spread([judgement.fit_ms for _, judgement in judged]),
        "infer_ms": _spread([judgement.infer_ms for _, judgement in judged]),
        "fsync_ms": _spread(fsync_ms),
        "overhead_less_one_fsync_ms": statistics.median(overhead) - statistics.median(fsync_ms),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "p99": float(np.quantile(values, 0.99, method="inverted_cdf")),
    }


@contextlib.contextmanager
def _broker() -> Iterator[tuple[str, int, str]]:
    """Host, port and name of a broker for this machine alone: mosquitto, a process of its own as on a line, or amqtt."""
    program = shutil.which("mosquitto", path=os.pathsep.join((os.environ.get("PATH", os.defpath), _SYSTEM_PROGRAMS)))
    if program is None:
        if importlib.util.find_spec("amqtt") is None:
            raise BrokerError("there is no broker; install mosquitto, or pip install 'flawline[demo]'")
        yield EMBEDDED_BROKER, 0, "amqtt, in this process"
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    # Without a configuration mosquitto 2 serves this machine only, to anyone on it, and keeps nothing.
    process = subprocess.Popen([program, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + _MOSQUITTO_START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            if process.poll() is not None or time.monotonic() > until:
                raise BrokerError(f"{program} does not start; try it by hand: mosquitto -v -p {port}")
            time.sleep(0.02)
        yield "127.0.0.1", port, "mosquitto"
    finally:
        process.terminate()
        process.wait()


def _folder_on_disk() -> Path:
    """Where temporary files lie on a disk: in memory an fsync costs nothing, and a station's journal is on a disk."""
    candidates = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()]
    for folder in candidates:
        if os.access(folder, os.W_OK) and _filesystem(folder) not in ("tmpfs", "ramfs"):
            return folder
    return candidates[0]


def _filesystem(folder: Path) -> str:
    """The type of the file system that holds it, empty where the system does not say."""
    found, longest = "", -1
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            _, mounted_at, kind, *_ = line.split(" ")
            if folder.resolve().is_relative_to(mounted_at) and len(mounted_at) >= longest:
                found, longest = kind, len(mounted_at)
    return found


def _fsync_ms(folder: Path, n: int) -> list[float]:
    """What it takes this disk to keep one page: a file that grows like the journal's log, at the pace of the parts.

    Without the pauses a disk whose writes are limited or cached would look slower, or faster, than it is to the journal.
    """
    page, times = os.urandom(FSYNC_BYTES), []
    descriptor = os.open(folder / "fsync", os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        for _ in range(n):
            time.sleep(PAUSE_S)
            begin = time.perf_counter()
            os.write(descriptor, page)
            os.fsync(descriptor)
            times.append(1e3 * (time.perf_counter() - begin))
    finally:
        os.close(descriptor)
    return times


# --- memory ----------------------------------------------------------------------------------------------------------


def _memory(bundle: Path, progress: Console) -> Report:
    """In MiB: this process after all of the above, and the peak of a demo with the bundle in a process of its own."""
    own = _memory_mib("self")
    return {
        "process_resident_mib": own.get("VmRSS"),
        "process_peak_mib": own.get("VmHWM"),
        "demo_peak_mib": _demo_peak_mib(bundle, progress),
    }


def _memory_mib(process: int | Literal["self"]) -> dict[str, float]:
    """VmRSS and VmHWM; nothing where there is no /proc, or when the process has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM") if name in fields}


def _demo_peak_mib(bundle: Path, progress: Console) -> float | None:
    if importlib.util.find_spec("amqtt") is None or not _memory_mib("self"):
        return None
    progress.print(f"memory: a demo of {DEMO_PARTS} parts", markup=False)
    command = [sys.executable, "-m", "flawline_inspect.cli", "demo", "--bundle", str(bundle)]
    command += ["--parts", str(DEMO_PARTS), "--fps", "20"]
    peak: float | None = None
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            until = time.monotonic() + DEMO_TIMEOUT_S
            while process.poll() is None and time.monotonic() < until:
                peak = _memory_mib(process.pid).get("VmHWM", peak)  # a zombie has none, and the peak never falls
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            errors.seek(0)
            reason = (errors.read().decode(errors="replace").strip().splitlines() or ["it was killed"])[-1]
            progress.print(f"flawline: the demo failed: {reason}", style="yellow", markup=False)
            return None
    return peak
