"""`flawline status`: for people, and for a container's HEALTHCHECK."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path

from flawline_edge.status_file import HEALTHY_STATES, read_status
from flawline_inspect.config import load_config
from flawline_inspect.errors import EXIT_DONE, EXIT_FAILURE

__all__ = ["status"]


def status(*, config: Path = Path("config.yaml"), json: bool = False) -> int:
    """Tell what the station is. Ends with 0 when it is ready, or paused because somebody asked for it; else with 1.

    Parameters
    ----------
    config
        The station's configuration.
    json
        Print one JSON object.
    """
    found = read_status(load_config(config).state_dir)
    print(json_module.dumps(asdict(found)) if json else found)
    return EXIT_DONE if found.state in HEALTHY_STATES else EXIT_FAILURE
