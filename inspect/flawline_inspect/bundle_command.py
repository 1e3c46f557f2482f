"""`flawline bundle show` and `flawline bundle verify`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flawline_inspect.bundle import REPORT, AlignSection, Bundle, CalibrationSection
from flawline_inspect.errors import InputError
from flawline_inspect.files import write_atomic

__all__ = ["show", "verify"]


def show(bundle: Path, /, *, json: bool = False, report: Path | None = None) -> None:
    """Show what a bundle is: model, frame, threshold, what was promised, data, golden pictures, members.

    Parameters
    ----------
    bundle
        A .flawline file.
    json
        Print the manifest instead, as one JSON object.
    report
        Write the training report that the bundle carries to this file instead, to be opened in a browser.
    """
    opened = Bundle.open(bundle)
    if report is not None:
        page = opened.member(REPORT)
        try:
            write_atomic(report, page)
        except OSError as exc:
            raise InputError(f"{report}: the report cannot be written ({exc.strerror or exc})") from exc
        print(f"{report}: report of {opened.model_id}, {len(page) / 1e6:.1f} MB; open it in a browser")
        return
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
    estimate = "within the promise" if calibration.within_promise else "an estimate"
    for key, value in {
        "model": f"{opened.model_id} (made {manifest.created} by flawline {manifest.versions.get('flawline', '?')})",
        "method": f"{manifest.method.name}: {parameters}",
        "frame": f"{frame.width} x {frame.height} px BGR, from pictures of {frame.picture_wh[0]} x {frame.picture_wh[1]}",
        "kind": frame.kind,
        "alignment": _alignment(frame.align),
        "region": "whole picture" if frame.roi is None else f"x, y, width, height = {list(frame.roi)}",
        "threshold": f"{calibration.threshold:.4f}" + (", the cheapest" if calibration.basis == "cheapest" else ""),
        "promised": _promise(calibration),
        "target": f"{calibration.false_reject_target:.2%} false rejects ({estimate})",
        **_what_else(calibration),
        "data": (
            f"{roles.count('train')} pictures to learn from, {roles.count('calibration')} to calibrate, "
            f"{len(manifest.data.skipped)} skipped"
            + f", {roles.count('left_out')} suspects left out"
            * ("left_out" in roles)
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


def _promise(calibration: CalibrationSection) -> str:
    rate, n = f"{calibration.promised_false_reject_rate:.2%} false rejects", len(calibration.scores)
    if calibration.confidence is None:
        return f"{rate} on average, from {n} held-out good pictures"
    return (
        f"at most {rate} (confidence {calibration.confidence:.0%}), from {n} held-out good parts, {calibration.exceedances} of "
        "them above the threshold"
    )


def _what_else(calibration: CalibrationSection) -> dict[str, str]:
    """What only some bundles know of their threshold."""
    rows: dict[str, str] = {}
    if calibration.estimated_false_reject_rate is not None:
        rows["estimated"] = f"{calibration.estimated_false_reject_rate:.2%} false rejects"
    if calibration.suspects:
        rows["suspects"] = ", ".join(
            f"{suspect.part} ({suspect.score:.4f}, {'skipped' if suspect.skipped else 'kept'})"
            for suspect in calibration.suspects
        )
    if calibration.defects is not None:
        rows["escapes"] = ", ".join(
            f"{kind.escaped} of {kind.n} {kind.kind} ({kind.escape_interval[0]:.1%} to {kind.escape_interval[1]:.1%})"
            for kind in calibration.defects.kinds
        )
        costs = calibration.defects.costs
        if costs is not None:
            rows["costs"] = (
                f"{costs.cost_per_part:.4g} a part; {costs.cheapest_cost_per_part:.4g} at {costs.cheapest_threshold:.4f}, the cheapest "
                f"(false reject {costs.false_reject:g}, escape {costs.escape:g}, {costs.defect_rate:.2%} defective)"
            )
    return rows


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
