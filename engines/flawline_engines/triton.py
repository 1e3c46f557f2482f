"""Triton Inference Server: a station without a GPU of its own asks a server that many share, over gRPC.

The server is NVIDIA's, its models are those of `flawline export --triton`. Tested against a stand-in that speaks the same
protocol from the same messages; untested against a real server.

A call takes no longer than `timeout_s`, and within it what the server could not be reached for is asked again: while a server
restarts, parts are late and not lost. A server whose model was not made of the bundle's ONNX file is refused when the engine
is opened; afterwards each request names the version, which is part of that file's SHA-256.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from flawline_engines.engine import Engine, Inference, Precision, checked_frames, model_for
from flawline_engines.triton_repository import SHA256_PARAMETER, TENSORRT_SUFFIX, model_name, model_version
from flawline_inspect.bundle import Bundle
from flawline_inspect.errors import EngineError

__all__ = ["TIMEOUT_S", "TritonEngine", "open_triton"]

TIMEOUT_S = 1.0
_OPEN_TIMEOUT_S = 5.0
_PAUSE_S = 0.02
"""Between two attempts to reach the server."""
_RECONNECT_MS = 500
"""The longest pause that gRPC itself makes between two; its own default is two minutes."""
_MAX_MESSAGE = (1 << 31) - 1  # gRPC's own limit is 4 MiB, less than a batch of frames

_UNREACHABLE = "StatusCode.UNAVAILABLE"
_LATE = "StatusCode.DEADLINE_EXCEEDED"
_OUTPUTS = ("scores", "heatmaps", "expected")
_T = TypeVar("_T")


class _Address(NamedTuple):
    host_port: str
    tls: bool


def open_triton(
    bundle: Bundle, url: str | None, *, precision: Precision = "fp32", timeout_s: float = TIMEOUT_S
) -> Engine:
    """An engine that asks the server at `url`: `HOST:8001`, or `grpcs://HOST:PORT` with TLS. Raises `EngineError`."""
    if not url:
        raise EngineError(
            "engine triton needs the server's address; give --url HOST:8001, or engine.url in config.yaml"
        )
    if precision == "bf16":
        raise EngineError("Triton has no precision bf16 here; use fp16, int8 or fp32")
    sha256 = hashlib.sha256(model_for(bundle, precision)).hexdigest()
    hw = (bundle.frame.height, bundle.frame.width)
    return TritonEngine(url, model_name(bundle, precision), sha256, hw, precision=precision, timeout_s=timeout_s)


class TritonEngine:
    """`model`: its name on the server; with TensorRT's plan of it there, that is taken. `onnx_sha256`: what both were made of."""

    kind = "triton"

    def __init__(
        self,
        url: str,
        model: str,
        onnx_sha256: str,
        hw: tuple[int, int],
        *,
        precision: Precision = "fp32",
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        if not timeout_s > 0:
            raise EngineError(f"the time for an answer is {timeout_s:g} s, expected more than 0")
        self._address, self._name, self._sha256, self._hw = _address(url), model, onnx_sha256, hw
        self._timeout_s = timeout_s
        self.precision: Precision = precision
        self._grpc: Any = None
        self._failure: type[Any] = Exception  # tritonclient's own, once it is imported
        self._client: Any = None
        self._serving: tuple[str, int] | None = None  # the model's name and largest batch, once they are known

    def __enter__(self) -> TritonEngine:
        try:
            from tritonclient import grpc
            from tritonclient.utils import InferenceServerException
        except ImportError as exc:
            raise EngineError(f"tritonclient cannot be imported ({exc}); pip install 'flawline[triton]'") from exc
        self._grpc, self._failure = grpc, InferenceServerException
        options = [
            ("grpc.max_send_message_length", _MAX_MESSAGE),
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
        ]
        host_port, tls = self._address
        self._client = grpc.InferenceServerClient(host_port, ssl=tls, channel_args=options)
        try:
            self._serving = self._within(_OPEN_TIMEOUT_S, self._look_for_model)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        client, self._client = self._client, None
        self._serving = None
        if client is not None:
            client.close()

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        if self._client is None:
            raise EngineError("the engine is not open; use it inside `with`")
        frames = checked_frames(frames, self._hw)
        return self._within(self._timeout_s, lambda left_s: self._ask(frames, left_s))

    def _ask(self, frames: NDArray[np.uint8], left_s: Callable[[], float]) -> Inference:
        if self._serving is None:
            self._serving = self._look_for_model(left_s)
        name, largest = self._serving
        parts = [self._ask_once(name, frames[i : i + largest], left_s()) for i in range(0, len(frames), largest)]
        if len(parts) == 1:
            return parts[0]
        return Inference(
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.heatmaps for part in parts]),
            np.concatenate([part.expected for part in parts]),
        )

    def _ask_once(self, name: str, frames: NDArray[np.uint8], timeout_s: float) -> Inference:
        given = self._grpc.InferInput("frames", list(frames.shape), "UINT8")
        given.set_data_from_numpy(frames)
        outputs = [self._grpc.InferRequestedOutput(output) for output in _OUTPUTS]
        answer = self._client.infer(
            name, [given], model_version=model_version(self._sha256), outputs=outputs, client_timeout=timeout_s
        )
        n, (height, width) = len(frames), self._hw
        scores, heatmaps, expected = (answer.as_numpy(output) for output in _OUTPUTS)
        # Each into memory of the caller's own: what the client gives is a view of the message, and cannot be written.
        return Inference(
            _checked("scores", scores, np.float32, (n,), (n, 1)).reshape(n),
            _checked("heatmaps", heatmaps, np.float32, (n, height, width)),
            _checked("expected", expected, np.uint8, (n, height, width, 3)),
        )

    def _look_for_model(self, left_s: Callable[[], float]) -> tuple[str, int]:
        """Name and largest batch of the model that is to serve. Raises `EngineError` when it is missing or another one."""
        index = self._client.get_model_repository_index(client_timeout=left_s()).models
        states = {model.name: model.state + (f", {model.reason}" if model.reason else "") for model in index}
        wanted = (self._name + TENSORRT_SUFFIX, self._name)
        name = next((name for name in wanted if states.get(name, "").startswith("READY")), None)
        if name is None:
            found = (
                "; ".join(f"{name} is {states[name]}" for name in wanted if name in states)
                or "it has none of that name"
            )
            raise EngineError(
                f"the server at {self._address.host_port} has no model {self._name} that is ready ({found}); "
                "`flawline export --triton` writes it"
            )
        config = self._client.get_model_config(name, client_timeout=left_s()).config
        found = config.parameters[SHA256_PARAMETER].string_value if SHA256_PARAMETER in config.parameters else "none"
        if found != self._sha256:
            raise EngineError(
                f"the server at {self._address.host_port} serves another {name}: its ONNX file's SHA-256 is {found[:12]}, the "
                f"bundle's {self._sha256[:12]}; `flawline export --triton` writes the right one"
            )
        return name, max(1, config.max_batch_size)

    def _within(self, timeout_s: float, do: Callable[[Callable[[], float]], _T]) -> _T:
        """`do`, again and again while the server cannot be reached; it is given what is left of the time, in seconds."""
        until = time.monotonic() + timeout_s

        def left_s() -> float:
            return max(1e-3, until - time.monotonic())

        while True:
            try:
                return do(left_s)
            except self._failure as exc:
                self._serving = None  # whoever answers next may be another server, or this one with other models
                status, message = exc.status(), exc.message()
                if status not in (_UNREACHABLE, _LATE):
                    raise EngineError(f"triton at {self._address.host_port} failed: {message}") from exc
                if status == _LATE or time.monotonic() + _PAUSE_S >= until:
                    why = "gave no answer" if status == _LATE else f"cannot be reached ({message})"
                    raise EngineError(f"triton at {self._address.host_port} {why} in {timeout_s:g} s") from exc
            time.sleep(_PAUSE_S)


def _address(url: str) -> _Address:
    """`HOST:PORT`, `grpc://HOST:PORT` or, with TLS, `grpcs://HOST:PORT`. Raises `EngineError`."""
    try:
        parts = urlsplit(url if "://" in url else f"grpc://{url}")
        if parts.scheme not in ("grpc", "grpcs") or not parts.hostname or parts.port is None:
            raise ValueError
    except ValueError:
        raise EngineError(
            f"the server's address is {url!r}, expected HOST:8001, Triton's port for gRPC, or grpcs://HOST:PORT"
        ) from None
    return _Address(parts.netloc, parts.scheme == "grpcs")


def _checked(name: str, values: Any, dtype: type, *shapes: tuple[int, ...]) -> NDArray[Any]:
    if values is None or values.dtype != dtype or values.shape not in shapes:
        found = "nothing" if values is None else f"{values.dtype} {values.shape}"
        raise EngineError(f"triton gave {found} for {name}, expected {np.dtype(dtype)} {shapes[0]}")
    return np.array(values)
