"""The command line's front door: exit codes, sentences, help, and what is not imported."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from cyclopts import App
from tests.inspect_.bundles import small_bundle, small_manifest

from flawline_inspect import __version__, bundle_command, config_command
from flawline_inspect.cli import _run, app, main
from flawline_inspect.errors import (
    BrokerError,
    BundleError,
    CameraError,
    ConfigError,
    EngineError,
    FlawlineError,
    InputError,
    PictureError,
)

ROOT = Path(__file__).parents[2]


def ends_with(*tokens: str) -> int:
    return _run(list(tokens), debug=False)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "part.flawline"
    path.write_bytes(small_bundle())
    return path


@pytest.fixture
def station(tmp_path: Path, bundle: Path) -> Path:
    path = tmp_path / "config.yaml"
    tree = {"cameras": [{"name": "top", "source": {"kind": "simulated"}}], "recipes": {1: bundle.name}}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def _raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """`flawline config check` ends with this error."""

    def load(_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(config_command, "load_config", load)


# How commands end


@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(FlawlineError("x"), 1, id="any"),
        pytest.param(InputError("x"), 2, id="input"),
        pytest.param(ConfigError("x"), 2, id="configuration"),
        pytest.param(PictureError("x"), 2, id="picture"),
        pytest.param(BundleError("x"), 2, id="bundle"),
        pytest.param(CameraError("x"), 1, id="camera lost"),
        pytest.param(CameraError("x", exit_code=2), 2, id="camera that was never there"),
        pytest.param(EngineError("x"), 1, id="engine"),
        pytest.param(BrokerError("x"), 1, id="broker"),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    """1 is a failure, 2 the user's mistake; each says so on stderr in a line, without a traceback."""
    _raising(monkeypatch, error)
    assert ends_with("config", "check") == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("flawline: ") and err.count("\n") == 1


@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["plain", "with --debug"])
def test_interrupted_is_130(monkeypatch: pytest.MonkeyPatch, debug: list[str]) -> None:
    """Ctrl-C ends a command with 130, as a shell expects."""
    _raising(monkeypatch, KeyboardInterrupt())
    with pytest.raises(SystemExit) as caught:
        main(["config", "check", *debug])
    assert caught.value.code == 130


def test_interrupted_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C is answered with a line, not with silence."""
    _raising(monkeypatch, KeyboardInterrupt())
    with pytest.raises(SystemExit):
        main(["config", "check"])
    assert capsys.readouterr().err == "flawline: interrupted\n"


def test_each_mistake_gets_its_own_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Several mistakes in one file are several lines, each with the program's name."""
    _raising(monkeypatch, ConfigError("a [b] is wrong\nc is wrong"))
    ends_with("config", "check")
    assert capsys.readouterr().err.splitlines() == ["flawline: a [b] is wrong", "flawline: c is wrong"]


