"""`flawline demo`: the main job on embedded defaults, nothing needed but this package."""

from __future__ import annotations

import logging
import re
import tempfile
import threading
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console

from flawline_edge.broker import free_port
from flawline_edge.console import ConsoleView
from flawline_edge.daemon import stop_on_signals
from flawline_edge.rejects import RejectWriter
from flawline_edge.station import Inspection, Station
from flawline_inspect.bundle import Bundle
from flawline_inspect.config import parse_config
from flawline_inspect.errors import InputError
from flawline_inspect.frame import PICTURE_SUFFIXES

__all__ = ["DEMO_BUNDLE", "demo"]

DEMO_BUNDLE = Path(str(files("flawline_edge").joinpath("demo.flawline")))
_ROOT = "flawline/demo/hall1/line1/station1"


def demo(
    *,
    parts: int | None = None,
    seconds: float | None = None,
    camera: str | None = None,
    bundle: Path = DEMO_BUNDLE,
    fps: float = 5.0,
    seed: int = 0,
    port: int = 0,
    out: Path | None = None,
) -> int:
    """Watch a simulated line: embedded broker, camera, shipped bundle and daemon, live on the console.

    Parameters
    ----------
    parts
        End after this many parts.
    seconds
        End after this many seconds. Without either it runs until Ctrl-C.
    camera
        Your own instead of the simulated one: a number (/dev/videoN), a video file, a folder of pictures, or a URL.
    bundle
        Your own model instead of the shipped one, which knows the simulated part only.
    fps
        Parts a second of the simulated line, or pictures a second of a folder.
    seed
        Of the simulated line; another one gives other parts.
    port
        Of the embedded broker; 0 takes a free one. The console names it, for mosquitto_sub.
    out
        Folder for picture, heatmap overlay and expected picture of each rejected part.
    """
    if parts is not None and parts < 1:
        raise InputError(f"--parts is {parts}, expected at least 1")
    if seconds is not None and seconds <= 0:
        raise InputError(f"--seconds is {seconds}, expected more than 0")
    if not fps > 0:
        raise InputError(f"--fps is {fps}, expected more than 0")
    console = Console(highlight=False, soft_wrap=True)
    opened = Bundle.open(bundle)
    port = port or free_port()
    with ExitStack() as stack:
        state_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="flawline-demo-"))
        config = parse_config(
            {
                "station": "demo",
                "state_dir": state_dir,
                "cameras": [{"name": "top", "source": _source(camera, fps, seed)}],
                "trigger": {"kind": "free", "max_rate": 1000},
                "recipes": {1: str(bundle.resolve())},
                "mqtt": {"host": "embedded", "port": port, "root": _ROOT, "scalar_topics": True},
                # A laptop that is busy with other things should not fill the demonstration with deadlines.
                "deadline_ms": 1000,
            },
            base=Path.cwd(),
        )
        view = ConsoleView(
            console,
            f"flawline demo · model {opened.model_id} · {_camera_text(camera)} · mosquitto_sub -p {port} -t '#'",
        )
        if camera is not None and bundle == DEMO_BUNDLE:
            console.print(
                "The shipped model knows the simulated part only; train one on your parts and give it with --bundle."
            )
        stop = stack.enter_context(stop_on_signals())
        rejects = stack.enter_context(RejectWriter(out, opened.frame, opened.threshold)) if out is not None else None
        observers: list[Any] = [view] + ([rejects] if rejects is not None else [])
        if parts is not None:
            observers.append(_StopAfter(parts, stop))
        station = Station(config, observers=observers)
        if seconds is not None:
            timer = threading.Timer(seconds, stop.set)
            timer.daemon = True
            timer.start()
            stack.callback(timer.cancel)
        stack.enter_context(view)
        logging.getLogger("amqtt").setLevel(logging.ERROR)
        code = station.run(stop)
    console.print(view.summary(), markup=False)
    if rejects is not None:
        console.print(
            f"{rejects.written} rejected parts in {out}: *_picture.png, *_heatmap.png, *_expected.png",
            markup=False,
        )
    return code


class _StopAfter:
    """Ends the station after a number of parts."""

    def __init__(self, parts: int, stop: threading.Event) -> None:
        self._left, self._stop = parts, stop

    def __call__(self, inspection: Inspection) -> None:
        if not inspection.late:
            self._left -= 1
        if self._left <= 0:
            self._stop.set()


def _source(camera: str | None, fps: float, seed: int) -> dict[str, Any]:
    """`--camera` as the configuration has it."""
    if camera is None:
        return {"kind": "simulated", "seed": seed, "fps": fps, "defect_rate": 0.2}
    if camera.isdigit() or camera.startswith("/dev/"):
        return {"kind": "device", "device": int(camera) if camera.isdigit() else camera}
    if re.match(r"[a-z]+://", camera):
        return {"kind": "stream", "url": camera}
    path = Path(camera).resolve()
    if path.is_dir():
        return {"kind": "folder", "path": str(path), "fps": fps}
    if not path.exists():
        raise InputError(
            f"--camera {camera}: there is no such file or folder; give a number, a file, a folder or a URL"
        )
    if path.suffix.lower() in PICTURE_SUFFIXES:
        raise InputError(f"--camera {camera}: is a single picture; use `flawline check` for it, or give its folder")
    return {"kind": "video", "path": str(path)}


def _camera_text(camera: str | None) -> str:
    return "simulated line" if camera is None else re.sub(r"//[^/@]*@", "//***@", camera)
