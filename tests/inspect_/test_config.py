"""The configuration: what is accepted, what is refused and by which name, and what its schema says."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flawline_inspect.config import (
    PASSWORD_VARIABLE,
    Config,
    config_schema,
    doubts,
    load_config,
    mqtt_key_password,
    mqtt_password,
    parse_config,
)
from flawline_inspect.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "config.yaml"
BASE = Path("/stations/press7")

MINIMAL: dict[str, Any] = {
    "cameras": [{"name": "top", "source": {"kind": "simulated"}}],
    "recipes": {1: "part.flawline"},
}


def source(**keys: Any) -> dict[str, Any]:
    return {**MINIMAL, "cameras": [{"name": "top", "source": keys}]}


def camera(**keys: Any) -> dict[str, Any]:
    return {**MINIMAL, "cameras": [{**MINIMAL["cameras"][0], **keys}]}


def top(**keys: Any) -> dict[str, Any]:
    return {**MINIMAL, **keys}


def two(names: tuple[str, str] = ("left", "right"), **keys: Any) -> dict[str, Any]:
    """Two cameras; `keys` as in `top`."""
    return top(cameras=[{**MINIMAL["cameras"][0], "name": name} for name in names], **keys)


def parse(tree: Any) -> Config:
    return parse_config(tree, base=BASE, source="config.yaml")


def refused(tree: Any) -> list[str]:
    """The sentences with which the tree is refused, without the file's name, which each begins with."""
    with pytest.raises(ConfigError) as caught:
        parse(tree)
    lines = str(caught.value).splitlines()
    assert lines and all(line.startswith("config.yaml: ") for line in lines), lines
    assert caught.value.exit_code == 2
    return [line.removeprefix("config.yaml: ") for line in lines]


def test_the_shipped_configuration_is_a_whole_station() -> None:
    """config.yaml at the root works as it is: a simulated camera, the broker inside, the shipped model."""
    config = load_config(SHIPPED)
    assert config.cameras[0].source.kind == "simulated"
    assert config.mqtt.host == "embedded"
    assert config.recipes[config.recipe].bundle.is_relative_to(SHIPPED.parent)
    assert config.state_dir == SHIPPED.parent / "state"


def test_defaults() -> None:
    """A camera and a recipe make a station; all else has the documented default."""
    config = parse(MINIMAL)
    found = config.model_dump(mode="json")
    assert found == {
        "station": "station1",
        "state_dir": "/stations/press7/state",
        "cameras": [
            {
                "name": "top",
                "source": {"kind": "simulated", "seed": 0, "defect_rate": 0.1, "fps": 5.0, "parts": None},
                "trigger": None,
                "recipe": None,
                "roi": None,
                "frozen_after_s": 2.0,
            }
        ],
        "trigger": {"kind": "free", "max_rate": 20.0, "delay_ms": 0.0, "interval_ms": 1000.0},
        "deadline_ms": 200.0,
        "recipes": {
            "1": {"bundle": "/stations/press7/part.flawline", "threshold": None, "review_band": None, "regions": None}
        },
        "recipe": 1,
        "engine": {
            "kind": "auto",
            "precision": "fp32",
            "provider": "auto",
            "hint": "latency",
            "threads": 0,
            "url": None,
            "timeout_ms": 1000.0,
            "max_batch": None,
            "batch_window_ms": 0.0,
        },
        "journal": {"policy": "best_effort", "max_gb": 2.0, "days": 90.0, "alarm_after": 1000},
        "mqtt": {
            "host": "embedded",
            "port": 1883,
            "root": "flawline/demo/hall1/line1/station1",
            "scalar_topics": False,
            "commands": None,
            "tls": None,
            "username": None,
        },
        "metrics": {"host": "127.0.0.1", "port": 0},
        "log": "text",
        "security": {"public_key": None},
    }


