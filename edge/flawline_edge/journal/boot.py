"""The name of a start of the station."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

from flawline_edge.journal.layout import JournalError
from flawline_inspect.files import write_atomic

__all__ = ["next_boot"]

_log = logging.getLogger(__name__)


def next_boot(state_dir: Path) -> str:
    """A new name for this start of the station: 4 hex digits that count starts, 4 random ones.

    The random ones keep names apart when the counter was lost with its disk. Raises `JournalError` when the
    counter cannot be kept.
    """
    path = state_dir / "boot"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        try:
            count = int(path.read_text(encoding="ascii"), 16)
        except FileNotFoundError:
            count = 0
        except ValueError:
            _log.warning("%s: is not a counter of 4 hex digits, counting from 0 again", path)
            count = 0
        count = (count + 1) & 0xFFFF
        write_atomic(path, f"{count:04x}\n".encode("ascii"))
    except OSError as exc:
        raise JournalError(
            f"{path}: the boot counter cannot be kept ({exc}); give the station a writable state_dir"
        ) from exc
    return f"{count:04x}{secrets.token_hex(2)}"
