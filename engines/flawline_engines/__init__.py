"""Running a bundle's graph on whatever this machine has."""

from flawline_engines.engine import Engine, EngineKind, Inference, Precision, open_engine

__all__ = ["Engine", "EngineKind", "Inference", "Precision", "open_engine"]
