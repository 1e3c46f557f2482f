"""`flawline build`: compile a bundle for the GPU in this machine."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from flawline_engines.build import build_plan
from flawline_engines.engine import MAX_BATCH, MODEL_MEMBERS, Precision, model_for
from flawline_engines.parity_command import print_parity
from flawline_engines.tensorrt import BuildProgress, BuildSettings, ModuleName, compile_plan, load_module
from flawline_inspect.bundle import Bundle
from flawline_inspect.errors import EXIT_DONE, EXIT_FAILURE, EngineError, InputError

__all__ = ["build"]


def build(
    bundle: Path,
    /,
    *,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    engine: Literal["auto", "tensorrt", "tensorrt_rtx"] = "auto",
    state_dir: Path | None = None,
    level: int | None = None,
    workspace_mb: int | None = None,
    max_batch: int = 16,
    builder_only: bool = False,
    niceness: int = 0,
) -> int:
    """Compile a bundle for the GPU in this machine, run the parity gate, store the plan. Ends with 1 when it is refused.

    Parameters
    ----------
    bundle
        A .flawline file.
    precision
        fp32; fp16 and int8 for a bundle that `flawline quantize` has been through.
    engine
        tensorrt, tensorrt_rtx, or auto: the first of them that is installed.
    state_dir
        The station's state directory, below which plans are kept; without it the user's cache folder.
    level
        Of optimisation: 0 compiles fastest, 5 searches longest for faster kernels. TensorRT's own choice is 3.
    workspace_mb
        Memory that the plan may take besides its weights, in MiB; it grows with the frame and with --max-batch. Without it TensorRT
        takes what it needs.
    max_batch
        Frames in one execution, 1 to 64. More serves many cameras faster and takes more of the GPU's memory; larger batches are
        cut into pieces. The plan that was built last serves.
    builder_only
        Only see whether the graphs compile, with tensorrt_rtx, which needs no GPU for that; nothing is stored.
    niceness
        How far to step back behind other processes, 0 to 19: a running station comes first.
    """
    if level is not None and not 0 <= level <= 5:
        raise InputError(f"--level is {level}, expected 0 to 5")
    if workspace_mb is not None and not 16 <= workspace_mb <= 1 << 20:
        raise InputError(f"--workspace-mb is {workspace_mb}, expected 16 to {1 << 20}")
    if not 1 <= max_batch <= MAX_BATCH:
        raise InputError(f"--max-batch is {max_batch}, expected 1 to {MAX_BATCH}")
    if not 0 <= niceness <= 19:
        raise InputError(f"--niceness is {niceness}, expected 0 to 19")
    opened = Bundle.open(bundle)
    workspace = None if workspace_mb is None else workspace_mb << 20
    settings = BuildSettings(workspace_bytes=workspace, level=level, max_batch=max_batch)
    os.nice(niceness)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if builder_only:
        return _builder_only(opened, settings, console)
    module = _module(engine)
    with _Bar(console) as bar:
        built = build_plan(
            opened, module, precision=precision, state_dir=state_dir, settings=settings, on_progress=bar.show
        )
    out = Console(highlight=False, soft_wrap=True)
    print_parity(out, built.parity)
    out.print(
        f"{built.path}: {built.n_bytes / 1e6:.1f} MB for {built.gpu.name} (compute capability "
        f"{built.gpu.compute_capability}), compiled in {built.compile_s:.1f} s",
        markup=False,
    )
    return EXIT_DONE if built.parity.accepted else EXIT_FAILURE


def _module(engine: str) -> ModuleName:
    names: tuple[ModuleName, ...] = ("tensorrt", "tensorrt_rtx")
    for name in names:
        if engine == name or (engine == "auto" and importlib.util.find_spec(name)):
            return name
    raise EngineError(
        "neither tensorrt nor tensorrt_rtx is installed; pip install 'flawline[tensorrt]' for data-centre GPUs, "
        "pip install 'flawline[tensorrt-rtx]' for RTX cards, apt install python3-libnvinfer on a Jetson "
        "(see docs/edge-gpu.md)"
    )


def _builder_only(bundle: Bundle, settings: BuildSettings, console: Console) -> int:
    load_module("tensorrt_rtx")
    out = Console(highlight=False, soft_wrap=True)
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    for precision in precisions:
        if MODEL_MEMBERS[precision] not in bundle.manifest.members:
            continue
        begin = time.monotonic()
        with _Bar(console) as bar:
            plan, _ = compile_plan(
                "tensorrt_rtx", model_for(bundle, precision), settings=settings, on_progress=bar.show
            )
        out.print(
            f"{bundle.model_id} {precision}: compiles; not run ({len(plan) / 1e6:.1f} MB in "
            f"{time.monotonic() - begin:.1f} s)",
            markup=False,
        )
    return EXIT_DONE


class _Bar:
    """The builder's phases, one bar each."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<40.40}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, object] = {}

    def __enter__(self) -> _Bar:
        self._progress.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.__exit__(None, None, None)

    def show(self, update: BuildProgress) -> None:
        if update.phase not in self._tasks:
            self._tasks[update.phase] = self._progress.add_task(update.phase, total=1.0)
        self._progress.update(self._tasks[update.phase], completed=update.share)  # type: ignore[arg-type]
