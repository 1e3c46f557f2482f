"""`flawline bundle show` and `flawline bundle verify`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flawline_inspect.bundle import AlignSection, Bundle

__all__ = ["show", "verify"]


def show(bundle: Path, /, *, json: bool = False) -> None:
    """Show what a bundle is: model, frame, threshold, what was promised, data, golden pictures, members.

    Parameters
    ----------
    bundle
        A .flawline file.
    json
        Print the manifest instead, as one JSON object.
    """
    opened = Bundle.open(bundle)
    if json:
        print(opened.manifest.model_dump_json())
        return
    manifest = opened.manifest
    calibration, frame = manifest.calibration, manifest.frame
    golden = [entry.label for entry in manifest.golden]
    roles = [picture.role for picture in manifest.data.pictures]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    parameters = ", ".join(f"{key} {value}" for key, value in manifest.method.parameters.items())
    estimate = "an estimate" if calibration.basis == "log_normal" else "within the promise"
    for key, value in {
        "model": f"{opened.model_id} (made {manifest.created} by flawline {manifest.versions.get('flawline', '?')})",
        "method": f"{manifest.method.name}: {parameters}",
        "frame": f"{frame.width} x {frame.height} px BGR, from pictures of {frame.picture_wh[0]} x {frame.picture_wh[1]}",
        "alignment": _alignment(frame.align),
        "region": "whole picture" if frame.roi is None else f"x, y, width, height = {list(frame.roi)}",
        "threshold": f"{calibration.threshold:.4f}",
        "promised": (
            f"{calibration.promised_false_reject_rate:.2%} false rejects, "
            f"from {len(calibration.scores)} held-out good pictures"
        ),
        "target": f"{calibration.false_reject_target:.2%} false rejects ({estimate})",
        "data": (
            f"{roles.count('train')} pictures to learn from, {roles.count('calibration')} to calibrate, "
            f"{len(manifest.data.skipped)} skipped"
        ),
        "golden": f"{golden.count('good')} good, {golden.count('damaged')} damaged",
        "intended use": manifest.card.intended_use,
        "limits": manifest.card.limits,
        "who may be wronged": manifest.card.who_may_be_wronged,
        "versions": ", ".join(f"{name} {number}" for name, number in manifest.versions.items()),
    }.items():
        table.add_row(key, Text(value))
    for name, entry in sorted(manifest.members.items()):
        if not name.startswith("golden/"):
            table.add_row(name, f"{entry.bytes / 1e6:.2f} MB  sha256 {entry.sha256[:16]}…")
    Console(highlight=False).print(table)


def _alignment(align: AlignSection | None) -> str:
    """One line: the kind, how parts are found, and the figures that it was chosen by."""
    if align is None:
        return "none"
    out: str = align.kind
    if align.placing is not None:
        low, high = align.placing.scales
        size = f", {low:.2f} to {high:.2f} times its size" if low < high else ""
        n = len(align.placing.references)
        bounds = align.placing.bounds
        out += (
            f" to {n} reference{'s' * (n > 1)}{size}; not placed below a correlation of {bounds.correlation:.2f} "
            f"(good parts: {bounds.doubt:.2f})"
        )
    figures = ", ".join(f"{kind} {value:.3f}" for kind, value in align.disagreement.items())
    return f"{out}; good parts' disagreement: {figures}" if figures else out


def verify(bundle: Path, /) -> None:
    """Verify a bundle: every member there, none too many, each with the SHA-256 that the manifest gives.

    Parameters
    ----------
    bundle
        A .flawline file.
    """
    opened = Bundle.open(bundle)
    for _ in opened.golden():
        pass  # decoded, so that a picture that is whole but unreadable shows here and not on the line
    print(f"{bundle}: good; {opened.model_id}, {len(opened.manifest.members)} members verified")
