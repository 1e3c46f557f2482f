"""Whether a station keeps its word: a stand-in for the PLC, a ledger of what was promised and told, a watch on resources."""

from __future__ import annotations

from flawline_edge.soak.ledger import Account, Ledger
from flawline_edge.soak.plc import Plc
from flawline_edge.soak.resources import Growth, Sample, growths, sample

__all__ = ["Account", "Growth", "Ledger", "Plc", "Sample", "growths", "sample"]
