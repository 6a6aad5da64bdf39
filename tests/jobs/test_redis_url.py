"""What a URL of Redis says, and how a wrong one is refused without its password."""

from __future__ import annotations

import pytest

from jobs.errors import InvalidSettings
from jobs.redis_url import parse_redis_url
from jobs.settings import Settings

PASSWORD = "s%3Ae%2Fc%40ret"


def test_a_single_server_is_left_to_redis_py() -> None:
    for url in ("redis://h:1/2?socket_timeout=3", "unix:///run/redis.sock?db=1", "rediss://h/0"):
        assert parse_redis_url(url).url == url
        assert not parse_redis_url(url).sentinels


def test_the_number_of_replicas_is_ours() -> None:
    target = parse_redis_url("redis://h/0?replicas=2&socket_timeout=3")
    assert (target.url, target.replicas) == ("redis://h/0?socket_timeout=3", 2)


def test_sentinels_their_primary_and_its_database_are_read() -> None:
    url = f"rediss+sentinel://ada:{PASSWORD}@a,b:7,[::1]:8/my%20jobs/3?replicas=1&ssl_ca_certs=/ca"
    target = parse_redis_url(url + "&sentinel_password=other")
    assert target.sentinels == (("a", 26379), ("b", 7), ("::1", 8))
    assert (target.primary, target.replicas) == ("my jobs", 1)
    common = {"ssl_ca_certs": "/ca", "ssl": True}
    login = {"username": "ada", "password": "s:e/c@ret"}
    assert target.options == {"db": 3, **login, **common}
    assert target.sentinel_options == {"password": "other", **common}
    assert "s:e/c@ret" not in repr(target)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://:geheim@h", "must begin with one of redis://"),
        ("redis://:ge:heim/x@h:1/0", "%3A %2F %40"),
        ("redis+sentinel://:geheim@h:26379", "must end with /NAME"),
        ("redis+sentinel://:geheim@h:26379,/jobs", "must end with /NAME"),
        ("redis+sentinel://:geheim@h:one/jobs", "a port is a number"),
        ("redis://:geheim@h/0?replicas=two", "replicas must be a number"),
    ],
)
def test_a_wrong_url_is_refused_in_a_sentence_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(InvalidSettings, match="STABLESR_REDIS_URL is wrong: ") as error:
        Settings(redis_url=url)
    assert reason in str(error.value)
    assert "heim" not in str(error.value)