def test_what_is_in_force_is_a_configuration() -> None:
    """`config check` prints a tree that can be used as it is printed."""
    config = load_config(SHIPPED)
    assert parse_config(json.loads(config.model_dump_json()), base=Path("/elsewhere")) == config


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        pytest.param(source(kind="folder", path="good"), lambda c: c.cameras[0].source.path, id="folder"),
        pytest.param(source(kind="video", path="good"), lambda c: c.cameras[0].source.path, id="video"),
        pytest.param(top(state_dir="good"), lambda c: c.state_dir, id="state_dir"),
        pytest.param(top(recipes={1: "good"}), lambda c: c.recipes[1].bundle, id="recipe"),
        pytest.param(top(recipes={1: {"bundle": "good"}}), lambda c: c.recipes[1].bundle, id="recipe with keys"),
        pytest.param(top(mqtt={"host": "b", "tls": {"ca": "good"}}), lambda c: c.mqtt.tls.ca, id="certificate"),
        pytest.param(top(security={"public_key": "good"}), lambda c: c.security.public_key, id="public key"),
    ],
)
def test_relative_paths_are_relative_to_the_file(tree: dict[str, Any], path: Any) -> None:
    """Wherever a path stands, it is found from the file's folder; an absolute one stays."""
    assert path(parse(tree)) == BASE / "good"
    absolute = yaml.safe_load(yaml.safe_dump(tree).replace("good", "/mnt/good"))
    assert path(parse(absolute)) == Path("/mnt/good")


