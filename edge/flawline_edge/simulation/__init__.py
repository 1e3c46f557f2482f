"""A simulated line: gearbox covers with fitted bearing, seal and print, on a belt under a ring light."""

from flawline_edge.simulation.dataset import write_dataset
from flawline_edge.simulation.defects import DEFECT_KINDS
from flawline_edge.simulation.line import SimulatedLine, SimulatedPart

__all__ = ["DEFECT_KINDS", "SimulatedLine", "SimulatedPart", "write_dataset"]
