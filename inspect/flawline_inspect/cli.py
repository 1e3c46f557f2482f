"""The front door: `flawline COMMAND`. Subcommands are imported when they are called, so `flawline run` never touches
training code and `flawline --help` touches nothing at all.
"""

from __future__ import annotations

import difflib
import logging
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError
from rich.console import Console

from flawline_inspect import __version__
from flawline_inspect.errors import (
    EXIT_DONE,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_USER_MISTAKE,
    FlawlineError,
)
from flawline_inspect.logs import complain, masked, set_up_logs

__all__ = ["app", "main"]

_HELP = """Visual defect inspection that learns from good parts only.

Start with `flawline demo`. Then train on your own parts, check pictures, and run the line:

    flawline train good_parts/ -o part.flawline
    flawline check part.flawline new_pictures/
    flawline run --config config.yaml

Exit codes: 0 done, 1 failure, 2 your mistake, 3 `check` found a part that is not OK, 130 interrupted.
Every command takes --debug, which shows tracebacks and debug logs.
"""

app = App(
    name="flawline",
    help=_HELP,
    help_format="markdown",
    version=__version__,
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)


def _add(to: App, name: str, target: str, group: str | None, summary: str, *examples: str) -> None:
    """Register a command without importing it. The help lives here, since reading a docstring would import its module."""
    shown = "Examples:\n\n" + "\n".join(f"    {example}" for example in examples)
    to.command(target, name=name, help=summary, help_epilogue=shown, **({"group": group} if group else {}))


_LINE, _MODEL, _TOOLS = "On the line", "The model", "Tools"

_add(
    app, "demo", "flawline_edge.demo_command:demo", _LINE,
    "Watch a simulated line with everything inside: camera, model, broker, daemon.",
    "flawline demo", "flawline demo --parts 50 --out rejected/", "flawline demo --camera 0",
)  # fmt: skip
_add(
    app, "run", "flawline_edge.run_command:run", _LINE,
    "Run the station that config.yaml describes.",
    "flawline run", "flawline run --config press7.yaml", "flawline run --log json",
)  # fmt: skip
_add(
    app, "status", "flawline_edge.status_command:status", _LINE,
    "Tell whether the station that config.yaml describes is ready; exit code 0 or 1.",
    "flawline status", "flawline status --config press7.yaml --json",
)  # fmt: skip
_add(
    app, "promote", "flawline_edge.promote_command:promote", _LINE,
    "Let a recipe serve another bundle, now and after a restart.",
    "flawline promote part-2.flawline", "flawline promote cap-4.flawline --recipe 2 --config press7.yaml",
)  # fmt: skip
_add(
    app, "verdicts", "flawline_edge.verdicts_command:verdicts", _LINE,
    "Show what the station decided, from its journal.",
    "flawline verdicts --since 2h --result reject", "flawline verdicts --part SN12345 --state-dir state/",
    "flawline verdicts --since 7d --limit 0 --json | jq .score",
)  # fmt: skip
_add(
    app, "train", "flawline_train.train_command:train_command", _MODEL,
    "Learn from pictures of good parts and write a bundle.",
    "flawline train good_parts/ -o part.flawline", "flawline train good_parts/ -o part.flawline --size 256 --minutes 15",
)  # fmt: skip
_add(
    app, "check", "flawline_engines.check_command:check", _MODEL,
    "Judge pictures, folders or a video with a bundle, offline.",
    "flawline check part.flawline new.png", "flawline check part.flawline pictures/ --heatmaps out/",
    "flawline check part.flawline line.mkv --json | jq .result",
)  # fmt: skip
_add(
    app, "eval", "flawline_train.eval_command:eval_command", _MODEL,
    "Measure a bundle on a data set with good and defective parts.",
    "flawline eval part.flawline dataset/", "flawline eval part.flawline dataset/ --json",
)  # fmt: skip
_add(
    app, "report", "flawline_train.report_command:report_command", _MODEL,
    "Make the report of a bundle again, with what it does on a data set.",
    "flawline report part.flawline", "flawline report part.flawline dataset/ -o part.report.html",
)  # fmt: skip
_add(
    app, "sample", "flawline_train.sample_command:sample_command", _MODEL,
    "Draw pictures of new good parts from a bundle of a generative method.",
    "flawline sample part.flawline --out drawn/", "flawline sample part.flawline -n 16 --out drawn/ --seed 7",
)  # fmt: skip
_add(
    app, "quantize", "flawline_train.quantize_command:quantize_command", _MODEL,
    "Add half precision and int8 graphs to a bundle.",
    "flawline quantize part.flawline", "flawline quantize part.flawline --precisions int8 --pictures good_parts/",
)  # fmt: skip
_add(
    app, "build", "flawline_engines.build_command:build", _MODEL,
    "Compile a bundle for the GPU in this machine, and hold the result against the reference.",
    "flawline build part.flawline", "flawline build part.flawline --precision fp16 --state-dir state/",
    "flawline build part.flawline --builder-only",
)  # fmt: skip
_add(
    app, "export", "flawline_engines.export_command:export", _MODEL,
    "Write a bundle's graph into a Triton model repository.",
    "flawline export part.flawline --triton models/", "flawline export part.flawline --triton models/ --precision fp16 --state-dir state/",
)  # fmt: skip
_add(
    app, "parity", "flawline_engines.parity_command:parity", _TOOLS,
    "Hold an engine against ONNX Runtime in fp32.",
    "flawline parity part.flawline --engine openvino", "flawline parity part.flawline --engine tensorrt --precision fp16",
)  # fmt: skip
_add(
    app, "bench", "flawline_edge.bench_command:bench", _TOOLS,
    "Measure latency, throughput and what the daemon adds.",
    "flawline bench part.flawline", "flawline bench part.flawline --json --threads 1 --batches 1",
)  # fmt: skip
_add(
    app, "soak", "flawline_edge.soak_command:soak", _TOOLS,
    "Put a station under load and hold it to its contract, and to the memory it began with.",
    "flawline soak --minutes 30 --rate 20", "flawline soak --config press7.yaml --defective 'D-*' --json",
)  # fmt: skip
_add(
    app, "simulate", "flawline_edge.simulate_command:simulate", _TOOLS,
    "Write pictures of the simulated line as a data set with masks.",
    "flawline simulate simulated/", "flawline simulate simulated/ --train 200 --seed 7",
)  # fmt: skip