def test_paths_do_not_depend_on_where_the_program_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given by a relative name, a file's own paths are still relative to its folder."""
    (tmp_path / "line").mkdir()
    (tmp_path / "line" / "c.yaml").write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_config("line/c.yaml").recipes[1].bundle == (tmp_path / "line" / "part.flawline").resolve()


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        pytest.param(top(statoin="x"), 'unknown key "statoin"; did you mean "station"?', id="at the top"),
        pytest.param(top(recipees={}), 'unknown key "recipees"; did you mean "recipes"?', id="plural"),
        pytest.param(camera(rio=[0, 0, 1, 1]), 'cameras[0]: unknown key "rio"; did you mean "roi"?', id="camera"),
        pytest.param(
            source(kind="simulated", defectrate=0.5),
            'cameras[0].source: unknown key "defectrate"; did you mean "defect_rate"?',
            id="source",
        ),
        pytest.param(top(mqtt={"hots": "b"}), 'mqtt: unknown key "hots"; did you mean "host"?', id="mqtt"),
        pytest.param(
            top(mqtt={"host": "b", "tls": {"cret": "c"}}),
            'mqtt.tls: unknown key "cret"; did you mean "cert"?',
            id="tls",
        ),
        pytest.param(
            top(recipes={3: {"bundle": "b", "treshold": 1}}, recipe=3),
            'recipes.3: unknown key "treshold"; did you mean "threshold"?',
            id="recipe",
        ),
        pytest.param(
            top(engine={"zzz": 1}),
            'engine: unknown key "zzz"; the keys here are kind, url, timeout_ms, precision, provider, hint, threads, max_batch, '
            "batch_window_ms",
            id="nothing near",
        ),
        pytest.param(top(mqtt={"password": "x"}), 'mqtt: unknown key "password"; ', id="a secret"),
    ],
)
def test_an_unknown_key_is_an_error(tree: dict[str, Any], expected: str) -> None:
    """The sentence says where it stands and which key is nearest, or which there are."""
    (sentence,) = refused(tree)
    assert sentence.startswith(expected)


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        pytest.param(top(station="press 7"), "station", id="space in the name"),
        pytest.param(top(station=""), "station", id="no name"),
        pytest.param(top(station="x" * 24), "station", id="name too long for an MQTT 3.1 client id"),
        pytest.param(top(deadline_ms=4.9), "deadline_ms", id="deadline too short"),
        pytest.param(top(deadline_ms=60001), "deadline_ms", id="deadline too long"),
        pytest.param(top(deadline_ms=float("nan")), "deadline_ms", id="deadline not a number"),
        pytest.param(top(deadline_ms="soon"), "deadline_ms", id="deadline a word"),
        pytest.param(top(journal="maybe"), "journal", id="journal"),
        pytest.param(top(recipe=None), "recipe", id="recipe null"),
        pytest.param(top(recipes={}), "recipes", id="no recipes"),
        pytest.param(top(recipes=None), "recipes", id="recipes null"),
        pytest.param(top(recipes={1: 5}), "recipes.1", id="recipe a number"),
        pytest.param(top(recipes={1: {}}), "recipes.1.bundle", id="recipe without a bundle"),
        pytest.param(top(recipes={70000: "b"}), "recipes.70000", id="recipe number too large"),
        pytest.param(top(recipes={"a": "b"}), "recipes.a", id="recipe number a word"),
        pytest.param(top(recipes={1: {"bundle": "b", "threshold": 0}}), "recipes.1.threshold", id="threshold 0"),
        pytest.param(
            top(recipes={1: {"bundle": "b", "threshold": -1}}), "recipes.1.threshold", id="threshold negative"
        ),
        pytest.param(
            top(recipes={1: {"bundle": "b", "threshold": float("inf")}}), "recipes.1.threshold", id="threshold infinite"
        ),
        pytest.param(
            top(recipes={1: {"bundle": "b", "review_band": [1.5, 0.5]}}),
            "recipes.1.review_band",
            id="band the wrong way",
        ),
        pytest.param(
            top(recipes={1: {"bundle": "b", "review_band": [1.1, 1.5]}}), "recipes.1.review_band", id="band above"
        ),
        pytest.param(
            top(recipes={1: {"bundle": "b", "review_band": [0, 1.5]}}), "recipes.1.review_band", id="band from 0"
        ),
        pytest.param(top(recipes={1: {"bundle": "b", "review_band": [1]}}), "recipes.1.review_band", id="band of one"),
        pytest.param(top(cameras=[]), "cameras", id="no cameras"),
        pytest.param(top(cameras=None), "cameras", id="cameras null"),
        pytest.param(top(cameras=[5]), "cameras[0]", id="camera a number"),
        pytest.param(camera(name="a/b"), "cameras[0].name", id="camera name with a level"),
        pytest.param(camera(roi=[0, 0, 0, 5]), "cameras[0].roi", id="region without width"),
        pytest.param(camera(roi=[-1, 0, 5, 5]), "cameras[0].roi", id="region left of the picture"),
        pytest.param(camera(roi=[0, 0, 5]), "cameras[0].roi", id="region of three numbers"),
        pytest.param(source(), "cameras[0].source", id="source without a kind"),
        pytest.param(source(kind="simulatd"), "cameras[0].source", id="unknown source"),
        pytest.param(source(kind="simulated", fps=0), "cameras[0].source.fps", id="no pictures a second"),
        pytest.param(source(kind="simulated", defect_rate=1.1), "cameras[0].source.defect_rate", id="share above 1"),
        pytest.param(source(kind="simulated", parts=0), "cameras[0].source.parts", id="no parts"),
        pytest.param(source(kind="folder"), "cameras[0].source.path", id="folder without a path"),
        pytest.param(source(kind="folder", path="p", fps=-1), "cameras[0].source.fps", id="folder's rate"),
        pytest.param(source(kind="stream", url="ftp://x"), "cameras[0].source.url", id="another scheme"),
        pytest.param(source(kind="device", width=1), "cameras[0].source.width", id="device's width"),
        pytest.param(top(trigger={"kind": "never"}), "trigger.kind", id="unknown trigger"),
        pytest.param(top(trigger={"kind": "interval", "interval_ms": 0}), "trigger.interval_ms", id="no interval"),
        pytest.param(camera(trigger={"kind": "never"}), "cameras[0].trigger.kind", id="unknown trigger of a camera"),
        pytest.param(camera(recipe=2), "cameras[0].recipe", id="camera's recipe that is not there"),
        pytest.param(top(mqtt={"commands": ["stop"]}), "mqtt.commands[0]", id="unknown command"),
        pytest.param(
            top(trigger={"kind": "mqtt"}, mqtt={"commands": ["recipe"]}), "mqtt.commands", id="triggers not obeyed"
        ),
        pytest.param(source(kind="device", exposure_ms=0), "cameras[0].source.exposure_ms", id="no exposure"),
        pytest.param(source(kind="device", gain=-1), "cameras[0].source.gain", id="gain negative"),
        pytest.param(source(kind="device", read_timeout_s=0), "cameras[0].source.read_timeout_s", id="no time to read"),
        pytest.param(source(kind="device", read_timeout_s=1.5), "cameras[0].source.read_timeout_s", id="half a second"),
        pytest.param(source(kind="device", open_timeout_s=0), "cameras[0].source.open_timeout_s", id="no time to open"),
        pytest.param(camera(frozen_after_s=-1), "cameras[0].frozen_after_s", id="frozen before it starts"),
        pytest.param(top(trigger={"max_rate": 0}), "trigger.max_rate", id="no rate"),
        pytest.param(top(trigger={"delay_ms": -1}), "trigger.delay_ms", id="delay negative"),
        pytest.param(top(engine={"kind": "abacus"}), "engine.kind", id="engine"),
        pytest.param(top(engine={"threads": -1}), "engine.threads", id="threads"),
        pytest.param(top(engine={"kind": "triton"}), "engine", id="triton without url"),
        pytest.param(top(engine={"url": "gpu:8001"}), "engine", id="url without triton"),
        pytest.param(top(mqtt=None), "mqtt", id="mqtt null"),
        pytest.param(top(mqtt={"host": ""}), "mqtt.host", id="no host"),
        pytest.param(top(mqtt={"port": 65536}), "mqtt.port", id="port"),
        pytest.param(top(mqtt={"root": "a//b"}), "mqtt.root", id="empty level"),
        pytest.param(top(mqtt={"root": "/a"}), "mqtt.root", id="level before the first"),
        pytest.param(top(mqtt={"root": "a/#"}), "mqtt.root", id="wildcard"),
        pytest.param(top(mqtt={"root": ""}), "mqtt.root", id="no root"),
        pytest.param(top(mqtt={"root": "a/b/c/d/e/f/g/h/i"}), "mqtt.root", id="11 levels with ours"),
        pytest.param(top(mqtt={"host": "b", "tls": {"cert": "c"}}), "mqtt.tls", id="certificate without key"),
        pytest.param(top(mqtt={"tls": {}}), "mqtt", id="embedded with TLS"),
        pytest.param(top(mqtt={"username": "u"}), "mqtt", id="embedded with a user"),
        pytest.param(top(mqtt={"host": "b", "port": 0}), "mqtt", id="any port at a real broker"),
        pytest.param({"recipes": {1: "b"}}, "cameras", id="cameras missing"),
        pytest.param({"cameras": MINIMAL["cameras"]}, "recipes", id="recipes missing"),
        pytest.param(top(recipe=2), "recipe", id="recipe that is not there"),
        pytest.param(top(cameras=MINIMAL["cameras"] * 2), "cameras", id="two cameras of one name"),
        pytest.param(two(names=("a", "verdict")), "cameras", id="a camera with a topic's name"),
        pytest.param(two(mqtt={"root": "a/b/c/d/e/f/g/h"}), "mqtt.root", id="11 levels with the camera's"),
    ],
)
def test_every_error_begins_with_its_keys_path(tree: dict[str, Any], path: str) -> None:
    """One line, the key's path first, then what was found and what would be right."""
    (sentence,) = refused(tree)
    assert sentence.startswith(path)
    assert sentence[len(path) :][:1] in (":", " ", "[", "."), sentence


