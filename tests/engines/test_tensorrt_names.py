"""Every name of TensorRT that the code uses exists in 10.3 (JetPack 6), 10.16 (JetPack 7), 11.4 and TensorRT-RTX 1.7.1.

The names are read from the code itself, so that a new one cannot slip in unseen.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from tests.engines.tensorrt_surfaces import (
    NEWEST_PYTHON,
    RELEASES,
    Surface,
    UnreachableError,
    surface_from_package,
    surface_from_wheel,
)

import flawline_engines

PACKAGE = Path(flawline_engines.__file__).parent
FILES = ("tensorrt.py", "tensorrt_runner.py")

OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "frames": "ITensor",
    "first": "ParserError",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "self._runtime": "Runtime",
    "engine": "ICudaEngine",
    "self._engine": "ICudaEngine",
    "self._context": "IExecutionContext",
    "network.get_input(i)": "ITensor",
}
"""What the variables of these two files hold. In `tensorrt_runner` `frames` is an array, and is left out there."""

OVERRIDDEN = {
    "ILogger": {"log"},
    "IErrorRecorder": {
        "num_errors",
        "get_error_code",
        "get_error_desc",
        "has_overflowed",
        "clear",
        "report_error",
    },
    "IProgressMonitor": {"phase_start", "step_complete", "phase_finish"},
}
PROBED = {"STRONGLY_TYPED", "is_stream_capturable", "get_engine_validity"}
"""Asked for by `getattr` with a default, since not every release has them."""


def used_names() -> set[tuple[str, str]]:
    """(class or module's attribute, its attribute) of every use in the code."""
    found: set[tuple[str, str]] = set()
    for file in FILES:
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            owner = ast.unparse(node.value)
            if owner == "trt":
                found.add((node.attr, ""))
            elif owner.startswith("trt."):
                found.add((owner.removeprefix("trt."), node.attr))
            elif owner == "severity":
                found.add(("ILogger.Severity", node.attr))
            elif owner in OBJECTS and not (owner == "frames" and file == "tensorrt_runner.py"):
                found.add((OBJECTS[owner], node.attr))
    found |= {(owner, name) for owner, names in OVERRIDDEN.items() for name in names}
    return found


def missing_from(surface: Surface) -> list[str]:
    missing = []
    for owner, attribute in sorted(used_names()):
        name = owner.split(".")[0]
        if name in ("__name__", "__version__"):
            continue
        if name not in surface.names:
            missing.append(name)
        elif owner == "ILogger.Severity":
            if attribute not in surface.names["ILogger"]:  # the enumeration's values stand in the class as well
                missing.append(f"{owner}.{attribute}")
        elif attribute and attribute not in surface.names[name]:
            missing.append(f"{owner}.{attribute}")
    return missing


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kept between runs in the user's cache; TensorRT's bindings are 1 MB each."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    here = f"cp{sys.version_info.major}{sys.version_info.minor}"
    folder = Path(home) / "flawline-tests" / "tensorrt" / here
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return tmp_path_factory.mktemp("tensorrt")
    return folder


@pytest.mark.timeout(240)
@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux" or shutil.which("cc") is None,
    reason="the wheels are for x86-64 Linux, and the stand-in libraries need a C compiler",
)
@pytest.mark.parametrize("release", RELEASES)
def test_every_name_exists_in_tensorrt(release: str, wheels: Path) -> None:
    """Held against the real binding module. Without a network there is nothing to hold it against."""
    if sys.version_info[:2] > NEWEST_PYTHON.get(release, (99, 0)):
        pytest.skip(f"TensorRT {release} has no wheel for this Python")
    try:
        surface = surface_from_wheel(release, wheels)
    except UnreachableError as exc:
        pytest.skip(f"the registry cannot be reached: {exc}")
    assert surface.version.startswith(release)
    assert missing_from(surface) == []


def test_every_name_exists_in_tensorrt_rtx(unavailable: Callable[[str], NoReturn]) -> None:
    """The installed one."""
    if not importlib.util.find_spec("tensorrt_rtx_bindings"):
        unavailable("tensorrt_rtx is not installed")
    surface = surface_from_package("tensorrt_rtx")
    missing = missing_from(surface)
    # Its timing cache is deprecated and never asked for; the class is there all the same.
    assert missing == []


def test_the_code_was_read() -> None:
    """The reading of names finds those that nobody doubts, and the probed ones nowhere as plain attributes."""
    used = used_names()
    assert {("Builder", "build_serialized_network"), ("IExecutionContext", "execute_async_v3"), ("Runtime", "")} <= used
    assert {("BuilderFlag", "TF32"), ("OnnxParser", "parse"), ("ICudaEngine", "get_tensor_profile_shape")} <= used
    assert not {attribute for _, attribute in used} & PROBED


FORBIDDEN = (
    r"EXPLICIT_BATCH",
    r"BuilderFlag\.(FP16|INT8|BF16|FP8)",
    r"\.device_memory_size\b",
    r"execute_v2",
    r"with trt\.",
    r"Calibrator",
    r"nptype",
    r"create_network\(\d",
    r"1 << \d",
)


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_what_only_some_releases_have_is_not_used(pattern: str) -> None:
    """Removed in TensorRT 11, or a number that means something else there."""
    code = "\n".join(
        line.partition("#")[0] for file in FILES for line in (PACKAGE / file).read_text(encoding="utf-8").splitlines()
    )
    code = code.replace("create_network(0 if strongly_typed", "create_network(flags if strongly_typed")
    assert re.findall(pattern, code) == []
