"""`config.yaml` as one typed tree. Unknown keys, bad ranges and contradictions stop the program before anything starts.

Each key has a description, a unit where it has one, and a default; `flawline config schema` prints them as JSON schema.
Relative paths are relative to the file. Secrets come from the environment and are never part of the tree.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from flawline_inspect.decision import DecisionRule
from flawline_inspect.errors import ConfigError
from flawline_inspect.regions import RegionRule

__all__ = ["Config", "config_schema", "doubts", "load_config", "mqtt_password", "parse_config"]

EMBEDDED_BROKER = "embedded"
PASSWORD_VARIABLE = "FLAWLINE_MQTT_PASSWORD"
KEY_PASSWORD_VARIABLE = "FLAWLINE_MQTT_KEY_PASSWORD"
MAX_TOPIC_LEVELS = 10
_LEVELS_BELOW_ROOT = 2
"""The deepest of our topics is ROOT/verdict/code, with several cameras ROOT/CAMERA/verdict/code; CODESYS reads at most
10 levels by default."""
_TOPIC_WORDS = frozenset({"ack", "alarm", "cmd", "heartbeat", "history", "state", "verdict"})
"""What stands right below ROOT: with several cameras none of them can be called so."""

CommandName = Literal["trigger", "recipe", "threshold", "pause", "resume", "reload", "rollback", "overrule"]
"""What ROOT/cmd/ knows; `mqtt.commands` says which of them this station obeys."""


_SECRET = re.compile(r"((?:pass\w*|pwd|psw|user\w*|login|token|key|secret|auth\w*|sig\w*)=)[^&;/_#\s]+", re.IGNORECASE)


def _relative_to_file(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base")
    return path if base is None or path.is_absolute() else Path(base) / path


FilePath = Annotated[Path, AfterValidator(_relative_to_file)]


def _key(
    description: str,
    *,
    default: Any = ...,
    default_factory: Any = None,
    unit: str | None = None,
    **bounds: Any,
) -> Any:
    extra: dict[str, Any] | None = {"unit": unit} if unit else None
    if default_factory is not None:
        return Field(default_factory=default_factory, description=description, json_schema_extra=extra, **bounds)
    return Field(default=default, description=description, json_schema_extra=extra, **bounds)


def _unknown_key(key: str, known: list[str]) -> str:
    if "password" in key:
        cure = f"passwords come from {PASSWORD_VARIABLE} and {KEY_PASSWORD_VARIABLE} in the environment"
    elif near := difflib.get_close_matches(key, known, n=1, cutoff=0.5):
        cure = f'did you mean "{near[0]}"?'
    else:
        cure = f"the keys here are {', '.join(known)}"
    return f'unknown key "{key}"; {cure}'


def masked_url(url: str) -> str:
    """The address without what opens the camera: `rtsp://joe:pw@cam/1` → `rtsp://***@cam/1`.

    Everything up to the last @ counts as user and password, as a password may hold / and @ where it should not.
    """
    return _SECRET.sub(r"\1***", re.sub(r"(\w+://)[^\s'\"]*@", r"\1***@", url))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            unknown = [_unknown_key(str(key), list(cls.model_fields)) for key in data if key not in cls.model_fields]
            if unknown:
                raise PydanticCustomError("unknown_key", "{keys}", {"keys": "; ".join(unknown)})
        return data


class SimulatedSource(_Section):
    """A simulated line: a plausible part with jitter, drift, noise and now and then a defect."""

    kind: Literal["simulated"] = _key("what kind of camera this is")
    seed: int = _key("the same seed gives the same parts", default=0, ge=0)
    defect_rate: float = _key("share of defective parts; higher shows more rejects", default=0.1, ge=0, le=1, unit="1")
    fps: float = _key("parts a second", default=5.0, gt=0, le=1000, unit="1/s")
    parts: int | None = _key("end after this many parts; null never ends", default=None, ge=1)


class FolderSource(_Section):
    """Pictures from a folder, sorted by name, one per trigger; a part's id is its file's stem."""

    kind: Literal["folder"] = _key("what kind of camera this is")
    path: FilePath = _key("the folder; its subfolders are read too")
    fps: float = _key("pictures a second", default=10.0, gt=0, le=1000, unit="1/s")
    loop: bool = _key("true starts again at the end, false ends the station there", default=False)


class VideoSource(_Section):
    """Frames of a video file."""

    kind: Literal["video"] = _key("what kind of camera this is")
    path: FilePath = _key("the video file")
    fps: float | None = _key("frames a second; null takes the file's own", default=None, gt=0, le=1000, unit="1/s")
    loop: bool = _key("true starts again at the end, false ends the station there", default=False)


class DeviceSource(_Section):
    """A camera at this machine (Video4Linux)."""

    kind: Literal["device"] = _key("what kind of camera this is")
    device: int | str = _key("number of /dev/videoN, or the path itself", default=0)
    width: int | None = _key("asked of the driver; null leaves it", default=None, ge=16, unit="px")
    height: int | None = _key("asked of the driver; null leaves it", default=None, ge=16, unit="px")
    fps: float | None = _key("asked of the driver; null leaves it", default=None, gt=0, unit="1/s")
    exposure_ms: float | None = _key(
        "asked of the driver, and its automatic exposure switched off; higher is brighter, blurs what moves and may "
        "slow the camera down; null leaves it",
        default=None,
        gt=0,
        le=60000,
        unit="ms",
    )
    gain: float | None = _key(
        "asked of the driver, in its own units; higher is brighter and noisier; null leaves it", default=None, ge=0
    )
    open_timeout_s: float = _key("give up opening after this", default=10.0, gt=0, le=60, unit="s")
    read_timeout_s: int = _key("a camera silent for this long is lost", default=3, ge=1, le=3600, unit="s")


class StreamSource(_Section):
    """A camera on the network: RTSP or HTTP (MJPEG)."""

    kind: Literal["stream"] = _key("what kind of camera this is")
    url: str = _key("rtsp://…, http://… or https://…")
    open_timeout_s: float = _key("give up connecting after this", default=5.0, gt=0, le=60, unit="s")
    read_timeout_s: float = _key("a stream silent for this long is lost", default=3.0, gt=0, le=60, unit="s")

    @field_validator("url")
    @classmethod
    def _has_scheme(cls, url: str) -> str:
        if not re.match(r"(rtsps?|https?)://", url):
            raise ValueError("expected a URL that starts with rtsp://, http:// or https://")
        return url

    @field_serializer("url")
    def _shown_without_secrets(self, url: str) -> str:
        return masked_url(url)


Source = Annotated[
    SimulatedSource | FolderSource | VideoSource | DeviceSource | StreamSource, Field(discriminator="kind")
]


class TriggerConfig(_Section):
    kind: Literal["free", "mqtt", "camera", "interval"] = _key(
        "free: every frame is a part, as far as they are kept up with; mqtt: the PLC asks on ROOT/cmd/trigger; camera: "
        "the camera is triggered by hardware, and each of its frames is a part; interval: a part every interval_ms",
        default="free",
    )
    max_rate: float = _key(
        "free: parts a second at most; frames beyond it are dropped and counted",
        default=20.0,
        gt=0,
        unit="1/s",
    )
    delay_ms: float = _key(
        "mqtt, interval: the frame is captured this long after the trigger; higher suits a part that arrives later",
        default=0.0,
        ge=0,
        le=60000,
        unit="ms",
    )
    interval_ms: float = _key("interval: from one part to the next", default=1000.0, ge=1, le=86_400_000, unit="ms")


class CameraConfig(_Section):
    name: str = _key("the camera's name, a topic level", pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")
    source: Source = _key("where its pictures come from; `kind` is simulated, folder, video, device or stream")
    trigger: TriggerConfig | None = _key("what makes a part here; null takes the station's trigger", default=None)
    recipe: int | None = _key("the recipe at start here; null takes the station's recipe", default=None)
    roi: tuple[int, int, int, int] | None = _key(
        "region of interest: x, y, width, height; null is the whole picture", default=None, unit="px"
    )
    frozen_after_s: float = _key(
        "the same live picture, bit by bit, for this long is a frozen camera; 0 is for cameras without any noise, whose "
        "pictures may well be the same, and finds none",
        default=2.0,
        ge=0,
        le=3600,
        unit="s",
    )

    @field_validator("roi")
    @classmethod
    def _roi_is_an_area(cls, roi: tuple[int, int, int, int] | None) -> tuple[int, int, int, int] | None:
        if roi is not None and (roi[0] < 0 or roi[1] < 0 or roi[2] < 1 or roi[3] < 1):
            raise ValueError("expected x >= 0, y >= 0, width >= 1, height >= 1")
        return roi


class RegionsConfig(_Section):
    level: float | None = _key(
        "how far above the good parts' own spread the heatmap of a region lies; null is the threshold in force",
        default=None,
        gt=0,
    )
    min_area_px: int = _key("smaller regions do not count", default=1, ge=1, unit="camera pixels")
    ignore: FilePath | None = _key(
        "a picture of the camera's size; what is not black in it never counts, such as a logo or a rim", default=None
    )

    @model_validator(mode="after")
    def _says_something(self) -> RegionsConfig:
        if self.level is None and self.min_area_px == 1 and self.ignore is None:
            raise ValueError("says nothing: give level, min_area_px or ignore, or leave regions out")
        return self

    def rule(self) -> RegionRule:
        """Raises `InputError` where the mask cannot be read."""
        return RegionRule.of(self.level, self.min_area_px, self.ignore)


class RecipeConfig(_Section):
    bundle: FilePath = _key("a .flawline file")
    threshold: float | None = _key("null takes the bundle's; higher rejects less", default=None, gt=0)
    review_band: tuple[float, float] | None = _key(
        "factors of the threshold between which a part is NotDecidable `review`; null switches it off",
        default=None,
    )
    regions: RegionsConfig | None = _key(
        "a part above the threshold is OK all the same where none of its regions counts; null lets every one count",
        default=None,
    )

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, data: Any) -> Any:
        return {"bundle": data} if isinstance(data, str) else data

    @field_validator("review_band")
    @classmethod
    def _band_is_one(cls, band: tuple[float, float] | None) -> tuple[float, float] | None:
        DecisionRule(1.0, band)
        return band

    def decision_rule(self, threshold: float) -> DecisionRule:
        """With this recipe's band and area rule. Raises `InputError` where the rule's mask cannot be read."""
        return DecisionRule(threshold, self.review_band, None if self.regions is None else self.regions.rule())

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """A path alone is a recipe too, and an editor that checks against the schema should know."""
        whole = handler(schema)
        return {"anyOf": [{"type": "string", "format": "path", "description": "a .flawline file"}, whole]}


class EngineConfig(_Section):
    kind: Literal["auto", "tensorrt", "tensorrt_rtx", "openvino", "onnxruntime", "triton"] = _key(
        "auto takes the fastest that works here, and another while a GPU's plan is compiled; triton asks the server at `url`",
        default="auto",
    )
    url: str | None = _key(
        "triton: the server's address for gRPC, HOST:8001, or grpcs://HOST:PORT with TLS", default=None, min_length=1
    )
    timeout_ms: float = _key(
        "triton: how long an answer may take; longer outlasts a slow or restarting server, and keeps a part waiting",
        default=1000.0,
        gt=0,
        le=60000,
        unit="ms",
    )
    precision: Literal["fp32", "bf16", "fp16", "int8"] = _key(
        "fp16 and int8 need a bundle that `flawline quantize` has been through; bf16 needs OpenVINO on a processor that has it",
        default="fp32",
    )
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = _key(
        "which backend onnxruntime computes with; auto takes CUDA where onnxruntime-gpu is installed", default="auto"
    )
    hint: Literal["latency", "throughput"] = _key(
        "openvino: latency gives one frame all cores; throughput divides them among frames that come together, which serves many "
        "cameras on many cores faster and each frame later",
        default="latency",
    )
    threads: int = _key(
        "0 lets the engine choose; fewer leave cores to others; cameras that share an engine share its threads",
        default=0,
        ge=0,
        le=256,
    )
    max_batch: int | None = _key(
        "several cameras: frames that wait together are inferred together, up to this many; more is faster for all of "
        "them and later for the first; null is 1 on a CPU, where little is gained, and 8 on a GPU or with hint throughput",
        default=None,
        ge=1,
        le=64,
    )
    batch_window_ms: float = _key(
        "several cameras: how long a frame may wait for others while the engine is idle; 0 holds none up, more makes "
        "larger batches of cameras that are not triggered together",
        default=0.0,
        ge=0,
        le=1000,
        unit="ms",
    )

    @model_validator(mode="after")
    def _triton_has_an_address(self) -> EngineConfig:
        if (self.kind == "triton") != (self.url is not None):
            raise ValueError("kind triton and url belong together: give both or neither")
        return self

    @model_validator(mode="after")
    def _throughput_is_openvinos(self) -> EngineConfig:
        if self.hint == "throughput" and self.kind not in ("auto", "openvino"):
            raise ValueError(
                f"hint throughput is openvino's, and kind is {self.kind}: take kind openvino or auto, or leave it out"
            )
        return self


class JournalConfig(_Section):
    policy: Literal["best_effort", "required"] = _key(
        "when the journal cannot be written: send the verdict all the same, or Undefined `journal`",
        default="best_effort",
    )
    max_gb: float = _key(
        "the oldest verdicts go when the file comes near this; a million take about 0.25, its log 0.02 more",
        default=2.0,
        ge=0.01,
        le=10_000,
        unit="GB",
    )
    days: float | None = _key(
        "delivered verdicts older than this go too; null keeps them until room is needed",
        default=90.0,
        gt=0,
        le=36_500,
        unit="d",
    )
    alarm_after: int = _key("alarm `outbox` when more verdicts than this wait for the broker", default=1000, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _policy_alone(cls, data: Any) -> Any:
        return {"policy": data} if isinstance(data, str) else data

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The policy's word alone is a journal too."""
        return {"anyOf": [{"enum": ["best_effort", "required"], "description": "the policy"}, handler(schema)]}


