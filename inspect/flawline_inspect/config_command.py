"""`flawline config check` and `flawline config schema`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from flawline_inspect.bundle import Bundle
from flawline_inspect.config import config_schema, doubts, load_config
from flawline_inspect.errors import EXIT_DONE, EXIT_FAILURE, BundleError, InputError
from flawline_inspect.overrides import load_overrides

__all__ = ["check", "schema"]

DEFAULT_CONFIG = Path("config.yaml")


def check(file: Path = DEFAULT_CONFIG, /) -> int:
    """Check a configuration and the files that it names, and print what is in force, defaults included.

    Ends with 1 when it is valid and yet will not work as it stands.

    Parameters
    ----------
    file
        The configuration.
    """
    config = load_config(file)
    for number, recipe in sorted(config.recipes.items()):
        try:
            Bundle.open(recipe.bundle, public_key=config.security.public_key)
        except BundleError as exc:
            raise BundleError(f"{file}: recipes.{number}: {exc}") from exc
        try:
            recipe.decision_rule(1.0)
        except InputError as exc:
            raise InputError(f"{file}: recipes.{number}.regions.ignore: {exc}") from exc
    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None), end="")
    for line in load_overrides(config.state_dir).lines(config):
        print(f"# changed at run time ({config.state_dir}): {line}")
    found = doubts(config)
    for sentence in found:
        print(f"flawline: {file}: {sentence}", file=sys.stderr)
    print(f"# {file}: " + (f"valid, with {len(found)} doubts" if found else "good"))
    return EXIT_FAILURE if found else EXIT_DONE


def schema(file: Path | None = None, /) -> None:
    """Print the JSON schema of config.yaml: every key with its description, unit and default.

    Parameters
    ----------
    file
        Write it here instead of to the terminal.
    """
    text = json.dumps(config_schema(), indent=2)
    if file is None:
        print(text)
    else:
        try:
            file.write_text(text + "\n", encoding="utf-8")
        except OSError as exc:
            raise InputError(
                f"{file}: cannot be written ({exc.strerror}); name a file in a folder that exists"
            ) from exc
