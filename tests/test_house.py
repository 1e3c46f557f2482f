"""The house rules: what keeps the four packages apart, the edge small and Python's own `inspect` alive."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flawline_inspect.config import load_config

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "flawline_inspect": ROOT / "inspect",
    "flawline_engines": ROOT / "engines",
    "flawline_train": ROOT / "train",
    "flawline_edge": ROOT / "edge",
}
MAY_IMPORT = {
    "flawline_inspect": set(),
    "flawline_engines": {"flawline_inspect"},
    "flawline_train": {"flawline_inspect", "flawline_engines"},
    "flawline_edge": {"flawline_inspect", "flawline_engines"},
}
ON_THE_STATION = ("flawline_inspect", "flawline_engines", "flawline_edge")
NOT_ON_THE_STATION = frozenset(
    {
        "anomalib",
        "bokeh",
        "lightning",
        "matplotlib",
        "onnx",
        "onnxscript",
        "pytorch_lightning",
        "safetensors",
        "scipy",
        "sklearn",
        "torch",
        "torchmetrics",
        "torchvision",
    }
)
EXTRAS = frozenset({"amqtt", "cuda", "nicegui", "pycuda", "tensorrt", "tensorrt_rtx", "tritonclient"})
"""Packages of the optional extras: a module that needs one need not import where it is not installed."""

HOLD_NO_PYTHON = frozenset({"deploy"})
"""Folders of a source root that hold files for other programs: edge/deploy, for brokers and service managers."""

PICKLES = frozenset({"_pickle", "cPickle", "cloudpickle", "dill", "joblib", "pickle", "shelve"})


def sources(*packages: str) -> Iterator[tuple[str, Path, ast.Module]]:
    for package in packages:
        for path in sorted((PACKAGES[package] / package).rglob("*.py")):
            yield package, path, ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full name of each absolute import, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module


def modules(*packages: str) -> list[str]:
    return [
        ".".join(path.relative_to(PACKAGES[package]).with_suffix("").parts).removesuffix(".__init__")
        for package, path, _ in sources(*packages)
        if path.name != "__main__.py"
    ]


def run_at_root(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Python started at the root as a user would, without what this process has on its path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if path is not None:
        environment["PYTHONPATH"] = path
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_source_roots_hold_no_modules(package: str) -> None:
    """A module beside the package is importable under a common name; in inspect/ it hides Python's own."""
    root = PACKAGES[package]
    assert [path.name for path in root.glob("*.py")] == []
    assert (root / package / "__init__.py").is_file()
    folders = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    assert folders - HOLD_NO_PYTHON == {package}
    assert [path for name in HOLD_NO_PYTHON for path in root.glob(f"{name}/**/*.py*")] == []


@pytest.mark.parametrize("name", ["inspect", "engines", "train", "edge"])
def test_test_folders_are_no_packages(name: str) -> None:
    """tests/inspect/__init__.py would do the same harm once tests/ is on a path."""
    assert not (ROOT / "tests" / name / "__init__.py").exists()


def test_no_top_level_module_at_the_root() -> None:
    """The root is on the path of `python -c` and `python -m`: a module there hides a package of that name."""
    assert [path.name for path in ROOT.glob("*.py")] == []


USES_OWN_INSPECT = (
    "import inspect; inspect.signature(print); assert inspect.__file__.endswith('inspect.py'); import numpy, pydantic"
)


@pytest.mark.parametrize(
    "arguments",
    [("-c", USES_OWN_INSPECT), ("-m", "timeit", "-n", "1", "-r", "1", USES_OWN_INSPECT)],
    ids=["python -c", "python -m"],
)
def test_pythons_own_inspect_wins_at_the_root(arguments: tuple[str, ...]) -> None:
    """What is started at the root gets the standard library's `inspect`, not the folder."""
    done = run_at_root(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pythons_own_inspect_wins_in_pytest(tmp_path: Path) -> None:
    """The same for pytest with the project's own settings, whose `pythonpath` names the folders."""
    test = tmp_path / "test_own_inspect.py"
    test.write_text(f"def test_own_inspect():\n    {USES_OWN_INSPECT}\n", encoding="utf-8")
    done = run_at_root(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "pyproject.toml", f"--rootdir={ROOT}", str(test)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


STATION_PROBE = """
import importlib, json, sys

absent, names = map(json.loads, sys.argv[1:])

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)", name=name)

sys.meta_path.insert(0, Absent())
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as exc:
        failed[name] = [(exc.name or "").partition(".")[0], str(exc)]
    except BaseException as exc:
        failed[name] = ["", repr(exc)]
json.dump(failed, sys.stdout)
"""


def test_station_imports_without_training_packages() -> None:
    """Every module of inspect, engines and edge imports where torch and its company are not installed."""
    path = os.pathsep.join(str(PACKAGES[package]) for package in ON_THE_STATION)
    names = modules(*ON_THE_STATION)
    done = run_at_root("-c", STATION_PROBE, json.dumps(sorted(NOT_ON_THE_STATION)), json.dumps(names), path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    failed = json.loads(done.stdout.splitlines()[-1])
    assert {name: error for name, (missing, error) in failed.items() if missing not in EXTRAS} == {}


def test_station_never_names_training_packages() -> None:
    """Not inside functions either: a lazy import of torch fails on the station, only later."""
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for _, path, tree in sources(*ON_THE_STATION)
        for line, name in imports(tree)
        if name.partition(".")[0] in NOT_ON_THE_STATION
    ]
    assert found == []


def test_imports_point_one_way() -> None:
    """inspect ← engines ← train and edge; the command line reaches the others by name, not by import."""
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for package, path, tree in sources(*PACKAGES)
        for line, name in imports(tree)
        if (top := name.partition(".")[0]) in PACKAGES and top != package and top not in MAY_IMPORT[package]
    ]
    assert found == []


def test_nothing_reads_or_writes_pickles() -> None:
    """Reading a pickle runs what it says: no pickle module, no `allow_pickle=True`, no `torch.load`."""
    found = []
    for _, path, tree in sources(*PACKAGES):
        where = path.relative_to(ROOT)
        found += [f"{where}:{n} imports {name}" for n, name in imports(tree) if name.partition(".")[0] in PICKLES]
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if given.get("allow_pickle", "False") != "False":
                found.append(f"{where}:{call.lineno} allows pickles")
            if ast.unparse(call.func) in ("torch.load", "torch.save") and given.get("weights_only") != "True":
                found.append(f"{where}:{call.lineno} {ast.unparse(call.func)} is a pickle; use safetensors")
    assert found == []


def test_the_station_says_whose_bundles_it_opens() -> None:
    """In edge, every `Bundle.open` outside a command passes `public_key`: one that does not lets any model in."""
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for _, path, tree in sources("flawline_edge")
        if not path.name.endswith("_command.py")
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        if ast.unparse(call.func) in ("Bundle.open", "Bundle")
        and "public_key" not in {keyword.arg for keyword in call.keywords}
    ]
    assert found == []


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist(package: str) -> None:
    """Each name in an `__all__` is there, once."""
    wrong = []
    for name in modules(package):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as exc:
            if (exc.name or "").partition(".")[0] in EXTRAS:
                continue
            raise
        public = getattr(module, "__all__", [])
        wrong += [f"{name}.{public_name} does not exist" for public_name in public if not hasattr(module, public_name)]
        wrong += [f"{name}.__all__ names something twice"] * (len(public) != len(set(public)))
    assert wrong == []


def test_shipped_configuration_is_valid() -> None:
    """config.yaml at the root is a station that works as it is."""
    config = load_config(ROOT / "config.yaml")
    assert config.recipe in config.recipes
