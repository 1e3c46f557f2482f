"""A server that speaks Triton's protocol, from the messages of the `tritonclient` package, over a model repository.

It reads `config.pbtxt` with protobuf's own text format, refuses what the configuration does not allow, as Triton documents
it, and computes with ONNX Runtime. It is what stands between the client and nothing: a real server has not been tried.
"""

from __future__ import annotations

import threading
import time
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from flawline_engines.onnx_runtime import OnnxRuntimeEngine

_NUMPY = {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32}
_WIRE = {"TYPE_UINT8": "UINT8", "TYPE_FP32": "FP32"}


def parsed(path: Path) -> Any:
    """The `ModelConfig` in a file. Raises protobuf's `ParseError` for a field or value that the schema does not have."""
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


class Model:
    def __init__(self, folder: Path) -> None:
        self.config = parsed(folder / "config.pbtxt")
        assert self.config.name == folder.name, "Triton refuses a model whose name is not its folder's"
        [frames] = self.config.input
        height, width, _ = frames.dims
        [version] = (path for path in folder.iterdir() if path.is_dir())
        assert 0 < int(version.name) < 1 << 63 and version.name[0] != "0", "Triton's versions are such numbers"
        self.version = version.name
        self.engine = OnnxRuntimeEngine((version / "model.onnx").read_bytes(), (height, width), threads=1)
        self.engine.__enter__()


class StandInServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A context manager; `url` is for the client. `batches` are those that were inferred.

    `delay_s` before an answer; `spoil` changes what is answered; `states` by model instead of READY.
    """

    def __init__(self, repository: Path, port: int = 0) -> None:
        self._repository, self._port = repository, port
        self.batches: list[tuple[str, int]] = []
        self.delay_s = 0.0
        self.refuse: tuple[Any, str] | None = None
        self.spoil: Any = lambda outputs: outputs
        self.states: dict[str, str] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> StandInServer:
        self.models = {folder.name: Model(folder) for folder in sorted(self._repository.iterdir())}
        self._server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self.url = f"127.0.0.1:{self.port}"
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()

    # --- the protocol's methods ----------------------------------------------------------------------------------------

    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = service_pb2.RepositoryIndexResponse()
        for name, model in self.models.items():
            state = self.states.get(name, "READY")
            answer.models.add(
                name=name, version=model.version, state=state, reason="" if state == "READY" else "out of memory"
            )
        return answer

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name not in self.models:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return service_pb2.ModelConfigResponse(config=self.models[request.name].config)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        time.sleep(self.delay_s)
        if self.refuse is not None:
            context.abort(*self.refuse)
        model = self.models[request.model_name]
        if request.model_version != model.version:
            unknown = f"'{request.model_name}' version {request.model_version} is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: {unknown}")
        [given], [wanted] = request.inputs, model.config.input
        n, *dims = given.shape
        if dims != list(wanted.dims) or given.datatype != "UINT8" or not 1 <= n <= model.config.max_batch_size:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"[request id: <id_unknown>] unexpected shape {given.shape}"
            )
        frames = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(given.shape)
        with self._lock:
            self.batches.append((request.model_name, n))
            found = model.engine.infer(frames)._asdict()
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=model.version)
        declared = {output.name: output for output in model.config.output}
        for output in request.outputs:
            what = declared[output.name]
            kind = model_config_pb2.DataType.Name(what.data_type)
            # With a batch in front; `reshape` is towards the model, the client sees `dims`.
            values = found[output.name].astype(_NUMPY[kind]).reshape(n, *what.dims)
            values = self.spoil({output.name: values})[output.name]
            answer.outputs.add(name=output.name, datatype=_WIRE[kind], shape=values.shape)
            answer.raw_output_contents.append(values.tobytes())
        return answer
