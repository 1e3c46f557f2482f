"""`flawline soak`."""

from __future__ import annotations

import contextlib
import fnmatch
import json as json_module
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from flawline_edge.connection import tls_context
from flawline_edge.journal import JournalError
from flawline_edge.soak import Account, Growth, Ledger, Plc, Sample, growths, sample
from flawline_edge.soak.resources import family
from flawline_edge.status_file import HEALTHY_STATES, StatusError, read_status
from flawline_inspect.config import EMBEDDED_BROKER, Config, load_config, mqtt_key_password, mqtt_password
from flawline_inspect.errors import EXIT_DONE, EXIT_FAILURE, FlawlineError, InputError

__all__ = ["soak"]

START_S = 120.0
"""For a station whose engine is large and not cached."""
STOP_S = 30.0
SLACK_S = 1.0
"""Beside the deadline: the way to the broker and back, twice."""
SETTLE_S = 60.0
_SAMPLES = 400
_SHORTEST_SAMPLE_S, _LONGEST_SAMPLE_S = 0.25, 5.0
_WARM_UP = 0.2
"""This share of the time is not compared: caches fill, and the first parts load what is loaded lazily."""
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class _Report:
    """What a soak found. Latencies in milliseconds."""

    seconds: float
    account: Account
    growths: list[Growth]
    samples: int
    problems: list[str]

    def to_json(self) -> str:
        account = asdict(self.account)
        del account["latencies_ms"]
        latency = {name: _rounded(self.account.latency_ms(share)) for name, share in _QUANTILES.items()}
        grown = {g.name: {"before": g.before, "after": g.after, "growth": round(g.share, 4)} for g in self.growths}
        return json_module.dumps(
            {
                "ok": not self.problems,
                "seconds": round(self.seconds, 1),
                **account,
                "latency_ms": latency,
                "resources": grown,
                "samples": self.samples,
                "problems": self.problems,
            }
        )


_QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


def soak(
    *,
    config: Path = Path("config.yaml"),
    minutes: float = 30.0,
    rate: float = 20.0,
    defective: str = "",
    json: bool = False,
) -> int:
    """Put a station under load and hold it to its contract, and to the memory it began with.

    A station that runs already is taken as it is, else one is started and stopped again. Where triggers come by MQTT they
    are sent; the parts of other cameras are counted as they come. Ends with 1 when a trigger was lost, told twice with
    different results, late on the live topic or wrongly OK, or when memory, file handles, threads or undelivered
    verdicts have grown by more than 2 % after the first fifth of the time.

    Parameters
    ----------
    config
        The station's configuration.
    minutes
        How long; 30 show a leak of 2 %, a few show that all is connected.
    rate
        Triggers a second, over all cameras that are triggered by MQTT.
    defective
        Parts whose id matches this pattern are known to be defective, and OK is wrong for them. Needs a camera that names
        its parts, such as a folder.
    json
        Print one JSON object.
    """
    for option, number in {"--minutes": minutes, "--rate": rate}.items():
        if not 0 < number < float("inf"):
            raise InputError(f"{option} is {number:g}, expected a number above 0")
    loaded = load_config(config)
    ledger = Ledger(
        loaded.deadline_ms / 1e3 + SLACK_S,
        is_defective=(lambda part: fnmatch.fnmatchcase(part, defective)) if defective else (lambda part: False),
    )
    with _station(loaded, config) as pid, _plc(loaded, ledger) as plc:
        report = _soak(loaded, plc, pid, 60 * minutes, rate)
    print(report.to_json()) if json else _show(report)
    return EXIT_FAILURE if report.problems else EXIT_DONE


def _soak(config: Config, plc: Plc, pid: int, seconds: float, rate: float) -> _Report:
    samples: list[Sample] = []
    began = time.monotonic()
    interval_s = min(max(seconds / _SAMPLES, _SHORTEST_SAMPLE_S), _LONGEST_SAMPLE_S)
    is_alive = True
    with plc.load(rate) if _triggered(config) else contextlib.nullcontext():
        while is_alive and time.monotonic() < began + seconds:
            time.sleep(min(interval_s, max(0.0, began + seconds - time.monotonic())))
            with contextlib.suppress(JournalError):  # being written anew; the next sample has it
                found = sample(pid, config.state_dir)
                is_alive = found is not None
                samples += [found] if found is not None else []
    seconds = time.monotonic() - began
    account = _settled(plc.ledger, began, config.deadline_ms / 1e3)
    grown = growths(samples, _WARM_UP * seconds)
    problems = list(account.breaches)
    if not is_alive:
        problems.append("the station has ended; its log says why")
    if not account.live:
        problems.append("no verdict came on the live topic; check mqtt.root, and the station's trigger")
    if not grown and is_alive:
        problems.append(f"{len(samples)} samples in {seconds:.0f} s are too few to see growth; take more --minutes")
    problems += [
        f"{each.name} has grown by {100 * each.share:.1f} %, from {each.before:g} to {each.after:g}; at most 2 % are allowed"
        for each in grown
        if each.is_too_much
    ]
    if plc.unreadable:
        problems.append(f"{plc.unreadable} messages were no verdicts, states or acknowledgements of a station")
    return _Report(seconds, account, grown, len(samples), problems)


