"""All settings, from the environment (`STABLESR_*`) or given by name.

Seconds end in `_s`. A wrong value raises InvalidSettings with one sentence a value.
"""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.presets import PRESETS

from .errors import InvalidSettings

__all__ = ["Settings", "parse_bytes"]

MIB = 1024 * 1024
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(i?)b)?")
# Storage that several hosts can share, as obstore names it.
_BLOB_SCHEMES = ("s3://", "gs://", "az://")
# Settings that went away, and what replaces them: the environment says nothing in vain.
_REMOVED = {
    "STABLESR_FALLBACK": "a worker without its weights is not ready; set STABLESR_PRESET to tiny "
    "to serve that",
    "STABLESR_REUSE_EVERY": "ask for fewer steps in its place",
}


def parse_bytes(text: str) -> int:
    """A number of bytes, plain or with a unit: 6GB, 1.5 GiB, 500MB.

    Raises:
        ValueError: it is none.
    """
    found = _BYTES.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError("it must be a number of bytes such as 6GB, 1.5GiB or 500MB")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix or " "))


def _state() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "stablesr"


class Settings(BaseSettings):
    """What every process of the service is told; the defaults suit one machine.

    Raises InvalidSettings, never pydantic's own error, so that a command can print the sentence.
    """

    # A variable that is set to nothing, as compose files do, counts as not set.
    model_config = SettingsConfigDict(
        env_prefix="STABLESR_", env_ignore_empty=True, extra="forbid", frozen=True
    )

    redis_url: str = "redis://127.0.0.1:6379/0"
    # Images live in this folder, or where blob_url says (s3://bucket/prefix) when it is set.
    blob_root: Path = Field(default_factory=lambda: _state() / "blobs")
    blob_url: str | None = None

    preset: str = "tiny"
    # The licence under which `stablesr weights prepare` may download weights, by its name.
    accept_licence: str | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    # Serving without keys on an address that others reach has to be asked for.
    allow_open: bool = False
    # Names under which the service answers besides localhost, by commas; * is any. Unset: any,
    # but localhost alone while it listens there and asks nobody for a key.
    allowed_hosts: str = ""
    # Ask for a key also while none was ever made; once one was, it is asked for anyway.
    require_key: bool = False
    # Requests a minute, of a key or of an address without one; 0 is no limit. A key may have a
    # number of its own for uploads.
    uploads_per_minute: Annotated[int, Field(ge=0)] = 120
    reads_per_minute: Annotated[int, Field(ge=0)] = 1200
    # Proxies whose X-Forwarded-For is believed: addresses and networks, by commas.
    trusted_proxies: str = ""
    # Open event streams and waiting requests of one process, in all and of one client.
    max_streams: Annotated[int, Field(ge=1)] = 500
    max_streams_each: Annotated[int, Field(ge=1)] = 20
    # Uploads that one process receives and results that it sends at once, in all and of one
    # client; and its connections, whatever they are for.
    max_transfers: Annotated[int, Field(ge=1)] = 100
    max_transfers_each: Annotated[int, Field(ge=1)] = 20
    max_connections: Annotated[int, Field(ge=1)] = 800
    # How long a request's head, and its whole upload, may take to arrive, and how long a client
    # may take nothing of what is sent to it.
    head_timeout_s: Annotated[float, Field(gt=0)] = 10
    upload_timeout_s: Annotated[float, Field(gt=0)] = 300
    send_timeout_s: Annotated[float, Field(gt=0)] = 30
    # How long an Idempotency-Key leads to the job that it made.
    idempotency_ttl_s: Annotated[int, Field(ge=1)] = 86_400
    # Lets webhooks reach addresses that are not public; for tests and closed networks.
    webhook_allow_private: bool = False
    # Signs the webhooks of jobs that were submitted without a key: whsec_ and base64.
    webhook_secret: Annotated[str | None, Field(repr=False)] = None

    max_upload_bytes: Annotated[int, Field(ge=1)] = 50 * MIB
    max_input_pixels: Annotated[int, Field(ge=1)] = 40_000_000
    max_output_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    # An image that no job followed within this time is removed; storing one must take less.
    upload_grace_s: Annotated[int, Field(ge=1)] = 900
    # Waiting jobs of a preset; and of one key, or of one address without one, where 0 is no limit
    # and a key may have a number of its own.
    max_queued: Annotated[int, Field(ge=1)] = 1000
    max_queued_each: Annotated[int, Field(ge=0)] = 100

    job_timeout_s: Annotated[int, Field(ge=1)] = 1800
    step_timeout_s: Annotated[int, Field(ge=1)] = 300
    heartbeat_s: Annotated[float, Field(gt=0)] = 15
    worker_ttl_s: Annotated[int, Field(ge=1)] = 60
    maintenance_s: Annotated[int, Field(ge=1)] = 60
    # How long a job may wait for a worker, and how long its result is kept once it ended.
    queue_ttl_s: Annotated[int, Field(ge=1)] = 7 * 86_400
    result_ttl_s: Annotated[int, Field(ge=1)] = 86_400

    device: str = "auto"
    # Several, by commas, in place of one: they share every network call's tiles.
    devices: str | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    # Jobs that one worker runs together.
    slots: Annotated[int, Field(ge=1, le=64)] = 2
    # What the plan of each image decides by itself (docs/memory.md), decided here instead: tiles
    # in one network call, rows that the autoencoder works on at once, bytes that the process may
    # take on the device that computes ("6GB"), whether networks that do not work wait on the
    # host, and the folder for feature maps that fit into no memory (the system's for temporary
    # files, unless named; it must not lie in memory itself).
    tile_batch: Annotated[int, Field(ge=1)] | None = None
    decode_tile: Annotated[int, Field(ge=1)] | None = None
    memory_limit: Annotated[int, Field(ge=1)] | None = None
    offload: Literal["auto", "on", "off"] = "auto"
    scratch: Path | None = None
    # Network calls of fixed sizes, compiled before a worker's first job; auto is on a GPU. Off by
    # itself, for it takes minutes, which one image is not worth; the compose file sets auto. What
    # was compiled is kept in the folder, for the next start.
    compile: Literal["auto", "on", "off"] = "off"
    compile_cache: Path = Field(default_factory=lambda: _state() / "compiled")
    # Tiles in every network call, the missing ones being filled up: then a result does not depend,
    # not even in its last bit, on what other jobs' tiles shared its calls.
    fixed_batch: Annotated[int, Field(ge=1)] | None = None

    # Where a worker's metrics are read, at `host` and without a key; 0 is nowhere.
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    log_format: Literal["auto", "json", "console"] = "auto"

    def __init__(self, **values: Any) -> None:
        for name, instead in _REMOVED.items():
            if os.environ.get(name):
                raise InvalidSettings(f"{name} is not a setting any more: {instead}.")
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidSettings(_sentence(error)) from None

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("memory_limit", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        return parse_bytes(value) if isinstance(value, str) else value

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: str) -> str:
        if not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("it must begin with redis://, rediss:// or unix://")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _standard_secret(cls, value: str | None) -> str | None:
        if value is not None:
            prefix, _, rest = value.partition("_")
            if prefix != "whsec" or len(base64.b64decode(rest, validate=True)) < 24:
                raise ValueError("it must be whsec_ and 24 bytes or more in base64")
        return value

    @field_validator("blob_url")
    @classmethod
    def _blob_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(_BLOB_SCHEMES):
            raise ValueError(f"it must begin with one of {', '.join(_BLOB_SCHEMES)}")
        return value

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, value: str) -> str:
        if value not in PRESETS:
            raise ValueError(f"it must be one of {', '.join(PRESETS)}")
        return value

    @field_validator("blob_root", "compile_cache")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("worker_ttl_s")
    @classmethod
    def _outlives_heartbeat(cls, value: int, info: Any) -> int:
        beat = info.data.get("heartbeat_s")
        if beat is not None and value < 2 * beat:
            raise ValueError(f"it must be at least twice heartbeat_s, which is {beat:g}")
        return value


def _sentence(error: ValidationError) -> str:
    parts = []
    for fault in error.errors(include_url=False):
        name = "STABLESR_" + "_".join(str(part) for part in fault["loc"]).upper()
        reason = fault["msg"].removeprefix("Value error, ")
        reason = reason[:1].lower() + reason[1:]
        # A URL may carry a password: say what is wrong with it, not what it is.
        shown = "" if name.endswith(("_URL", "_SECRET")) else f" (got {fault['input']!r})"
        if fault["type"] == "extra_forbidden":
            parts.append(f"{name} is not a setting")
        else:
            parts.append(f"{name} is wrong: {reason}{shown}")
    return "; ".join(parts) + "."
