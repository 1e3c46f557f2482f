"""What bad input gets: exit code 2, one sentence that names the thing, no traceback, and nothing lost.

Commands run as processes of their own, forked from one that has imported torch and the rest already: importing takes
seconds, and there are many cases. Nothing has been computed before the fork.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from flawline_edge.demo_command import DEMO_BUNDLE as BUNDLE
from flawline_edge.simulation import SimulatedLine
from flawline_inspect.bundle import MODEL, Bundle

DONE, MISTAKE, INTERRUPTED = 0, 2, 130
N_GOOD = 12
SMALL = ("--width", "4", "--size", "32")
"""The smallest network there is: what is tested is what surrounds it."""
TIMEOUT_S = 60.0

_SERVER = """
import errno, gc, json, os, sys, traceback
import onnxscript, torch._dynamo, torch.export  # imported on the way by the optimiser and the export
import flawline_train.train_command, flawline_train.eval_command
import flawline_engines.check_command, flawline_edge.run_command, flawline_edge.demo_command
from flawline_inspect.cli import main

def full_disk(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

gc.freeze()  # a collection would copy every page of what was imported
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(job["folder"])
        for number, path in enumerate(("/dev/null", job["stdout"], job["stderr"])):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(path, flags | os.O_NOCTTY, 0o644), number)
        if job["full_disk"]:
            os.fsync = full_disk
        code = 1
        try:
            main(job["arguments"])
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without a second of taking torch apart
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"

    @property
    def sentence(self) -> str:
        """The one line on stderr that speaks for the program; log lines and progress may stand around it."""
        said = [line for line in self.stderr.splitlines() if line.startswith("flawline:")]
        assert len(said) == 1, self
        return said[0]


