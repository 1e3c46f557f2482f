"""How a station is told to end, and the two commands that run one: `flawline run` and `flawline demo`."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import yaml
from tests.edge.stand_ins import BAD_LEVEL, OK_LEVEL, Wire, level_bundle, picture, wait_until, wire

import flawline_edge.daemon
from flawline_edge.daemon import stop_on_signals
from flawline_edge.demo_command import demo
from flawline_edge.run_command import run
from flawline_inspect.errors import BundleError, ConfigError, InputError

__all__ = ["wire"]  # the fixture


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.001)  # the handler runs between two instructions of this thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_sets_the_event(number: signal.Signals) -> None:
    """SIGTERM and the first Ctrl-C are a request: the event is set, nothing is interrupted."""
    with stop_on_signals() as stop:
        assert not stop.is_set()
        send(number)
        assert stop.wait(1.0)


def test_the_second_ctrl_c_interrupts() -> None:
    """Who presses it twice does not want to wait: KeyboardInterrupt, exit code 130."""
    with stop_on_signals() as stop:
        send(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_sigterm_never_interrupts() -> None:
    """A service manager may send it again; the station still ends between two parts."""
    with stop_on_signals() as stop:
        for _ in range(3):
            send(signal.SIGTERM)
        assert stop.is_set()


@pytest.mark.parametrize("ending", ["well", "with an error"])
def test_the_handlers_of_before_are_restored(ending: str) -> None:
    """However the block ends."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    try:
        with stop_on_signals():
            assert all(signal.getsignal(n) is not was for n, was in zip(numbers, before, strict=True))
            if ending != "well":
                raise RuntimeError(ending)
    except RuntimeError:
        pass
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_signal_during_a_wait_does_not_hang() -> None:
    """The station waits for the next part on the very event; the signal may come at any instant of that."""
    program = """
        import os, signal, sys, threading
        from flawline_edge.daemon import stop_on_signals

        for _ in range(30):
            with stop_on_signals() as stop:
                kill = threading.Timer(0.002, os.kill, (os.getpid(), signal.SIGTERM))
                kill.start()
                while not stop.is_set():
                    stop.wait(0.0)
                kill.join()
        print("ended")
    """
    edge = Path(flawline_edge.daemon.__file__).parents[1]
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(edge)},
    )
    try:
        out, _ = child.communicate(timeout=5.0)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        pytest.fail("hangs since the signal", pytrace=False)
    assert out.strip() == b"ended"


# --- flawline run ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """Commands set them for the process that they are."""
    loggers = [logging.getLogger(name) for name in (None, "amqtt")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of parts: good, bad, good."""
    made = tmp_path / "pictures"
    made.mkdir()
    for n, level in enumerate((OK_LEVEL, BAD_LEVEL, OK_LEVEL)):
        assert cv2.imwrite(str(made / f"SN{n}.png"), picture(level))
    return made


def config_file(folder: Path, *, fps: float = 1000.0, loop: bool = False) -> Path:
    path = folder.parent / "config.yaml"
    level_bundle(folder.parent)
    tree = {
        "state_dir": "state",
        "cameras": [{"name": "top", "source": {"kind": "folder", "path": "pictures", "fps": fps, "loop": loop}}],
        "trigger": {"kind": "free", "max_rate": 1000},
        "deadline_ms": 20_000,
        "recipes": {1: "level.flawline"},
        "engine": {"kind": "onnxruntime"},
        "mqtt": {"host": "broker.invalid"},
    }
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_run_ends_with_a_finite_source(folder: Path, wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """0 after the last picture, with one line that counts; `--verbose` logs every part."""
    assert run(config=config_file(folder)) == 0
    assert [v.part for v in wire.told] == ["SN0", "SN1", "SN2"]
    counted = "3 parts: 2 OK, 1 NotOK, 0 NotDecidable, 0 Undefined; 0 frames dropped, 0 late, 0 unjournaled"
    assert caplog.messages.count(counted) == 1
    assert not any('"seq":' in message for message in caplog.messages)
    caplog.clear()
    assert run(config=config_file(folder), verbose=True) == 0
    assert [message for message in caplog.messages if '"seq":' in message] == [v.to_json() for v in wire.told[3:]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_with_0_on_a_signal(folder: Path, wire: Wire, number: signal.Signals) -> None:
    """Between two parts, whatever the source would still give."""

    def interrupt() -> None:
        wait_until(lambda: len(wire.told) >= 2, "two verdicts")
        os.kill(os.getpid(), number)

    # A pause between parts that no signal falls into by chance: see the hanging wait above.
    threading.Thread(target=interrupt, daemon=True).start()
    assert run(config=config_file(folder, fps=20.0, loop=True)) == 0
    assert wire.state_words == ["starting", "ready", "stopped"] and len(wire.told) >= 2


def test_run_without_a_configuration(tmp_path: Path) -> None:
    """The user's mistake, by name."""
    with pytest.raises(ConfigError, match=r"none\.yaml: does not exist"):
        run(config=tmp_path / "none.yaml")


# --- flawline demo ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parts": 0}, "--parts is 0, expected at least 1"),
        ({"seconds": 0.0}, "--seconds is 0.0, expected more than 0"),
        ({"fps": 0.0}, "--fps is 0.0, expected more than 0"),
        ({"fps": float("nan")}, "--fps is nan"),
        ({"camera": "no/such/thing"}, "--camera no/such/thing: there is no such file or folder"),
    ],
)
def test_demo_refuses_what_makes_no_sense(tmp_path: Path, options: dict[str, object], said: str) -> None:
    """One sentence, before anything is started."""
    with pytest.raises(InputError) as caught:
        demo(bundle=level_bundle(tmp_path), **options)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_demo_refuses_a_single_picture_and_no_bundle(folder: Path) -> None:
    """With a word on what to do instead."""
    with pytest.raises(InputError, match="use `flawline check`"):
        demo(bundle=level_bundle(folder.parent), camera=str(folder / "SN0.png"))
    with pytest.raises(BundleError, match="does not exist"):
        demo(bundle=folder / "none.flawline")


def test_demo_on_a_folder_of_ones_own(
    folder: Path, wire: Wire, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each part on the console, the summary, and three pictures of the reject; nothing is left in the way."""
    out = tmp_path / "rejects"
    assert demo(bundle=level_bundle(tmp_path), camera=str(folder), fps=1000.0, out=out) == 0
    said = capsys.readouterr().out
    assert [v.part for v in wire.told] == ["SN0", "SN1", "SN2"] and all(v.part in said for v in wire.told)
    assert "3 parts: " in said and "2 OK" in said and "1 NotOK" in said
    assert "1 rejected parts in" in said and "*_picture.png" in said
    assert len(list(out.iterdir())) == 3


def test_demo_ends_after_its_parts_or_seconds(wire: Wire, tmp_path: Path) -> None:
    """Exactly so many parts of the simulated line; or the time, whichever comes first."""
    bundle = level_bundle(tmp_path)
    assert demo(bundle=bundle, parts=3, fps=50.0) == 0
    assert len(wire.told) == 3
    began = time.monotonic()
    assert demo(bundle=bundle, parts=10_000, seconds=0.5, fps=50.0) == 0
    assert time.monotonic() - began < 8.0
