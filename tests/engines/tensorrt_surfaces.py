"""The real binding modules of TensorRT, loaded without a GPU and without TensorRT's own libraries.

The bindings are small wheels on PyPI. They need a dozen C symbols of libraries that weigh gigabytes; three empty
libraries with the right names satisfy the loader, and what `dir` and the docstrings then say is the true interface.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

STUB = """
#define EMPTY(name) void *name(void) { return 0; }
EMPTY(createInferBuilder_INTERNAL) EMPTY(createInferRuntime_INTERNAL) EMPTY(createInferRefitter_INTERNAL)
EMPTY(createNvOnnxParser_INTERNAL) EMPTY(createNvOnnxParserRefitter_INTERNAL) EMPTY(getBuilderPluginRegistry)
EMPTY(getPluginRegistry) EMPTY(initLibNvInferPlugins) EMPTY(getNvOnnxParserVersion) EMPTY(getInferLibVersion)
"""
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")

LISTING = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
print(json.dumps({
    "version": module.__version__,
    "names": {name: sorted(dir(value)) for name, value in vars(module).items() if isinstance(value, type)},
}))
"""


class UnreachableError(Exception):
    """The registry cannot be reached from here."""


@dataclass(frozen=True)
class Surface:
    """One release: its version, and the attributes of each of its classes."""

    version: str
    names: dict[str, list[str]]


RELEASES = {
    "10.3": ("tensorrt_cu12_bindings==10.3.0", 10),
    "10.16": ("tensorrt_cu13_bindings==10.16.0.72", 10),
    "11.4": ("tensorrt_cu13_bindings==11.4.0.106", 11),
}
NEWEST_PYTHON = {"10.3": (3, 12)}
"""Of a release that has no wheels for later ones."""


def surface_from_package(module: str, path: Path | None = None, libraries: Path | None = None) -> Surface:
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    if libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    done = subprocess.run(
        [sys.executable, "-c", LISTING, module], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return Surface(**json.loads(done.stdout.splitlines()[-1]))


def surface_from_wheel(release: str, folder: Path) -> Surface:
    """Download the release's bindings below `folder`, unless they are there, and list what they have.

    Raises `UnreachableError` when the registry cannot be reached, and `LookupError` when it has no such wheel.
    """
    requirement, major = RELEASES[release]
    unpacked = folder / release
    if not (unpacked / "tensorrt_bindings").is_dir():
        wheels = folder / f"{release}.wheels"
        _download(requirement, wheels)
        (wheel,) = wheels.glob("*.whl")
        partial = folder / f"{release}.{os.getpid()}"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(partial)
        if unpacked.exists():
            shutil.rmtree(unpacked)
        partial.rename(unpacked)
    libraries = folder / f"libraries{major}"
    libraries.mkdir(exist_ok=True)
    source = libraries / "stub.c"
    source.write_text(STUB, encoding="ascii")
    for library in LIBRARIES:
        name = f"lib{library}.so.{major}"
        subprocess.run(
            ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(libraries / name), str(source)], check=True
        )
    return surface_from_package("tensorrt_bindings", unpacked, libraries)


def _download(requirement: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    arguments = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", here]
    done = subprocess.run(
        [*_pip(), *arguments, "--dest", str(folder), requirement],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    if done.returncode == 0:
        return
    said = (done.stdout + done.stderr).strip()
    unreachable = ("Temporary failure", "NewConnectionError", "ConnectTimeout", "Connection refused", "ProxyError",
                   "Max retries exceeded", "Network is unreachable", "Name or service not known")  # fmt: skip
    if any(word in said for word in unreachable):
        raise UnreachableError(said.splitlines()[-1])
    raise LookupError(said.splitlines()[-1])


def _pip() -> list[str]:
    """A pip, which environments made by uv do not have inside."""
    inside = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    if inside.returncode == 0:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    if found := shutil.which("uv"):
        return [found, "tool", "run", "--quiet", "pip"]
    raise UnreachableError("there is no pip here")