class TlsConfig(_Section):
    ca: FilePath | None = _key("certificate authority, PEM; null takes the system's", default=None)
    cert: FilePath | None = _key("client certificate, PEM", default=None)
    key: FilePath | None = _key(f"its key, PEM; its password comes from {KEY_PASSWORD_VARIABLE}", default=None)

    @model_validator(mode="after")
    def _cert_with_key(self) -> TlsConfig:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together: give both or neither")
        return self


class MqttConfig(_Section):
    host: str = _key(
        'the broker; "embedded" starts a demo broker in this process', default=EMBEDDED_BROKER, min_length=1
    )
    port: int = _key(
        "1883, with TLS usually 8883; 0 with the embedded broker takes a free one",
        default=1883,
        ge=0,
        le=65535,
    )
    root: str = _key(
        "topic root, recommended enterprise/site/area/line/station",
        default="flawline/demo/hall1/line1/station1",
    )
    scalar_topics: bool = _key("also publish ROOT/verdict/code for PLCs without a JSON reader", default=False)
    commands: list[CommandName] | None = _key(
        "which commands are obeyed; null is `trigger` where triggers come by MQTT, else none", default=None
    )
    tls: TlsConfig | None = _key("null is plain TCP; {} is TLS with the system's authorities", default=None)
    username: str | None = _key(f"the password comes from {PASSWORD_VARIABLE}", default=None)

    @field_validator("root")
    @classmethod
    def _root_is_a_topic(cls, root: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*", root):
            raise ValueError("expected levels of A-Za-z0-9._- with a single / between them")
        if root.count("/") + 1 + _LEVELS_BELOW_ROOT > MAX_TOPIC_LEVELS:
            raise ValueError(
                f"expected at most {MAX_TOPIC_LEVELS - _LEVELS_BELOW_ROOT} levels, PLCs read {MAX_TOPIC_LEVELS}"
            )
        return root

    @model_validator(mode="after")
    def _embedded_is_plain(self) -> MqttConfig:
        if self.host == EMBEDDED_BROKER and (self.tls or self.username):
            raise ValueError('host "embedded" has neither TLS nor users; name a real broker')
        if self.host != EMBEDDED_BROKER and self.port == 0:
            raise ValueError("port 0 (any free one) is for the embedded broker only")
        return self


class MetricsConfig(_Section):
    """What Prometheus reads, over HTTP without a login."""

    host: str = _key(
        "the address to listen on; 127.0.0.1 is this machine only, 0.0.0.0 is everybody who can reach it",
        default="127.0.0.1",
        min_length=1,
    )
    port: int = _key("0 switches metrics off; 9464 is what exporters usually take", default=0, ge=0, le=65535)


class SecurityConfig(_Section):
    public_key: FilePath | None = _key(
        "only bundles signed with the key that belongs to this one (.pub of `flawline bundle keygen`) are used; null takes any",
        default=None,
    )


class Config(_Section):
    """A station."""

    station: str = _key(
        "the station's name and the MQTT client id's stem",
        default="station1",
        pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,22}$",
    )
    state_dir: FilePath = _key(
        "everything that the station writes: journal, boot counter, lock, what was changed at run time",
        default=Path("state"),
        validate_default=True,
    )
    cameras: list[CameraConfig] = _key("the station's cameras; with several each has its own topics", min_length=1)
    trigger: TriggerConfig = _key("what makes a part", default_factory=TriggerConfig)
    deadline_ms: float = _key(
        "a part without a verdict after this is Undefined `deadline`",
        default=200.0,
        ge=5,
        le=60000,
        unit="ms",
    )
    recipes: dict[Annotated[int, Field(ge=0, le=65535)], RecipeConfig] = _key("recipe number: bundle", min_length=1)
    recipe: int = _key("the recipe at start", default=1)
    engine: EngineConfig = _key("what runs the model", default_factory=EngineConfig)
    journal: JournalConfig = _key(
        "what survives an outage, a crash or a power cut; the policy's word alone is enough",
        default_factory=JournalConfig,
    )
    mqtt: MqttConfig = _key("the broker", default_factory=MqttConfig)
    metrics: MetricsConfig = _key("figures for Prometheus", default_factory=MetricsConfig)
    log: Literal["text", "json"] = _key(
        "text for people; json is one object a line with time, level, logger, message and station", default="text"
    )
    security: SecurityConfig = _key("whose models the station runs", default_factory=SecurityConfig)

    @model_validator(mode="after")
    def _parts_agree(self) -> Config:
        known = ", ".join(str(number) for number in sorted(self.recipes))
        if self.recipe not in self.recipes:
            raise ValueError(f"recipe is {self.recipe}, but recipes has only {known}")
        for n, camera in enumerate(self.cameras):
            if self.recipe_of(camera) not in self.recipes:
                raise ValueError(f"cameras[{n}].recipe is {camera.recipe}, but recipes has only {known}")
        names = [camera.name for camera in self.cameras]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"cameras has {', '.join(twice)} more than once; each needs a name of its own, it is a topic"
            )
        if self.has_several_cameras:
            if taken := sorted(_TOPIC_WORDS.intersection(names)):
                raise ValueError(
                    f"cameras has one named {taken[0]}, which is a topic of the station's own; name it otherwise"
                )
            if self.mqtt.root.count("/") + 2 + _LEVELS_BELOW_ROOT > MAX_TOPIC_LEVELS:
                raise ValueError(
                    f"mqtt.root: found {self.mqtt.root!r}, expected at most {MAX_TOPIC_LEVELS - _LEVELS_BELOW_ROOT - 1} "
                    f"levels with several cameras, whose names are one more; PLCs read {MAX_TOPIC_LEVELS}"
                )
        if any(self.trigger_of(camera).kind == "mqtt" for camera in self.cameras) and "trigger" not in self.commands:
            raise ValueError("mqtt.commands: has no trigger, but triggers come by MQTT; add it, or leave the key out")
        return self

    @property
    def has_several_cameras(self) -> bool:
        """Whether the cameras' names are levels of their topics."""
        return len(self.cameras) > 1

    @property
    def commands(self) -> frozenset[CommandName]:
        """The commands that are obeyed, the default resolved."""
        if self.mqtt.commands is not None:
            return frozenset(self.mqtt.commands)
        is_asked = any(self.trigger_of(camera).kind == "mqtt" for camera in self.cameras)
        return frozenset({"trigger"} if is_asked else ())

    def trigger_of(self, camera: CameraConfig) -> TriggerConfig:
        return camera.trigger or self.trigger

    def recipe_of(self, camera: CameraConfig) -> int:
        """At start, before what was changed at run time."""
        return self.recipe if camera.recipe is None else camera.recipe