_bundle = App(name="bundle", help="Look into a bundle, verify or sign it.", group=_TOOLS)
_add(
    _bundle, "show", "flawline_inspect.bundle_command:show", None,
    "Show what a bundle is, in a page.",
    "flawline bundle show part.flawline", "flawline bundle show part.flawline --json | jq .calibration",
    "flawline bundle show part.flawline --report part.html",
)  # fmt: skip
_add(
    _bundle, "verify", "flawline_inspect.bundle_command:verify", None,
    "Check every member of a bundle against its manifest, and its signature.",
    "flawline bundle verify part.flawline", "flawline bundle verify part.flawline --public-key plant.pub",
)  # fmt: skip
_add(
    _bundle, "keygen", "flawline_inspect.bundle_command:keygen", None,
    "Make a key pair to sign bundles with.",
    "flawline bundle keygen keys/plant",
)  # fmt: skip
_add(
    _bundle, "sign", "flawline_inspect.bundle_command:sign", None,
    "Sign a bundle, for stations that take signed ones only.",
    "flawline bundle sign part.flawline --key keys/plant.key",
)  # fmt: skip
app.command(_bundle)

_config = App(name="config", help="Check a config.yaml, or print its schema.", group=_TOOLS)
_add(
    _config, "check", "flawline_inspect.config_command:check", None,
    "Check a config.yaml and the bundles that it names; show what is in force.",
    "flawline config check", "flawline config check press7.yaml",
)  # fmt: skip
_add(
    _config, "schema", "flawline_inspect.config_command:schema", None,
    "Print the JSON schema of config.yaml with units and defaults.",
    "flawline config schema", "flawline config schema config.schema.json",
)  # fmt: skip
app.command(_config)

_EXTRA_MODULES = frozenset(
    {
        "anomalib",
        "bokeh",
        "jinja2",
        "lightning",
        "matplotlib",
        "onnx",
        "onnxscript",
        "safetensors",
        "scipy",
        "torch",
        "torchmetrics",
    }
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its exit code."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    set_up_logs()
    if debug:
        for package in ("inspect", "engines", "train", "edge"):
            logging.getLogger(f"flawline_{package}").setLevel(logging.DEBUG)
    sys.exit(_run(tokens, debug=debug))


def _run(tokens: list[str], *, debug: bool) -> int:
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value", error_console=errors)
    except UnknownCommandError as exc:
        # Not the exception's own text: it would import every command, torch included, to list them.
        word = exc.unused_tokens[0] if exc.unused_tokens else ""
        chain = " ".join(("flawline", *(exc.command_chain or ())))
        near = difflib.get_close_matches(word, [name for name in exc.app or app if not name.startswith("-")], n=1)
        hint = f"did you mean `{chain} {near[0]}`?" if near else f"`{chain} --help` lists them"
        errors.print(f"{chain}: there is no command {word!r}; {hint}", style="red", markup=False)
        return EXIT_USER_MISTAKE
    except CycloptsError as exc:
        errors.print(f"flawline: {exc}", style="red", markup=False)
        errors.print("Try `flawline --help`, or --help behind a command.", markup=False)
        return EXIT_USER_MISTAKE
    except FlawlineError as exc:
        if debug:
            traceback.print_exc()
        for line in str(exc).splitlines():
            if not complain(line):
                errors.print(f"flawline: {masked(line)}", style="red", markup=False)
        return exc.exit_code
    except KeyboardInterrupt:
        if not complain("interrupted"):
            errors.print("flawline: interrupted", markup=False)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `flawline check ... | head`: the reader has had enough; Python must not complain again while closing stdout.
        sys.stderr.close()
        return EXIT_DONE
    except ImportError as exc:
        missing = exc if isinstance(exc, ModuleNotFoundError) else exc.__cause__
        name = missing.name if isinstance(missing, ModuleNotFoundError) and missing.name else ""
        if debug or name.split(".")[0] not in _EXTRA_MODULES:
            raise
        errors.print(
            f"flawline: this command needs {name}, which is not installed; pip install 'flawline[train]'",
            style="red",
            markup=False,
        )
        return EXIT_FAILURE
    return result if isinstance(result, int) else EXIT_DONE


if __name__ == "__main__":
    main()
