"""`stablesr keys` as an operator types it."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from redis import Redis
from typer.testing import CliRunner, Result

from cli.main import app
from jobs.keys import Keys
from tests.redis_server import RedisServer


def keys(*arguments: str, url: str, **env: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments], env={"STABLESR_REDIS_URL": url, **env})


def test_a_key_is_printed_once_and_works(redis_url: str) -> None:
    made = keys("create", "Ada", "--max-queued", "5", "--per-minute", "30", url=redis_url)
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert re.fullmatch(r"ssr_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", key)
    with Redis.from_url(redis_url) as connection:
        info = Keys(connection).find(key)
    assert info is not None
    assert (info.name, info.max_queued, info.per_minute) == ("Ada", 5, 30)


def test_the_list_shows_who_has_keys_but_no_secret(redis_url: str) -> None:
    assert "no keys" in keys("list", url=redis_url).stderr
    key = keys("create", "Ada", url=redis_url).stdout.strip()
    listed = keys("list", url=redis_url)
    assert key[4:12] in listed.stdout
    assert "Ada" in listed.stdout
    assert key.split("_", 2)[2] not in listed.output


def test_a_revoked_key_stays_on_the_list(redis_url: str) -> None:
    key = keys("create", "Ada", url=redis_url).stdout.strip()
    assert keys("revoke", key[4:12], url=redis_url).exit_code == 0
    assert keys("revoke", key, url=redis_url).exit_code == 0
    assert "revoked" in keys("list", url=redis_url).stdout
    with Redis.from_url(redis_url) as connection:
        assert Keys(connection).find(key) is None


def test_a_key_may_have_a_scope_and_an_end(redis_url: str) -> None:
    assert keys("create", "Prometheus", "--scope", "metrics", url=redis_url).exit_code == 0
    made = keys("create", "Ada", "--expires-in", "90d", "--scope", "jobs", url=redis_url)
    with Redis.from_url(redis_url) as connection:
        prometheus, ada = Keys(connection).list()
    assert (prometheus.scope, prometheus.expires_at) == ("metrics", None)
    assert ada.expires_at is not None
    assert (ada.scope, ada.expires_at - ada.created_at) == ("jobs", timedelta(days=90))
    listed = keys("list", url=redis_url, COLUMNS="200").stdout
    assert "metrics" in listed
    assert f"valid until {ada.expires_at:%Y-%m-%d}" in listed
    assert made.stdout.strip() not in listed


@pytest.mark.parametrize("life", ["90", "0d", "-1d", "soon", "40000d", ""])
def test_an_end_that_is_no_time_to_come_is_a_wrong_option(redis_url: str, life: str) -> None:
    answer = keys("create", "Ada", "--expires-in", life, url=redis_url)
    assert answer.exit_code == 2
    assert "90d" in answer.stderr


def test_the_webhook_secret_can_be_read_again(redis_url: str) -> None:
    key = keys("create", "Ada", url=redis_url).stdout.strip()
    first = keys("webhook-secret", key[4:12], url=redis_url).stdout
    assert first.startswith("whsec_")
    assert keys("webhook-secret", key[4:12], url=redis_url).stdout == first


@pytest.mark.parametrize("command", ["revoke", "webhook-secret"])
def test_an_unknown_key_is_a_wrong_argument(redis_url: str, command: str) -> None:
    answer = keys(command, "00000000", url=redis_url)
    assert answer.exit_code == 2
    assert "keys list" in answer.stderr


def test_without_redis_the_command_says_where_it_looked() -> None:
    with RedisServer() as server:
        url, port = server.url, server.port
    answer = keys("list", url=url)
    assert answer.exit_code == 4
    assert str(port) in answer.stderr
