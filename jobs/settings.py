"""All settings, from the environment (`STABLESR_*`) or by name. Seconds end in `_s`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.presets import PRESETS

from .errors import InvalidSettings
from .redis_url import SCHEMES, parse_redis_url

MIB = 1024 * 1024
PROTOCOLS = ("replicate", "cog", "a1111", "fal", "openai")
# Two heartbeats: after an outage of Redis every live worker has renewed its leases by then.
PATIENCE_S = 10.0
_PAUSES = re.compile(r"\d{1,5}(,\d{1,5})*", re.ASCII)
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(i?)b)?")
# 24 bytes or more in base64.
_SECRET = re.compile(
    "whsec_(?:[A-Za-z0-9+/]{4}){8,}(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", re.ASCII
)
_LINKS = re.compile(r"links=(\d{1,5}|[1-5]\d{5}|60[0-3]\d{3}|604[0-7]\d\d|604800)", re.ASCII)
_ORIGIN = r"(?:\*|https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?)"
_ORIGINS = re.compile(rf"(?:\s*{_ORIGIN}\s*(?:,\s*{_ORIGIN}\s*)*)?", re.ASCII)
# Settings that went away, and what replaces them: the environment says nothing in vain.
_REPLACEMENTS = {
    "ALLOW_OPEN": "set STABLESR_ACCESS to open",
    "COMPILE_CACHE": "it is the folder stablesr/compiled in XDG_STATE_HOME",
    "DECODE_TILE": "set STABLESR_MEMORY_LIMIT, by which strips are planned",
    "DEVICES": "name them in STABLESR_DEVICE, comma-separated",
    "FALLBACK": "a worker without its weights is not ready; set STABLESR_PRESET to tiny instead",
    "HEAD_TIMEOUT_S": "a request's head has 10 seconds",
    "HEARTBEAT_S": "it is 5 seconds, or a quarter of STABLESR_WORKER_TTL_S",
    "IDEMPOTENCY_TTL_S": "keys are known for a day",
    "LOG_FORMAT": "logs are JSON, and text on a terminal",
    "MAINTENANCE_S": "it is STABLESR_WORKER_TTL_S",
    "MAX_QUEUED_EACH": "it is a tenth of STABLESR_MAX_QUEUED, or the key's own number",
    "MAX_STREAMS": "it is five eighths of STABLESR_MAX_CONNECTIONS",
    "MAX_STREAMS_EACH": "it is a fortieth of STABLESR_MAX_CONNECTIONS",
    "MAX_TRANSFERS": "it is an eighth of STABLESR_MAX_CONNECTIONS",
    "MAX_TRANSFERS_EACH": "it is a fortieth of STABLESR_MAX_CONNECTIONS",
    "OFFLOAD": "networks take turns on the device where STABLESR_MEMORY_LIMIT asks for that",
    "QUEUE_TTL_S": "a job waits for a week at most",
    "READS_PER_MINUTE": "it is ten times STABLESR_UPLOADS_PER_MINUTE",
    "REQUIRE_KEY": "set STABLESR_ACCESS to keys",
    "REUSE_EVERY": "ask for fewer steps in its place",
    "SCRATCH": "set TMPDIR",
    "SEND_TIMEOUT_S": "a client may pause for 30 seconds",
    "STEP_TIMEOUT_S": "it is a sixth of STABLESR_JOB_TIMEOUT_S",
    "WEBHOOK_ALLOW_PRIVATE": "set STABLESR_EGRESS to any",
    "UPLOAD_GRACE_S": "an image without a job is removed after 15 minutes",
    "UPLOAD_TIMEOUT_S": "it grows with STABLESR_MAX_UPLOAD_BYTES",
}


def parse_bytes(text: str | int) -> int:
    """A number of bytes, plain or with a unit: 6GB, 1.5 GiB, 500MB. Raises ValueError."""
    match = _BYTES.fullmatch(str(text).strip().lower())
    if match is None:
        raise ValueError("it must be a number of bytes such as 6GB, 1.5GiB or 500MB")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix or " "))


def state_folder() -> Path:
    """Where this machine's blobs and compiled networks lie."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "stablesr"


def _must(rule: str, is_met: Callable[[str], object]) -> AfterValidator:
    def check(value: str) -> str:
        if not is_met(value):
            raise ValueError(f"it must {rule}")
        return value

    return AfterValidator(check)