@pytest.mark.parametrize("root", ["a", "a/b/c/d/e/f/g/h", "Acme.de/hall_2/press-7"])
def test_a_topic_root(root: str) -> None:
    """One to eight levels: ours make ten, which is what PLCs read."""
    assert parse(top(mqtt={"root": root})).mqtt.root == root


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        pytest.param(
            {**top(deadline_ms=1, recipes={1: {}}), "trigger": {"max_rate": 0}},
            ["trigger.max_rate", "deadline_ms", "recipes.1.bundle"],
            id="bad values",
        ),
        pytest.param(
            top(mqtt={"hots": "b"}, engine={"thread": 1}), ["engine: ", "mqtt: "], id="unknown keys in two sections"
        ),
        pytest.param(top(statoin="x", recipees={}), ['"statoin"', '"recipees"'], id="unknown keys in one section"),
    ],
)
def test_every_wrong_key_is_named_at_once(tree: dict[str, Any], paths: list[str]) -> None:
    """Nobody should have to start the station once per mistake."""
    text = "\n".join(refused(tree))
    assert all(path in text for path in paths), text


@pytest.mark.parametrize("tree", [None, 5, "text", [], [1, 2]], ids=repr)
def test_what_is_no_tree_is_refused(tree: object) -> None:
    """An empty file or a list says what was expected."""
    assert "expected keys such as station: and cameras:" in refused(tree)[0]


