"""`flawline run`."""

from __future__ import annotations

import logging
from pathlib import Path

from flawline_edge.daemon import call_on_hangup, stop_on_signals
from flawline_edge.station import Station
from flawline_inspect.config import doubts, load_config
from flawline_inspect.logs import LogStyle, set_up_logs

__all__ = ["run"]


def run(*, config: Path = Path("config.yaml"), verbose: bool = False, log: LogStyle | None = None) -> int:
    """Run the station until SIGTERM, Ctrl-C or the end of a finite source. SIGHUP has it read its configuration again.

    Parameters
    ----------
    config
        The station's configuration.
    verbose
        Log every part, not only changes of state.
    log
        text or json; without it the configuration's.
    """
    if log is not None:
        set_up_logs(log)  # before the configuration is read: that may be what has to be told
    logging.getLogger().setLevel(min(logging.INFO, logging.getLogger().level))
    parts = logging.getLogger("flawline.verdict")
    observers = [lambda inspection: parts.info("%s", inspection.verdict.to_json())] if verbose else []
    loaded = load_config(config)
    set_up_logs(log or loaded.log, station=loaded.station)
    for sentence in doubts(loaded):
        parts.warning("%s: %s", config, sentence)
    station = Station(loaded, observers=observers, reread=lambda: load_config(config))
    with stop_on_signals() as stop, call_on_hangup(station.reload):
        code = station.run(stop)
    counts = station.counts
    logging.getLogger(__name__).info(
        "%d parts: %d OK, %d NotOK, %d NotDecidable, %d Undefined; %d frames dropped, %d late, %d unjournaled",
        counts.inspected,
        counts.by_result[1],
        counts.by_result[2],
        counts.by_result[3],
        counts.by_result[0],
        counts.dropped,
        counts.late,
        counts.unjournaled,
    )
    return code