class Shell:
    """Runs commands in `folder`; one at a time."""

    def __init__(self, server: subprocess.Popen[str], folder: Path, outside: Path) -> None:
        self.folder = folder
        self._server = server
        self._process: int | None = None
        self._out, self._err = outside / "stdout", outside / "stderr"

    def start(self, *arguments: str, full_disk: bool = False, terminal: str | None = None) -> int:
        """Returns the process's number. `terminal` is a terminal's path, which then gets stderr."""
        job = {
            "arguments": arguments,
            "folder": str(self.folder),
            "stdout": str(self._out),
            "stderr": terminal or str(self._err),
            "full_disk": full_disk,
        }
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        self._process = int(self._answer())
        return self._process

    def wait(self) -> Ended:
        code = int(self._answer())
        self._process = None
        err = self._err.read_text(encoding="utf-8") if self._err.exists() else ""
        return Ended(code, self._out.read_text(encoding="utf-8"), err)

    def __call__(self, *arguments: str, full_disk: bool = False) -> Ended:
        self.start(*arguments, full_disk=full_disk)
        return self.wait()

    def kill(self) -> None:
        """End what a failed test has left running, so that the next command gets its own answers."""
        if self._process is not None:
            os.kill(self._process, signal.SIGKILL)
            self.wait()

    def _answer(self) -> str:
        assert self._server.stdout is not None
        ready, _, _ = select.select([self._server.stdout], [], [], TIMEOUT_S)
        assert ready, f"no end within {TIMEOUT_S:g} s"
        return self._server.stdout.readline()


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        # Threads that libraries start on import are idle; Python warns of a fork beside them all the same.
        [sys.executable, "-W", "ignore", "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as running:
        assert running.stdout is not None
        try:
            assert running.stdout.readline() == "ready\n"
            yield running
        finally:
            running.kill()


@pytest.fixture
def shell(server: subprocess.Popen[str], tmp_path: Path) -> Iterator[Shell]:
    folder, outside = tmp_path / "work", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    made = Shell(server, folder, outside)
    yield made
    made.kill()


def good_parts(folder: Path, count: int = N_GOOD) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    line = SimulatedLine(seed=3)
    for i in range(count):
        save(folder / f"good-{i:02d}.png", line.part(i, None).picture)
    return folder


def save(path: Path, picture: np.ndarray) -> None:
    assert cv2.imwrite(str(path), picture)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below, but for what a station writes into its own state directory."""
    return {
        name: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not (name := path.relative_to(folder).as_posix()).startswith("state/")
    }


# --- the user's mistakes -----------------------------------------------------------------------------------------


def _train(prepare: Callable[[Path], object]) -> Callable[[Path], None]:
    """An older bundle lies where the new one should go; it is part of what must survive."""

    def made(folder: Path) -> None:
        (folder / "part.flawline").write_bytes(b"the bundle of last week")
        prepare(folder)

    return made


def _texts(folder: Path) -> None:
    (folder / "good").mkdir()
    for name in ("readme.txt", "list.csv"):
        (folder / "good" / name).write_text("no picture", encoding="utf-8")


def _truncated(folder: Path) -> None:
    data = BUNDLE.read_bytes()
    (folder / "part.flawline").write_bytes(data[: len(data) // 2])


def _tampered(folder: Path) -> None:
    """One byte of the graph, in an archive that is a good one otherwise."""
    packed = io.BytesIO()
    with zipfile.ZipFile(BUNDLE) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            data = bytearray(old.read(name))
            if name == MODEL:
                data[len(data) // 2] ^= 1
            new.writestr(name, bytes(data))
    (folder / "part.flawline").write_bytes(packed.getvalue())


def _text_bundle(folder: Path) -> None:
    (folder / "part.flawline").write_text("no bundle", encoding="utf-8")


def _whole(folder: Path) -> None:
    shutil.copy(BUNDLE, folder / "part.flawline")


def _station(**changes: object) -> Callable[[Path], None]:
    def made(folder: Path) -> None:
        good_parts(folder / "pictures", 1)
        (folder / "empty").mkdir()
        settings = {
            "cameras": [{"name": "top", "source": {"kind": "folder", "path": "pictures", "fps": 10, "loop": False}}],
            "recipes": {1: str(BUNDLE)},
            "mqtt": {"host": "127.0.0.1", "port": 9},  # nobody listens there
            **changes,
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")

    return made


def _camera(**source: object) -> Callable[[Path], None]:
    return _station(cameras=[{"name": "top", "source": source}])


def _nothing(folder: Path) -> None:
    pass


TRAIN = ["train", "good", "-o", "part.flawline", *SMALL]
CASES: dict[str, tuple[Callable[[Path], object], list[str], list[str]]] = {
    # name: what lies there, the command, what the sentence has to name
    "train, empty folder": (_train(lambda folder: (folder / "good").mkdir()), [*TRAIN, "--steps=2"], ["good", "empty"]),
    "train, text files only": (_train(_texts), [*TRAIN, "--steps=2"], ["good", "2 files"]),
    "train, one picture": (_train(lambda f: good_parts(f / "good", 1)), [*TRAIN, "--steps=2"], ["good", "1 usable"]),
    "train, no such folder": (_train(_nothing), [*TRAIN, "--steps=2"], ["good", "does not exist"]),
    "train, output in a missing folder": (
        lambda folder: good_parts(folder / "good"),
        ["train", "good", "-o", "models/part.flawline", *SMALL, "--steps=2"],
        ["models", "does not exist"],
    ),
    "train, --size 100": (
        _train(lambda folder: good_parts(folder / "good")),
        ["train", "good", "-o", "part.flawline", "--size", "100", "--steps=2"],
        ["--size", "100", "96"],
    ),
    "train, --steps with --minutes": (
        _train(lambda folder: good_parts(folder / "good")),
        [*TRAIN, "--steps=2", "--minutes=1"],
        ["--steps", "--minutes"],
    ),
    **{
        f"{command}, {state} bundle": (prepare, arguments, ["part.flawline", *named])
        for command, arguments in {
            "check": ["check", "part.flawline", "pictures"],
            "eval": ["eval", "part.flawline", "dataset"],
            "bundle show": ["bundle", "show", "part.flawline"],
            "bundle verify": ["bundle", "verify", "part.flawline"],
        }.items()
        for state, prepare, named in (
            ("missing", _nothing, ["does not exist"]),
            ("truncated", _truncated, ["truncated"]),
            ("tampered", _tampered, [MODEL]),
            ("text for a", _text_bundle, ["not a bundle"]),
        )
    },
    "check, no such picture": (_whole, ["check", "part.flawline", "new.png"], ["new.png", "does not exist"]),
    "check, empty folder": (
        lambda folder: (_whole(folder), (folder / "new").mkdir()),
        ["check", "part.flawline", "new"],
        ["new", "no picture"],
    ),
    "eval, no such data set": (_whole, ["eval", "part.flawline", "dataset"], ["dataset", "does not exist"]),
    "eval, pictures without the layout": (
        lambda folder: (_whole(folder), good_parts(folder / "dataset")),
        ["eval", "part.flawline", "dataset"],
        ["dataset", "test/good"],
    ),
    "eval, good parts only": (
        lambda folder: (_whole(folder), good_parts(folder / "dataset" / "test" / "good")),
        ["eval", "part.flawline", "dataset"],
        ["dataset", "defect"],
    ),
    "run, unknown key": (_station(deadline=200), ["run"], ["config.yaml", '"deadline"', '"deadline_ms"']),
    "run, unknown key of a camera": (
        _camera(kind="folder", pth="pictures", path="pictures"),
        ["run"],
        ["config.yaml", "cameras[0].source", '"pth"', '"path"'],
    ),
    "run, no configuration": (_nothing, ["run"], ["config.yaml", "does not exist"]),
    "run, no such configuration": (_nothing, ["run", "--config", "press7.yaml"], ["press7.yaml", "does not exist"]),
    "run, no such camera folder": (_camera(kind="folder", path="elsewhere"), ["run"], ["elsewhere", "does not exist"]),
    "run, empty camera folder": (_camera(kind="folder", path="empty"), ["run"], ["empty", "no picture"]),
    "run, no such video": (_camera(kind="video", path="line.mkv"), ["run"], ["line.mkv", "no such file"]),
    "run, no such device": (_camera(kind="device", device=99), ["run"], ["/dev/video99"]),
    "run, missing bundle": (_station(recipes={1: "cap.flawline"}), ["run"], ["cap.flawline", "does not exist"]),
    "demo, no parts": (_nothing, ["demo", "--parts", "0"], ["--parts", "0"]),
}
TALKATIVE = ("run", "train")
"""Their logs and progress go to stderr too, around the one sentence."""


@pytest.mark.parametrize(("prepare", "arguments", "named"), CASES.values(), ids=CASES.keys())
def test_a_mistake_gets_one_sentence(
    prepare: Callable[[Path], object], arguments: list[str], named: list[str], shell: Shell
) -> None:
    """2, one line that names what was wrong, no traceback, nothing on stdout; and every file is as it was, none
    more and none less.
    """
    prepare(shell.folder)
    before = tree(shell.folder)
    ended = shell(*arguments)
    assert ended.code == MISTAKE, ended
    assert "Traceback" not in ended.stderr, ended
    missing = [name for name in named if name not in ended.sentence]
    assert not missing, f"{missing} not in: {ended.sentence}"
    assert ended.stdout == "", ended
    if arguments[0] not in TALKATIVE:
        assert ended.stderr.splitlines() == [ended.sentence], ended
    assert tree(shell.folder) == before


def test_debug_shows_the_traceback(shell: Shell) -> None:
    """For who wants to know where it came from: the same sentence at the end of a traceback."""
    _text_bundle(shell.folder)
    ended = shell("bundle", "verify", "part.flawline", "--debug")
    assert ended.code not in (DONE, INTERRUPTED), ended
    assert "Traceback (most recent call last)" in ended.stderr, ended
    assert "BundleError" in ended.stderr and "not a bundle" in ended.stderr, ended


# --- pictures that are not like the others -----------------------------------------------------------------------


def test_odd_pictures_are_used_and_broken_ones_named(shell: Shell) -> None:
    """Grey, 16-bit, alpha and other sizes are learnt from, and train says what it did with sizes and depth; a
    truncated PNG is skipped by name. The bundle's manifest tells the same.
    """
    good = good_parts(shell.folder / "good")
    picture = cv2.imread(str(good / "good-00.png"))
    save(good / "alpha.png", cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA))
    save(good / "deep.png", cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.uint16) * 16)  # 12 of 16 bits
    save(good / "grey.png", cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))
    save(good / "large.jpg", cv2.resize(picture, (640, 480)))
    save(good / "tall.bmp", cv2.resize(picture, (240, 320)))
    whole = (good / "good-01.png").read_bytes()
    (good / "cut-off.png").write_bytes(whole[: len(whole) // 2])
    (good / "notes.txt").write_text("not a picture, and not meant to be one", encoding="utf-8")

    ended = shell("train", str(good), "-o", "part.flawline", "--steps", "2", *SMALL)
    assert ended.code == DONE, ended
    assert "Traceback" not in ended.stderr, ended
    said = " ".join(ended.stderr.split())  # as a reader sees it, wherever the lines end
    assert "truncated" in said, ended
    # In one piece, however long: a path that is broken at the eightieth column cannot be copied or searched for.
    assert str(good / "cut-off.png") in ended.stderr, ended
    assert "3 sizes" in said and "1 of 640x480" in said and "1 of 240x320" in said, ended
    assert "16-bit" in said and "12 bits" in said, ended
    assert "notes.txt" not in said, ended

    manifest = Bundle.open(shell.folder / "part.flawline").manifest
    used = {entry.file for entry in manifest.data.pictures}
    assert used == {f"good-{i:02d}.png" for i in range(N_GOOD)} | {
        "alpha.png", "deep.png", "grey.png", "large.jpg", "tall.bmp",
    }  # fmt: skip
    assert [entry.file for entry in manifest.data.skipped] == ["cut-off.png"]
    assert manifest.frame.bit_depth == 12
    assert not [
        path for path in shell.folder.iterdir() if path.name not in ("good", "part.flawline", "part.report.html")
    ]


# --- the end of training -----------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_bundle(shell: Shell) -> None:
    """Found out at the very end: 2, one sentence, the bundle of last week is still there and nothing lies beside it."""
    good_parts(shell.folder / "good")
    _whole(shell.folder)
    before = tree(shell.folder)
    ended = shell(*TRAIN, "--steps", "2", full_disk=True)
    assert ended.code == MISTAKE, ended
    assert "Traceback" not in ended.stderr, ended
    assert "part.flawline" in ended.sentence and os.strerror(errno.ENOSPC) in ended.sentence
    assert tree(shell.folder) == before
    Bundle.open(shell.folder / "part.flawline")


class Terminal:
    """A terminal for a command's stderr: a progress bar is drawn there only.

    It is read all the time: a command whose terminal is full waits.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = pty.openpty()
        self.path = os.ttyname(self._theirs)
        self.text = ""
        self._news = threading.Condition()
        self._closed = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while not self._closed.is_set():
            if select.select([self._ours], [], [], 0.05)[0]:
                data = os.read(self._ours, 65536)
                with self._news:
                    self.text += data.decode(errors="replace")
                    self._news.notify_all()

    def until(self, expected: str) -> None:
        with self._news:
            found = self._news.wait_for(lambda: expected in self.text, TIMEOUT_S)
        assert found, f"no {expected!r}; the last was {self.text[-500:]!r}"

    def until_match(self, pattern: str) -> None:
        with self._news:
            found = self._news.wait_for(lambda: re.search(pattern, self.text), TIMEOUT_S)
        assert found, f"no match of {pattern!r}; the last was {self.text[-500:]!r}"

    def close(self) -> None:
        self._closed.set()
        self._reader.join()
        os.close(self._theirs)
        os.close(self._ours)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with contextlib.closing(Terminal()) as made:
        yield made


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_training(times: int, shell: Shell, terminal: Terminal) -> None:
    """Once: training ends here and the bundle is written, 0. Twice: it stops, 130, and the old bundle stays."""
    good_parts(shell.folder / "good")
    (shell.folder / "part.flawline").write_bytes(b"the bundle of last week")
    before = tree(shell.folder)
    process = shell.start(*TRAIN, "--minutes", "3", terminal=terminal.path)
    terminal.until("step 2")
    if times == 1:
        # Three digits: before that nothing has been learnt that is worth a bundle.
        terminal.until_match(r"step \d{3,}")
    os.kill(process, signal.SIGINT)
    terminal.until("Ctrl-C again")
    if times == 2:
        os.kill(process, signal.SIGINT)
    ended = shell.wait()
    last_words = terminal.text[-1500:]
    assert "Traceback" not in terminal.text, last_words
    if times == 1:
        assert ended.code == DONE, last_words
        bundle = Bundle.open(shell.folder / "part.flawline")
        assert bundle.manifest.method.parameters["steps"] >= 100
        assert bundle.model_id in ended.stdout
    else:
        assert ended.code == INTERRUPTED, last_words
        assert tree(shell.folder) == before


def test_ctrl_c_before_anything_was_learnt(shell: Shell, terminal: Terminal) -> None:
    """A model of a few steps never replaces last week's bundle: nothing is written, 130, and one sentence says why."""
    good_parts(shell.folder / "good")
    (shell.folder / "part.flawline").write_bytes(b"the bundle of last week")
    before = tree(shell.folder)
    big = ["train", "good", "-o", "part.flawline", "--width", "96", "--size", "256"]
    process = shell.start(*big, "--minutes", "3", terminal=terminal.path)
    terminal.until("step 2")
    os.kill(process, signal.SIGINT)
    ended = shell.wait()
    assert ended.code == INTERRUPTED, terminal.text[-1500:]
    assert "too early to have learnt anything" in terminal.text
    assert tree(shell.folder) == before