def test_a_camera_may_have_its_own_trigger_and_recipe() -> None:
    """What it does not say is the station's."""
    tree = two(trigger={"kind": "interval", "interval_ms": 250}, recipes={1: "a", 7: "b"})
    tree["cameras"][1] |= {"trigger": {"kind": "mqtt", "delay_ms": 5}, "recipe": 7}
    config = parse(tree)
    left, right = config.cameras
    assert (config.trigger_of(left).kind, config.trigger_of(left).interval_ms, config.recipe_of(left)) == (
        "interval",
        250,
        1,
    )
    assert (config.trigger_of(right).kind, config.trigger_of(right).delay_ms, config.recipe_of(right)) == ("mqtt", 5, 7)
    assert config.has_several_cameras and not parse(MINIMAL).has_several_cameras
    assert parse(two(mqtt={"root": "a/b/c/d/e/f/g"})).mqtt.root == "a/b/c/d/e/f/g"


@pytest.mark.parametrize(
    ("tree", "commands"),
    [
        pytest.param(MINIMAL, set(), id="free-running"),
        pytest.param(top(trigger={"kind": "mqtt"}), {"trigger"}, id="asked"),
        pytest.param(camera(trigger={"kind": "mqtt"}), {"trigger"}, id="one camera asked"),
        pytest.param(top(mqtt={"commands": ["pause", "resume"]}), {"pause", "resume"}, id="named"),
        pytest.param(top(mqtt={"commands": []}), set(), id="none"),
    ],
)
def test_which_commands_are_obeyed(tree: dict[str, Any], commands: set[str]) -> None:
    """Those that are named; by default `trigger` where somebody has to ask, and nothing else."""
    assert parse(tree).commands == commands


keys_and_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([*Config.model_fields, "other"]), keys_and_values)
def test_whatever_stands_in_the_file(key: str, value: Any) -> None:
    """Any value at any key gives a configuration or a ConfigError, never another exception."""
    with contextlib.suppress(ConfigError):
        parse({**MINIMAL, key: value})


# Files


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param(None, "does not exist; copy config.yaml", id="missing"),
        pytest.param(b"", "expected keys such as", id="empty"),
        pytest.param(b"# nothing yet\n", "expected keys such as", id="only a comment"),
        pytest.param(b"station: [", "is not YAML: ", id="not YAML"),
        pytest.param(b"station:\tx: y", "is not YAML: ", id="tab"),
        pytest.param(b"a: \x00", "is not YAML: ", id="null byte"),
        pytest.param(b"station: \xff", "cannot be read", id="not UTF-8"),
        pytest.param(b"station: !!python/object/apply:os.system [ls]", "is not YAML: ", id="a command for Python"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, data: bytes | None, sentence: str) -> None:
    """One line that begins with the file's name."""
    path = tmp_path / "config.yaml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    """A folder is named like a file that cannot be read."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


# Secrets


@pytest.mark.parametrize(
    ("variable", "read"), [(PASSWORD_VARIABLE, mqtt_password), ("FLAWLINE_MQTT_KEY_PASSWORD", mqtt_key_password)]
)
def test_passwords_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, variable: str, read: Any) -> None:
    """They print as stars and are no part of the tree."""
    monkeypatch.delenv(variable, raising=False)
    assert read() is None
    monkeypatch.setenv(variable, "hunter2")
    secret = read()
    assert secret.get_secret_value() == "hunter2"
    assert "hunter2" not in f"{secret} {secret!r}"
    config = load_config(SHIPPED)
    assert "hunter2" not in f"{config!r} {config.model_dump_json()}"


def test_a_cameras_password_is_not_printed() -> None:
    """An address with a password in it is refused, or shown without it."""
    tree = source(kind="stream", url="rtsp://operator:hunter2@192.168.0.20/stream1")
    try:
        shown = parse(tree).model_dump_json()
    except ConfigError as exc:
        shown = str(exc)
    assert "hunter2" not in shown


