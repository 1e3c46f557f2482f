"""Live cameras, each captured by a process of its own that can be ended and started again when its driver hangs."""

from flawline_edge.capture.captured import CaptureCounts, CapturedCamera

__all__ = ["CaptureCounts", "CapturedCamera"]
