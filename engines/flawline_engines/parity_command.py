"""`flawline parity`: may an engine judge parts in place of the reference?"""

from __future__ import annotations

import json as json_module
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flawline_engines.engine import EngineKind, Hint, Precision, Provider, open_engine
from flawline_engines.parity import LIMITS, Parity, check_parity
from flawline_inspect.bundle import Bundle
from flawline_inspect.errors import EXIT_DONE, EXIT_FAILURE

__all__ = ["parity", "print_parity"]


def parity(
    bundle: Path,
    /,
    *,
    engine: EngineKind = "auto",
    precision: Precision = "fp32",
    threads: int = 0,
    provider: Provider = "auto",
    hint: Hint = "latency",
    state_dir: Path | None = None,
    url: str | None = None,
    json: bool = False,
) -> int:
    """Hold an engine against ONNX Runtime in fp32, on the bundle's golden pictures. Ends with 1 when it is refused.

    Parameters
    ----------
    bundle
        A .flawline file.
    engine
        auto, tensorrt, tensorrt_rtx, openvino, onnxruntime or triton. TensorRT's plan is compiled if there is none.
    precision
        fp32, fp16 or int8 (see `flawline quantize`), or bf16 (OpenVINO only).
    threads
        0 leaves their number to the engine.
    provider
        Of onnxruntime: auto, cpu, cuda or tensorrt.
    hint
        Of openvino: latency or throughput.
    state_dir
        The station's state directory, where plans are kept; without it the user's cache folder.
    url
        Of triton: HOST:8001, or grpcs://HOST:PORT with TLS.
    json
        Print one JSON object instead of a table.
    """
    opened = Bundle.open(bundle)
    with open_engine(
        opened,
        engine,
        precision=precision,
        threads=threads,
        provider=provider,
        hint=hint,
        state_dir=state_dir,
        url=url,
    ) as runner:
        found = check_parity(opened, runner)
    if json:
        print(json_module.dumps({**found.to_dict(), "accepted": found.accepted}))
    else:
        print_parity(Console(highlight=False, soft_wrap=True), found)
    return EXIT_DONE if found.accepted else EXIT_FAILURE


def print_parity(console: Console, found: Parity) -> None:
    """A table, then the verdict on the engine in a line, then why."""
    limits = LIMITS[found.precision]
    console.print(f"{found.model}, {found.pictures} golden pictures: {found.engine} {found.precision}", markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "largest", "limit"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    table.add_row("score difference", f"{found.score_difference:.4%}", f"{limits.score:.2%}")
    table.add_row("heatmap difference", f"{found.heatmap_difference:.4%}", f"{limits.heatmap:.2%}")
    table.add_row("expected picture, grey levels", str(found.expected_difference), "")
    table.add_row("pictures that are not finite", str(found.non_finite), "0")
    table.add_row("reject becomes a pass", str(sum(flip.to_pass for flip in found.flips)), "0")
    table.add_row("pass becomes a reject", str(sum(not flip.to_pass for flip in found.flips)), "within 1 %")
    console.print(table)
    console.print(f"limit: {limits.reason}", markup=False)
    verdict = Text("accepted", style="green") if found.accepted else Text("refused", style="red")
    console.print(verdict)
    for refusal in found.refusals:
        console.print(f"  {refusal}", markup=False)
