"""What can go wrong, sorted by who has to act.

    FlawlineError             anything below; `exit_code` is what the command line ends with
    ├── InputError            the user: a path, a picture, an option (exit code 2)
    │   ├── ConfigError       the user: config.yaml
    │   ├── PictureError      the user or the camera: a picture that cannot be read or fitted
    │   │   └── HealthError   the line: a picture that cannot be judged, such as a dark or blurred one
    │   │       └── PlacementError  the line: no part in the picture, or one that cannot be found in it
    │   └── BundleError       the engineer: a bundle that is missing, damaged or tampered with
    ├── CameraError           the electrician: a camera that is lost or silent (1; 2 when it was never there)
    ├── EngineError           the engineer: no engine, or one that fails (1)
    └── BrokerError           the network: the MQTT broker (1)

Each message is one sentence that says what was found, what was expected and what to do.
"""

from __future__ import annotations

__all__ = [
    "BrokerError",
    "BundleError",
    "CameraError",
    "ConfigError",
    "EngineError",
    "FlawlineError",
    "HealthError",
    "InputError",
    "PictureError",
    "PlacementError",
]

EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_USER_MISTAKE = 2
EXIT_NOT_OK = 3
"""`flawline check` when any result is not OK."""
EXIT_INTERRUPTED = 130


class FlawlineError(Exception):
    """Base of every error that is reported as one sentence, without a traceback."""

    exit_code = EXIT_FAILURE


class InputError(FlawlineError, ValueError):
    """Something the user gave cannot be used: a path, an option, a data set."""

    exit_code = EXIT_USER_MISTAKE


class ConfigError(InputError):
    """The configuration contradicts itself or the schema."""


class PictureError(InputError):
    """A picture cannot be read, or has a shape or type that cannot be inspected."""


class HealthError(PictureError):
    """The picture cannot be judged, whatever its part is like: NotDecidable, which is no verdict on the part."""


class PlacementError(HealthError):
    """The part cannot be placed: it is not there, or nothing like the reference is."""


class BundleError(InputError):
    """A bundle is missing, damaged, of another schema version, or not what its manifest says."""


class CameraError(FlawlineError, OSError):
    """A camera cannot be opened, or stopped giving pictures."""

    def __init__(self, message: str, *, exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class EngineError(FlawlineError, RuntimeError):
    """An engine cannot be opened, or failed to infer."""


class BrokerError(FlawlineError, ConnectionError):
    """The MQTT broker cannot be reached or refuses the station."""