def _begin_with(*schemes: str) -> AfterValidator:
    return _must(f"begin with one of {', '.join(schemes)}", lambda url: url.startswith(schemes))


def _checked_redis_url(url: str) -> str:
    parse_redis_url(url)
    return url


def _checked_blob_url(url: str) -> str:
    members = url.partition("?")[2]
    if members and not _LINKS.fullmatch(members):
        raise ValueError("only links=SECONDS may follow its ?, 604800 at most")
    return url


class Settings(BaseSettings):
    """The defaults suit one machine. Raises InvalidSettings, never pydantic's own error, so that a
    command can print the sentence."""

    # A variable that is set to nothing, as compose files do, counts as not set.
    model_config = SettingsConfigDict(
        env_prefix="STABLESR_", env_ignore_empty=True, extra="forbid", frozen=True
    )

    # Service and worker
    redis_url: Annotated[str, _begin_with(*SCHEMES), AfterValidator(_checked_redis_url)] = (
        "redis://127.0.0.1:6379/0"
    )
    # Takes jobs although Redis may evict them when its memory ends.
    allow_eviction: bool = False
    # Images live in this folder, or where blob_url says (s3://bucket/prefix).
    blob_root: Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())] = Field(
        default_factory=lambda: state_folder() / "blobs"
    )
    # Storage that several hosts can share, as obstore names it. With ?links=SECONDS clients fetch
    # results there, by links that work for so long.
    blob_url: (
        Annotated[str, _begin_with("s3://", "gs://", "az://"), AfterValidator(_checked_blob_url)]
        | None
    ) = None
    preset: Annotated[str, _must(f"be one of {', '.join(PRESETS)}", PRESETS.__contains__)] = "tiny"
    # The licence under which `stablesr weights prepare` may download weights, by its name.
    accept_licence: str | None = None
    host: str = "127.0.0.1"
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(str.upper)
    ] = "INFO"

    # Access
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    # Until the first key was made requests need none. auto: on loopback alone; open: anywhere;
    # keys: they always need one.
    access: Literal["auto", "open", "keys"] = "auto"
    # Names under which the service answers besides localhost, by commas; * is any. Unset: any, but
    # localhost alone while it listens there and asks for no key.
    allowed_hosts: str = ""
    # Proxies whose X-Forwarded-For is believed: addresses and networks, by commas.
    trusted_proxies: str = ""
    # Protocols of other services that are answered too, by commas (docs/integrations.md).
    compat: Annotated[
        str,
        _must(
            f"name protocols among {', '.join(PROTOCOLS)}, by commas",
            lambda names: {name.strip() for name in names.split(",")} <= {"", *PROTOCOLS},
        ),
    ] = ""
    # Origins of web pages elsewhere that may use the service, by commas; * is any.
    cors_origins: Annotated[
        str, _must("be origins such as https://example.org, comma-separated", _ORIGINS.fullmatch)
    ] = ""
    # Which addresses that clients name the service calls, for webhooks and images: public ones, any
    # (for tests and closed networks), or none.
    egress: Literal["public", "any", "none"] = "public"
    # Signs the webhooks of jobs that were submitted without a key: whsec_ and base64.
    webhook_secret: (
        Annotated[str, _must("be whsec_ and 24 bytes or more in base64", _SECRET.fullmatch)] | None
    ) = Field(None, repr=False)

    # Limits
    # Of a key, or an address without one; 0 is no limit. A key may have a number of its own.
    uploads_per_minute: Annotated[int, Field(ge=0)] = 120
    # Of one process, whatever they are for.
    max_connections: Annotated[int, Field(ge=1)] = 800
    # Waiting jobs of a preset.
    max_queued: Annotated[int, Field(ge=1)] = 1000
    max_upload_bytes: Annotated[int, Field(ge=1)] = 50 * MIB
    max_input_pixels: Annotated[int, Field(ge=1)] = 40_000_000
    max_output_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    job_timeout_s: Annotated[int, Field(ge=1)] = 1800
    # How long a result is kept once its job ended.
    result_ttl_s: Annotated[int, Field(ge=1)] = 86_400
    # A worker that is silent for so long is lost.
    worker_ttl_s: Annotated[int, Field(ge=1)] = 20
    # Before each further attempt at a job that a worker, its device or its memory failed. The first
    # follows at once, elsewhere or alone on its device; a driver or a neighbour takes seconds.
    retry_pauses_s: Annotated[
        str, _must("be seconds, comma-separated, such as 0,10", _PAUSES.fullmatch)
    ] = "0,10"

    # Worker
    # One, or several by commas, which share every network call's tiles.
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    # Jobs that one worker runs together.
    slots: Annotated[int, Field(ge=1, le=64)] = 2
    # In place of each image's plan (docs/memory.md): tiles in one network call, and bytes on the
    # device ("6GB").
    tile_batch: Annotated[int, Field(ge=1)] | None = None
    memory_limit: Annotated[int, BeforeValidator(parse_bytes), Field(ge=1)] | None = None
    # Network calls of fixed sizes, compiled before a worker's first job; auto is on a GPU. It takes
    # minutes, which one image is not worth.
    compile: Literal["auto", "on", "off"] = "off"
    # Tiles in every network call, filled up: then a result does not depend in its last bit on what
    # other jobs' tiles shared its calls.
    fixed_batch: Annotated[int, Field(ge=1)] | None = None
    # What jobs in hand have to end in once the worker is to stop; containers get 10 by default.
    grace_s: Annotated[float, Field(ge=0)] = 8
    # Where a worker's metrics are read, at `host` and without a key; 0 is nowhere.
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0

    @property
    def protocols(self) -> list[str]:
        """Those of `compat`, in the order of PROTOCOLS."""
        names = {name.strip() for name in self.compat.split(",")}
        return [name for name in PROTOCOLS if name in names]

    @property
    def allowed_origins(self) -> list[str]:
        """The origins of `cors_origins`."""
        return [name for part in self.cors_origins.split(",") if (name := part.strip())]

    @property
    def links_s(self) -> int:
        """How long links into the image store work; 0: there are none."""
        match = _LINKS.fullmatch((self.blob_url or "").partition("?")[2])
        return int(match[1]) if match else 0

    @property
    def reads_per_minute(self) -> int:
        """Other requests of a client than uploads; 0 is no limit."""
        return 10 * self.uploads_per_minute

    @property
    def max_streams(self) -> int:
        """Open event streams and waiting requests of one process."""
        return max(1, 5 * self.max_connections // 8)

    @property
    def max_transfers(self) -> int:
        """Uploads that one process receives and results that it sends at once."""
        return max(1, self.max_connections // 8)

    @property
    def max_each(self) -> int:
        """Streams, and transfers, of one client."""
        return max(1, self.max_connections // 40)

    @property
    def max_queued_each(self) -> int:
        """Waiting jobs of one client whose key has no number of its own."""
        return max(10, self.max_queued // 10)

    @property
    def upload_timeout_s(self) -> float:
        """For a whole upload: 300 seconds, and longer where more than 50 MiB are taken."""
        return 300 * max(1, self.max_upload_bytes / (50 * MIB))

    @property
    def step_timeout_s(self) -> float:
        """A worker that has not gone on for so long hangs."""
        return self.job_timeout_s / 6

    @property
    def retry_pauses(self) -> list[int]:
        return [int(pause) for pause in self.retry_pauses_s.split(",")]

    @property
    def heartbeat_s(self) -> float:
        return self.patience_s / 2

    @property
    def patience_s(self) -> float:
        """How long a lease must be seen to have run out before its worker is lost."""
        return min(PATIENCE_S, self.worker_ttl_s / 2)

    @property
    def lease_s(self) -> float:
        """What a heartbeat gives a running job: the rest of worker_ttl_s."""
        return self.worker_ttl_s - self.patience_s

    @property
    def maintenance_s(self) -> float:
        return self.worker_ttl_s

    def __init__(self, **values: Any) -> None:
        for name, instead in _REPLACEMENTS.items():
            if os.environ.get(f"STABLESR_{name}"):
                raise InvalidSettings(f"STABLESR_{name} is not a setting any more: {instead}.")
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidSettings(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    parts = []
    for fault in error.errors(include_url=False):
        name = "STABLESR_" + "_".join(map(str, fault["loc"])).upper()
        if fault["type"] == "extra_forbidden":
            parts.append(f"{name} is not a setting")
            continue
        reason = fault["msg"].removeprefix("Value error, ")
        # A URL may carry a password: say what is wrong with it, not what it is.
        value = "" if name.endswith(("_URL", "_SECRET")) else f" (got {fault['input']!r})"
        parts.append(f"{name} is wrong: {reason[:1].lower()}{reason[1:]}{value}")
    return "; ".join(parts) + "."