# What is valid and yet will not work


def test_doubts_about_a_camera() -> None:
    """An exposure that does not fit into a frame, and frames that do not come within the deadline: by the key."""
    triggered = {"trigger": {"kind": "mqtt"}, "deadline_ms": 30}
    found = doubts(parse({**source(kind="device", fps=50, exposure_ms=25), **triggered}))
    assert [each.partition(": ")[0] for each in found] == ["cameras[0].source.exposure_ms", "deadline_ms"]
    assert "25 ms is longer than a frame of 50 a second lasts (20 ms)" in found[0]
    assert doubts(parse({**source(kind="device", fps=100, exposure_ms=10), **triggered})) == []


# The schema


def sections(schema: dict[str, Any], node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and schema of every section that may stand at `node`, through references, alternatives and lists."""
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[1]
        if schema["$defs"][name].get("properties"):
            yield name, schema["$defs"][name]
        else:
            yield from ((name, section) for _, section in sections(schema, schema["$defs"][name]))
    elif node.get("properties"):
        yield "", node
    inner = [*node.get("anyOf", []), *node.get("oneOf", []), *node.get("allOf", [])]
    inner += [node.get("items"), node.get("additionalProperties"), *node.get("patternProperties", {}).values()]
    for each in inner:
        if isinstance(each, dict):
            yield from sections(schema, each)


def leaves(schema: dict[str, Any], node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and schema of every key below `node` whose value is no section."""
    for name, key in node["properties"].items():
        below = list(sections(schema, key))
        for title, section in below:
            yield from leaves(schema, section, f"{path}{name}<{title}>.")
        if not below:
            yield f"{path}{name}", key


LEAVES = dict(leaves(config_schema(), config_schema()))


def test_the_schema_reaches_every_key() -> None:
    """The walk over the schema that the next tests use finds what the shipped file uses."""
    names = {path.rsplit(".", 1)[-1] for path in LEAVES}
    assert {"station", "seed", "url", "max_rate", "threshold", "threads", "scalar_topics", "ca", "roi"} <= names
    assert len(LEAVES) > 35


@pytest.mark.parametrize("path", sorted(LEAVES))
def test_every_key_is_described(path: str) -> None:
    """Each key of the schema says what it is; each optional one its default."""
    key = LEAVES[path]
    assert key.get("description"), path
    required = path in ("cameras<CameraConfig>.name",) or path.endswith((".kind", ".path", ".url", ".bundle"))
    assert required or "default" in key, path


@pytest.mark.parametrize("path", sorted(path for path in LEAVES if path.endswith(("_ms", "_s", "fps", "rate"))))
def test_durations_and_rates_have_a_unit(path: str) -> None:
    """A number of milliseconds, seconds or parts a second says so."""
    assert LEAVES[path].get("unit"), path


@pytest.mark.parametrize(
    ("tree", "valid"),
    [
        pytest.param(yaml.safe_load(SHIPPED.read_text(encoding="utf-8")), True, id="config.yaml"),
        pytest.param(top(recipes={1: {"bundle": "b", "threshold": 2.5}}), True, id="recipe with keys"),
        pytest.param(MINIMAL, True, id="smallest"),
        pytest.param(top(mqtt={"host": "b", "tls": {}}), True, id="TLS with the system's authorities"),
        pytest.param(top(statoin="x"), False, id="unknown key"),
        pytest.param(source(kind="simulated", fsp=1), False, id="unknown key in a source"),
        pytest.param(source(kind="simulatd"), False, id="unknown source"),
        pytest.param(top(deadline_ms=1), False, id="out of range"),
        pytest.param({"recipes": {1: "b"}}, False, id="no camera"),
    ],
)
def test_the_schema_agrees_with_the_reader(tree: dict[str, Any], valid: bool) -> None:
    """An editor that checks config.yaml with the schema says what `flawline config check` says."""
    as_json = json.loads(json.dumps(tree))
    schema = config_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    errors = [
        f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(schema).iter_errors(as_json)
    ]
    assert (not errors) is valid, errors
    if valid:
        parse(tree)
    else:
        refused(tree)