def parse_config(data: Any, *, base: Path, source: str = "configuration") -> Config:
    """Validate a tree as YAML gives it. Paths are relative to `base`. Raises `ConfigError` naming every wrong key."""
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{source}: expected keys such as station: and cameras:, found {'nothing' if data is None else type(data).__name__}"
        )
    try:
        return Config.model_validate(data, context={"base": base})
    except ValidationError as exc:
        raise ConfigError("\n".join(f"{source}: {_sentence(error)}" for error in exc.errors())) from exc


def load_config(path: Path | str) -> Config:
    """Read and validate a `config.yaml`."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigError(
            f"{path}: does not exist; copy config.yaml from the project, or name yours with --config"
        ) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read ({exc})") from exc
    except yaml.YAMLError as exc:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(exc).split())}") from exc
    return parse_config(data, base=path.resolve().parent, source=str(path))


def _sentence(error: Any) -> str:
    """One pydantic error as `cameras[0].source.fps: found 0, Input should be greater than 0`."""
    where = ""
    for part in error["loc"]:
        if part in ("simulated", "folder", "video", "device", "stream") and where.endswith("source"):
            continue  # the union's tag, not a key of the file
        where += (
            f"[{part}]" if isinstance(part, int) and not where.endswith("recipes") else f"{'.' if where else ''}{part}"
        )
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("missing", "unknown_key"):
        return f"{where}: {message}" if where else message
    if error["type"] == "union_tag_invalid":
        kinds = error["ctx"]["expected_tags"].replace("'", "")
        near = difflib.get_close_matches(error["ctx"]["tag"], kinds.split(", "), n=1, cutoff=0.5)
        hint = f', did you mean "{near[0]}"?' if near else ""
        return f"{where}.kind: found {error['ctx']['tag']!r}, expected one of {kinds}{hint}"
    found = error.get("input")
    shown = "" if isinstance(found, Mapping) or found is None else f"found {found!r}, "
    return masked_url(f"{where}: {shown}{message}" if where else message)


def doubts(config: Config) -> list[str]:
    """What is valid and yet will not work as it stands, a sentence each with the key in front."""
    found = []
    for n, camera in enumerate(config.cameras):
        source, key = camera.source, f"cameras[{n}].source"
        if isinstance(source, FolderSource | VideoSource) and not source.path.exists():
            found.append(f"{key}.path: {source.path} does not exist")
        fps = source.fps if isinstance(source, SimulatedSource | DeviceSource) else None
        if isinstance(source, DeviceSource) and fps and source.exposure_ms and source.exposure_ms > 1e3 / fps:
            found.append(
                f"{key}.exposure_ms: {source.exposure_ms:g} ms is longer than a frame of {fps:g} a second lasts "
                f"({1e3 / fps:g} ms); the driver shortens it or slows down"
            )
        # A frame that began after the trigger comes after two periods at worst.
        if config.trigger_of(camera).kind in ("mqtt", "interval") and fps and 2e3 / fps > config.deadline_ms:
            found.append(
                f"deadline_ms: {config.deadline_ms:g} ms is shorter than two frames of a camera with {fps:g} a second "
                f"({2e3 / fps:g} ms), which a triggered frame may take"
            )
    if config.mqtt.tls is not None:
        files = config.mqtt.tls.model_dump(exclude_none=True)
        found += [f"mqtt.tls.{key}: {path} does not exist" for key, path in files.items() if not path.exists()]
    return found


def config_schema() -> dict[str, Any]:
    """The JSON schema of `config.yaml`, with a description, a unit and a default for every key."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "flawline config.yaml"
    return schema


def mqtt_password() -> SecretStr | None:
    """The broker's password from the environment; prints as stars."""
    value = os.environ.get(PASSWORD_VARIABLE)
    return SecretStr(value) if value is not None else None


def mqtt_key_password() -> SecretStr | None:
    value = os.environ.get(KEY_PASSWORD_VARIABLE)
    return SecretStr(value) if value is not None else None