def _settled(ledger: Ledger, since: float, deadline_s: float) -> Account:
    """What is under way when the load ends may still arrive."""
    until = time.monotonic() + SETTLE_S
    while True:
        time.sleep(deadline_s + 0.2)
        account = ledger.account(since)
        if not account.missing or time.monotonic() > until:
            return account


def _triggered(config: Config) -> list[str]:
    """The cameras that are triggered by MQTT, as their topics call them."""
    named = config.has_several_cameras
    return [each.name if named else "" for each in config.cameras if config.trigger_of(each).kind == "mqtt"]


def _plc(config: Config, ledger: Ledger) -> Plc:
    mqtt = config.mqtt
    tls = tls_context(mqtt.tls, _revealed(mqtt_key_password())) if mqtt.tls is not None else None
    return Plc(
        "127.0.0.1" if mqtt.host == EMBEDDED_BROKER else mqtt.host,
        mqtt.port,
        mqtt.root,
        ledger,
        cameras=_triggered(config) or ("",),
        username=mqtt.username,
        password=_revealed(mqtt_password()),
        tls=tls,
    )


@contextlib.contextmanager
def _station(config: Config, path: Path) -> Iterator[int]:
    """The main process of a station that is ready: the one that runs, or one for as long as this lasts."""
    with contextlib.suppress(StatusError):
        status = read_status(config.state_dir)
        if status.state in HEALTHY_STATES and family(status.pid):
            yield status.pid
            return
    command = [sys.executable, "-m", "flawline_inspect.cli", "run", "--config", str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)}
    with subprocess.Popen(command, env=environment) as process:
        try:
            _wait_until_ready(config, process)
            yield process.pid
        finally:
            process.terminate()
            try:
                code = process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise FlawlineError(
                    f"the station does not end within {STOP_S:g} s of SIGTERM; its log says where"
                ) from None
        if code:
            raise FlawlineError(f"the station ended with exit code {code} on SIGTERM, expected 0; its log says why")


def _wait_until_ready(config: Config, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise FlawlineError(
                f"the station has ended with exit code {process.returncode} before it was ready; see above"
            )
        with contextlib.suppress(StatusError):
            status = read_status(config.state_dir)
            if status.pid == process.pid and status.state in HEALTHY_STATES:
                return
        time.sleep(0.1)
    raise FlawlineError(f"the station is not ready after {START_S:g} s; its log says why")


def _show(report: _Report) -> None:
    account, console = report.account, Console(highlight=False)
    parts = Table("parts", "", title=f"{report.seconds:.0f} s under load", title_justify="left")
    for name, number in {
        "triggers sent": account.sent,
        "refused": account.refused,
        "accepted": account.accepted,
        "told live": account.live,
        "told on history": account.history,
        "heard again": account.repeated,
        "lost or contradicted": len(account.missing) + len(account.contradictions),
        "wrongly OK": len(account.wrong_ok),
        "old on the live topic": len(account.stale),
    }.items():
        parts.add_row(name, str(number))
    parts.add_row("Undefined, OK, NotOK, NotDecidable", ", ".join(map(str, account.by_result)))
    if account.latencies_ms:
        values = " / ".join(f"{account.latency_ms(share):.1f}" for share in _QUANTILES.values())
        parts.add_row(f"trigger to verdict, ms ({' / '.join(_QUANTILES)})", values)
    console.print(parts)
    grown = Table("resource", "early", "late", "growth", title=f"{report.samples} samples", title_justify="left")
    for each in report.growths:
        grown.add_row(each.name, f"{each.before:g}", f"{each.after:g}", f"{100 * each.share:+.1f} %")
    console.print(grown)
    for problem in report.problems[:_SHOWN]:
        console.print(f"[red]{problem}[/red]")
    if len(report.problems) > _SHOWN:
        console.print(f"and {len(report.problems) - _SHOWN} more; --json has them all")


def _rounded(number: float) -> float | None:
    return None if math.isnan(number) else round(number, 2)


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
