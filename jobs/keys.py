"""API keys: who may use the service, and how much of it.

    stablesr:keys       sorted set: key id -> when it was made
    stablesr:key:{id}   name, digest, created_at, used_at, revoked_at, expires_at, scope,
                        max_queued, per_minute, webhook_secret

A key reads `ssr_{id}_{secret}`. Of the secret, 256 random bits, only the SHA-256 digest is kept: a
slow password hash would add nothing, for 2**256 secrets cannot be tried. A revoked key stays
listed, so that revoking the last one does not open a service that asks for keys.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from redis import Redis

from .connection import as_text, as_texts, queue_errors
from .errors import KeyNotFound

NAMES_KEY = "stablesr:keys"
_TOKEN = re.compile(r"ssr_(?P<id>[0-9a-f]{8})_(?P<secret>[A-Za-z0-9_-]{43})", re.ASCII)
# How exactly the last use of a key is known; noting each would be a write a request.
USED_WITHIN = timedelta(seconds=60)

Scope = Literal["all", "jobs", "metrics"]
"""What a key is for: everything; all but the figures of the whole service; those alone."""


def _key(key_id: str) -> str:
    return f"stablesr:key:{key_id}"


class KeyInfo(BaseModel):
    """A key without its secret; where `max_queued` or `per_minute` is None, the settings hold. One
    without `expires_at` has no end."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    created_at: datetime
    used_at: datetime | None = None
    revoked_at: datetime | None = None
    expires_at: datetime | None = None
    scope: Scope = "all"
    max_queued: int | None = None
    per_minute: int | None = None

    @property
    def prefix(self) -> str:
        """How the key begins, to tell it from others."""
        return f"ssr_{self.id}_"

    @property
    def has_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)


class Keys:
    """Blocking, safe to share between threads. Every method raises QueueUnavailable."""

    def __init__(self, connection: Redis) -> None:
        self._connection = connection

    def create(
        self,
        name: str,
        *,
        max_queued: int | None = None,
        per_minute: int | None = None,
        scope: Scope = "all",
        expires_in: timedelta | None = None,
    ) -> tuple[KeyInfo, str]:
        """A new key and its text, which is not kept and cannot be shown again."""
        key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
        now = datetime.now(UTC)
        fields: dict[Any, str] = {
            "name": name,
            "digest": _digest(secret),
            "created_at": now.isoformat(),
            "scope": scope,
            # Signing needs the secret itself; a reader of Redis can move jobs anyway.
            "webhook_secret": "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
        }
        limits = {"max_queued": max_queued, "per_minute": per_minute}
        fields |= {limit: str(value) for limit, value in limits.items() if value is not None}
        if expires_in is not None:
            fields["expires_at"] = (now + expires_in).isoformat()
        with queue_errors(self._connection), self._connection.pipeline() as pipe:
            pipe.hset(_key(key_id), mapping=fields)
            pipe.zadd(NAMES_KEY, {key_id: now.timestamp()})
            pipe.execute()
        return _info(key_id, fields), f"ssr_{key_id}_{secret}"

    def list(self) -> list[KeyInfo]:
        """All keys, ended ones too, the oldest first."""
        with queue_errors(self._connection):
            ids = [as_text(key_id) for key_id in self._connection.zrange(NAMES_KEY, 0, -1)]
        return [_info(key_id, fields) for key_id in ids if (fields := self._read(key_id))]

    def revoke(self, key_id: str) -> KeyInfo:
        """Ends a key, by its id or a text with its prefix, if it has not ended yet; raises
        KeyNotFound."""
        key_id, fields = self._known(key_id)
        if "revoked_at" not in fields:
            fields["revoked_at"] = self._stamp(key_id, "revoked_at")
        return _info(key_id, fields)

    def any(self) -> bool:
        """Whether a key was ever made."""
        with queue_errors(self._connection):
            return bool(self._connection.exists(NAMES_KEY))

    def find(self, text: str) -> KeyInfo | None:
        """The key of this text, also one that has expired, or None for one that is unknown or
        revoked; notes its use."""
        match = _TOKEN.fullmatch(text)
        if match is None:
            return None
        fields = self._read(match["id"])
        digest = fields.get("digest", _digest(""))
        if not hmac.compare_digest(digest, _digest(match["secret"])) or "revoked_at" in fields:
            return None
        info = _info(match["id"], fields)
        if info.used_at is None or datetime.now(UTC) - info.used_at > USED_WITHIN:
            self._stamp(info.id, "used_at")
        return info

    def webhook_secret(self, key_id: str) -> str:
        """What this key's webhooks are signed with (`whsec_...`); raises KeyNotFound."""
        return self._known(key_id)[1]["webhook_secret"]

    def _known(self, text: str) -> tuple[str, dict[str, str]]:
        key_id = text.removeprefix("ssr_")[:8]
        fields = self._read(key_id)
        if not fields:
            raise KeyNotFound(f"There is no key {key_id!r}; `stablesr keys list` shows them.")
        return key_id, fields

    def _stamp(self, key_id: str, field: str) -> str:
        now = datetime.now(UTC).isoformat()
        with queue_errors(self._connection):
            self._connection.hset(_key(key_id), field, now)
        return now

    def _read(self, key_id: str) -> dict[str, str]:
        with queue_errors(self._connection):
            raw: Any = self._connection.hgetall(_key(key_id))
        return as_texts(raw)

    @staticmethod
    def looks_like_one(text: str) -> bool:
        """Whether the text has the form of a key, valid or not."""
        return _TOKEN.fullmatch(text) is not None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _info(key_id: str, fields: dict[str, str]) -> KeyInfo:
    # The model leaves out what is not public.
    return KeyInfo.model_validate({**fields, "id": key_id})