@pytest.fixture(autouse=True)
def _usual_log_levels() -> Iterator[None]:
    loggers = [logging.getLogger(f"flawline_{name}") for name in ("inspect", "engines", "train", "edge")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With --debug, wherever it stands, the traceback is shown too; sentence and exit code stay."""
    _raising(monkeypatch, ConfigError("no such key"))
    for tokens in (["--debug", "config", "check"], ["config", "check", "--debug"]):
        with pytest.raises(SystemExit) as ended:
            main(tokens)
        shown = capsys.readouterr().err
        assert ended.value.code == 2 and "Traceback" in shown and shown.endswith("flawline: no such key\n")


def test_surprises_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no FlawlineError is a bug and keeps its traceback."""
    _raising(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        ends_with("config", "check")


def test_a_reader_that_has_had_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """`flawline check ... | head` is no failure."""
    _raising(monkeypatch, BrokenPipeError())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert ends_with("config", "check") == 0


@pytest.mark.parametrize(("name", "known"), [("torch", True), ("anomalib.models", True), ("flawline_gone", False)])
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, known: bool
) -> None:
    """A command whose extra is not installed says which and how to get it; any other missing module is a bug."""
    _raising(monkeypatch, ModuleNotFoundError(f"No module named {name!r}", name=name))
    if known:
        assert ends_with("config", "check") == 1
        assert f"needs {name}, which is not installed; pip install 'flawline[train]'" in capsys.readouterr().err
    else:
        with pytest.raises(ModuleNotFoundError):
            ends_with("config", "check")


@pytest.mark.parametrize(
    ("tokens", "code"),
    [
        pytest.param(["--version"], 0, id="version"),
        pytest.param(["trian"], 2, id="unknown command"),
        pytest.param(["config", "check", "no.yaml"], 2, id="missing file"),
    ],
)
def test_main_ends_the_process(tokens: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """`main` leaves with the exit code, which is what the shell sees."""
    with pytest.raises(SystemExit) as caught:
        main(tokens)
    assert caught.value.code == code


# What was typed


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        pytest.param(["trian"], "there is no command 'trian'; did you mean `flawline train`?", id="near"),
        pytest.param(["zzzzz"], "there is no command 'zzzzz'; `flawline --help` lists them", id="nothing near"),
        pytest.param(["[red]"], "there is no command '[red]'", id="markup"),
        pytest.param(["config", "chekc"], "did you mean `flawline config check`?", id="near, below config"),
        pytest.param(["config", "schem"], "did you mean `flawline config schema`?", id="near, only below config"),
        pytest.param(["bundle", "shwo"], "did you mean `flawline bundle show`?", id="near, below bundle"),
        pytest.param(["bundle", "verify"], "parameter BUNDLE requires an argument", id="argument missing"),
        pytest.param(["bundle", "verify", "a", "b"], "'b'", id="argument too many"),
        pytest.param(["bundle", "show", "a", "--jsn"], "--jsn", id="unknown option"),
        pytest.param(["bundle", "show", "a", "--json=maybe"], '"maybe"', id="bad value"),
    ],
)
def test_a_mistyped_command(tokens: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The user's mistake is answered with what was found and, where one is near, with what was meant."""
    assert ends_with(*tokens) == 2
    out, err = capsys.readouterr()
    assert out == "" and expected in err and "Traceback" not in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints the version and nothing else."""
    assert ends_with("--version") == 0
    assert capsys.readouterr().out.strip() == __version__


def commands(of: App = app, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command that can be called, by reading the registry; none is imported."""
    found = []
    for name in of:
        if name.startswith("-"):
            continue
        if path or name not in ("bundle", "config"):
            found.append((*path, name))
        else:
            found += commands(of[name], (*path, name))
    return found


COMMANDS = [
    ("bench",), ("build",), ("bundle", "keygen"), ("bundle", "show"), ("bundle", "sign"), ("bundle", "verify"), ("check",),
    ("config", "check"), ("config", "schema"), ("demo",), ("eval",), ("export",), ("parity",),
    ("promote",), ("quantize",), ("report",), ("run",),
    ("sample",), ("simulate",), ("soak",), ("status",), ("train",), ("verdicts",),
]  # fmt: skip
MODULES = {
    "bench": "flawline_edge.bench_command",
    "build": "flawline_engines.build_command",
    "check": "flawline_engines.check_command",
    "demo": "flawline_edge.demo_command",
    "eval": "flawline_train.eval_command",
    "export": "flawline_engines.export_command",
    "parity": "flawline_engines.parity_command",
    "quantize": "flawline_train.quantize_command",
    "report": "flawline_train.report_command",
    "run": "flawline_edge.run_command",
    "sample": "flawline_train.sample_command",
    "simulate": "flawline_edge.simulate_command",
    "soak": "flawline_edge.soak_command",
    "status": "flawline_edge.status_command",
    "train": "flawline_train.train_command",
    "verdicts": "flawline_edge.verdicts_command",
}


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`flawline --help`, and `flawline` alone, show the commands, the first steps and the exit codes."""
    for tokens in (["--help"], []):
        assert ends_with(*tokens) == 0
        out = capsys.readouterr().out
        assert all(command[0] in out for command in COMMANDS)
        assert "flawline demo" in out and "Exit codes" in out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_each_command_shows_examples(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command's help ends with examples that call it by its name."""
    module = MODULES.get(command[0])
    if module is not None and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not there yet")
    monkeypatch.setenv("COLUMNS", "160")
    assert ends_with(*command, "--help") == 0
    out = capsys.readouterr().out
    assert f"Usage: flawline {' '.join(command)}" in out
    assert f"flawline {' '.join(command)}" in out.split("Examples", 1)[1]


PROBE = """
import json, sys
from flawline_inspect.cli import main
try:
    main(sys.argv[1:])
except SystemExit as exc:
    loaded = {name.partition(".")[0] for name in sys.modules}
    print(json.dumps([exc.code, sorted(loaded)]))
"""
HEAVY = {"torch", "lightning", "anomalib", "onnx", "onnxruntime", "openvino", "scipy", "sklearn"}
OURS = {"flawline_train", "flawline_edge", "flawline_engines"}


@pytest.mark.parametrize(
    ("tokens", "code"),
    [
        pytest.param(["--help"], 0, id="help"),
        pytest.param(["--version"], 0, id="version"),
        pytest.param(["trian"], 2, id="unknown command"),
        pytest.param(["bundle", "verify", "no.flawline"], 2, id="a command of inspect"),
    ],
)
def test_nothing_heavy_is_imported(tokens: list[str], code: int) -> None:
    """What needs no engine imports none, and torch least of all: it answers at once."""
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("inspect", "engines", "train", "edge"))
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *tokens],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found, loaded = json.loads(done.stdout.splitlines()[-1])
    assert found == code
    assert set(loaded) & (HEAVY | OURS) == set()


# The commands that live here


