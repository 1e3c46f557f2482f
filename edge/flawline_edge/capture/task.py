"""What a capture process is to do, and how long each step of it may take."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from flawline_edge.cameras.camera import Camera, open_camera
from flawline_inspect.config import CameraConfig, DeviceSource, SimulatedSource, Source, StreamSource

__all__ = ["LONGEST_RETRY_PAUSE_S", "CaptureTask", "open_source", "task_of"]

LONGEST_RETRY_PAUSE_S = 2.0
"""Between a failure of the camera and the next attempt inside the capture process."""

_DRAWING_S = 30.0
"""A simulated camera draws its line when it is opened, on a machine that may be busy with the start of everything."""


@dataclass(frozen=True, slots=True)
class CaptureTask:
    """`opener` (`module:function`) called with `arguments`, which JSON can carry, gives the camera, not yet entered.

    `open_timeout_s` and `read_timeout_s` are what the camera itself keeps to when its driver does; when entering or
    a read takes clearly longer, its process is ended. `name` is for messages.
    """

    name: str
    opener: str
    arguments: dict[str, Any]
    open_timeout_s: float
    read_timeout_s: float
    frozen_after_s: float = 0.0

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> CaptureTask:
        return cls(**json.loads(data))

    def open(self) -> Camera:
        module, _, function = self.opener.partition(":")
        make: Callable[..., Camera] = getattr(importlib.import_module(module), function)
        return make(**self.arguments)


def task_of(camera: CameraConfig) -> CaptureTask:
    """The task of a live camera as it is configured."""
    source = camera.source
    match source:
        case DeviceSource() | StreamSource():
            open_s, read_s = source.open_timeout_s, source.read_timeout_s
        case SimulatedSource():
            open_s, read_s = _DRAWING_S, _DRAWING_S + 1 / source.fps
        case _:
            raise ValueError(f"{camera.name}: a {source.kind} loses no picture and is read where it is inspected")
    # Field by field: a dump of the model would mask the password in a stream's address.
    fields = {name: getattr(source, name) for name in type(source).model_fields}
    opener = f"{open_source.__module__}:{open_source.__name__}"
    return CaptureTask(camera.name, opener, {"source": fields}, open_s, read_s, camera.frozen_after_s)


def open_source(source: dict[str, Any]) -> Camera:
    """The camera of `cameras[].source`."""
    return open_camera(TypeAdapter[Any](Source).validate_python(source))
