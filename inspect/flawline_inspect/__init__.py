"""The language of inspection: frames, verdicts, decisions, calibration, the bundle and the configuration."""

from flawline_inspect.bundle import Bundle, Golden, Manifest
from flawline_inspect.config import Config, load_config
from flawline_inspect.decision import Decision, DecisionRule
from flawline_inspect.errors import (
    BrokerError,
    BundleError,
    CameraError,
    ConfigError,
    EngineError,
    FlawlineError,
    HealthError,
    InputError,
    PictureError,
    PlacementError,
)
from flawline_inspect.frame import FrameSpec, Placement, fit_picture, read_picture
from flawline_inspect.health import Health
from flawline_inspect.overlay import heatmap_overlay, rejection_picture
from flawline_inspect.verdict import VERDICT_SCHEMA, Reason, Result, Verdict

__version__ = "0.1.0"

__all__ = [
    "VERDICT_SCHEMA",
    "BrokerError",
    "Bundle",
    "BundleError",
    "CameraError",
    "Config",
    "ConfigError",
    "Decision",
    "DecisionRule",
    "EngineError",
    "FlawlineError",
    "FrameSpec",
    "Golden",
    "Health",
    "HealthError",
    "InputError",
    "Manifest",
    "PictureError",
    "Placement",
    "PlacementError",
    "Reason",
    "Result",
    "Verdict",
    "__version__",
    "fit_picture",
    "heatmap_overlay",
    "load_config",
    "read_picture",
    "rejection_picture",
]
