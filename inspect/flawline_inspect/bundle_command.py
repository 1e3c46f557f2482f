"""`flawline bundle show`, `verify`, `keygen` and `sign`."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flawline_inspect.bundle import REPORT, AlignSection, Bundle, CalibrationSection, read_bundle_file
from flawline_inspect.errors import InputError
from flawline_inspect.files import write_atomic
from flawline_inspect.health import Health, health_rows
from flawline_inspect.signature import PASSPHRASE_VARIABLE, fingerprint, new_key_pair, public_key_from_file
from flawline_inspect.signature import sign as signature_of

__all__ = ["keygen", "show", "sign", "verify"]


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
        "health": _health(opened.health),
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
        "signature": _signature(opened),
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


def _health(health: Health) -> str:
    """Which pictures are judged at all, a measure after the other."""
    rows = health_rows(health)
    return "; ".join(f"{name} {allowed} (good pictures: {good})" for name, good, allowed in rows) or "not checked"


def _signature(opened: Bundle) -> str:
    if opened.signature is None:
        return "none"
    if opened.public_key is None:
        return "Ed25519, not checked; `flawline bundle verify --public-key` does"
    return f"Ed25519, good for {opened.public_key}"


def verify(bundle: Path, /, *, public_key: Path | None = None) -> None:
    """Verify a bundle: every member there, none too many, each with the SHA-256 that the manifest gives.

    Parameters
    ----------
    bundle
        A .flawline file.
    public_key
        Also that it was signed with the key that belongs to this one; without it FLAWLINE_PUBLIC_KEY counts, if set.
    """
    opened = Bundle.open(bundle, public_key=public_key)
    for _ in opened.golden():
        pass  # decoded, so that a picture that is whole but unreadable shows here and not on the line
    signed = f", signed for {opened.public_key}" if opened.public_key is not None else ""
    print(f"{bundle}: good; {opened.model_id}, {len(opened.manifest.members)} members verified{signed}")


def keygen(name: Path, /) -> None:
    """Make a key pair to sign bundles with: NAME.key stays with who signs, NAME.pub goes to the stations.

    With FLAWLINE_SIGNING_PASSPHRASE in the environment the private key is encrypted with it.

    Parameters
    ----------
    name
        The files' name without an ending, for example keys/plant.
    """
    private, public = (name.with_name(name.name + suffix) for suffix in (".key", ".pub"))
    for path in (private, public):
        if path.exists():
            raise InputError(f"{path}: is there already; a key is never overwritten, give another name")
    passphrase = os.environ.get(PASSPHRASE_VARIABLE) or None
    private_pem, public_pem = new_key_pair(passphrase)
    try:
        # Exclusive and for its owner only from the first byte on.
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private_pem)
        write_atomic(public, public_pem)
    except OSError as exc:
        raise InputError(f"{exc.filename or private}: the key cannot be written ({exc.strerror or exc})") from exc
    kept = "encrypted" if passphrase else f"not encrypted; {PASSPHRASE_VARIABLE} would do that"
    print(f"{private}: private key, {kept}; keep it away from the stations")
    print(
        f"{public}: public key {fingerprint(public_key_from_file(public))}; name it as security.public_key in config.yaml"
    )


def sign(bundle: Path, /, *, key: Path, out: Path | None = None) -> None:
    """Sign a bundle. Its model id stays what it is; a signature that it had is replaced.

    The passphrase of an encrypted key comes from FLAWLINE_SIGNING_PASSPHRASE.

    Parameters
    ----------
    bundle
        A .flawline file.
    key
        The private key, made by `flawline bundle keygen`.
    out
        Write the signed bundle here and leave the other one.
    """
    # Not `Bundle.open`: whoever signs vouches for what is in there, whoever signed it before.
    opened = Bundle(read_bundle_file(bundle), str(bundle))
    data = opened.signed(signature_of(opened.manifest_bytes, key, os.environ.get(PASSPHRASE_VARIABLE) or None))
    target = out or bundle
    try:
        write_atomic(target, data)
    except OSError as exc:
        raise InputError(f"{target}: the signed bundle cannot be written ({exc.strerror or exc})") from exc
    print(f"{target}: signed; still {opened.model_id}")