def test_bundle_verify(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole bundle is called good, with its model's id and the number of members."""
    assert ends_with("bundle", "verify", str(bundle)) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{bundle}: good; bottle-") and "10 members verified" in out


def test_bundle_verify_refuses_damage(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged one is the engineer's to replace: exit code 2 and the member's name."""
    data = bytearray(bundle.read_bytes())
    data[data.rindex(b"IEND") - 20] ^= 0xFF
    bundle.write_bytes(data)
    assert ends_with("bundle", "verify", str(bundle)) == 2
    err = capsys.readouterr().err
    assert str(bundle) in err and "golden/" in err and err.count("\n") == 1


def test_bundle_show(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page: model, frame, threshold, what was promised and what is an estimate, card, members."""
    assert ends_with("bundle", "show", str(bundle)) == 0
    out = capsys.readouterr().out
    for expected in (
        "bottle-",
        "32 x 32 px",
        "4.0000",
        "25.00% false rejects on average, from 3",
        "an estimate",
        "2 good, 2 damaged",
    ):
        assert expected in out
    for expected in (small_manifest()["card"]["intended_use"], "who may be wronged", "model.onnx"):
        assert expected in out


def test_bundle_show_tells_promise_estimate_suspects_and_escapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a newer bundle knows: the bound with n and k, the estimate, who was skipped, which defects escape, at what cost."""
    path = tmp_path / "part.flawline"
    kinds = [{"kind": "dent", "n": 4, "escaped": 1, "escape_interval": [0.0063, 0.8059]}]
    costs = {
        "false_reject": 1.0, "escape": 20.0, "defect_rate": 0.01, "cost_per_part": 0.12,
        "cheapest_threshold": 3.5, "cheapest_cost_per_part": 0.11,
    }  # fmt: skip
    path.write_bytes(
        small_bundle(
            calibration={
                **small_manifest()["calibration"],
                "basis": "exponential_tail",
                "promised_false_reject_rate": 0.8647,
                "parts": ["a", "b", "c"],
                "exceedances": 1,
                "confidence": 0.95,
                "estimated_false_reject_rate": 0.01,
                "suspects": [{"part": "c", "score": 33.0, "skipped": True}],
                "defects": {"kinds": kinds, "costs": costs},
            }
        )
    )
    assert ends_with("bundle", "show", str(path)) == 0
    out = " ".join(capsys.readouterr().out.split())
    for expected in (
        "at most 86.47% false rejects (confidence 95%), from 3 held-out good parts, 1 of them above the threshold",
        "1.00% false rejects (an estimate)",
        "c (33.0000, skipped)",
        "1 of 4 dent (0.6% to 80.6%)",
        "0.12 a part; 0.11 at 3.5000, the cheapest (false reject 1, escape 20, 1.00% defective)",
    ):
        assert expected in out


@pytest.mark.parametrize("words", ["[/nothing]", "[bold]parts[/bold]", "[operators] decide", "a\\[b"])
def test_bundle_show_prints_what_was_written(tmp_path: Path, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets in a model card are brackets."""
    path = tmp_path / "part.flawline"
    path.write_bytes(small_bundle(card={**small_manifest()["card"], "limits": words}))
    assert ends_with("bundle", "show", str(path)) == 0
    assert words in capsys.readouterr().out


def test_bundle_show_json(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints the manifest as one object on one line."""
    assert ends_with("bundle", "show", str(bundle), "--json") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out)["name"] == "bottle"


def test_config_check(station: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What is in force is printed as YAML, defaults included and secrets not, and it is a configuration again."""
    monkeypatch.setenv("FLAWLINE_MQTT_PASSWORD", "hunter2")
    monkeypatch.setenv("FLAWLINE_MQTT_KEY_PASSWORD", "hunter3")
    monkeypatch.chdir(station.parent)
    assert ends_with("config", "check") == 0  # config.yaml is what is checked when nothing is named
    out = capsys.readouterr().out
    tree: dict[str, Any] = yaml.safe_load(out)
    assert tree["deadline_ms"] == 200 and tree["engine"]["kind"] == "auto"
    assert out.endswith("# config.yaml: good\n")
    assert "hunter" not in out
    station.write_text(out, encoding="utf-8")
    assert ends_with("config", "check", str(station)) == 0
    assert yaml.safe_load(capsys.readouterr().out) == tree


def test_config_check_opens_the_bundles(station: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bundle that is missing or damaged is found before the station starts, and named with its recipe."""
    for spoil in (lambda: bundle.write_bytes(b"no bundle"), bundle.unlink):
        spoil()
        assert ends_with("config", "check", str(station)) == 2
        err = capsys.readouterr().err
        assert f"{station}: recipes.1: {bundle}: " in err and err.count("\n") == 1


def test_config_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The schema is JSON on the terminal or in a file."""
    assert ends_with("config", "schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert "station" in schema["properties"]
    path = tmp_path / "schema.json"
    assert ends_with("config", "schema", str(path)) == 0
    assert json.loads(path.read_text(encoding="utf-8")) == schema


def test_config_schema_into_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that cannot be written is the user's mistake, told in a line."""
    path = tmp_path / "no" / "schema.json"
    assert ends_with("config", "schema", str(path)) == 2
    err = capsys.readouterr().err
    assert str(path) in err and err.count("\n") == 1


def test_the_commands_are_the_promised_ones() -> None:
    """The registry holds these commands and no others."""
    assert sorted(commands()) == sorted(COMMANDS)
    assert bundle_command.__all__ == ["keygen", "show", "sign", "verify"]
    assert config_command.__all__ == ["check", "schema"]
