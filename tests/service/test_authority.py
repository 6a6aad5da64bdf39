"""Pages of other hosts and origins do nothing to an open service on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from redis import Redis

from jobs.keys import Keys
from jobs.settings import Settings
from tests.service.harness import problem, serving
from tests.service.pictures import picture

PNG = picture("PNG")


def post(client: httpx.Client, **headers: str) -> httpx.Response:
    return client.post("/upscale", files={"image": ("a.png", PNG)}, headers=headers)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "127.8.8.8", "[::1]", "[::1]:8000"],
)
def test_a_local_name_is_answered(client: httpx.Client, host: str) -> None:
    assert client.get("/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "192.168.1.5",
        "[::2]",
        "[",
        "",
    ],
)
def test_another_name_is_not(client: httpx.Client, host: str) -> None:
    for path in ("/jobs", "/", "/livez"):
        body = problem(client.get(path, headers={"Host": host}), 421, "foreign-host")
        assert "STABLESR_ALLOWED_HOSTS" in body["detail"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "http://"]
)
def test_a_page_of_another_origin_changes_nothing(
    client: httpx.Client, redis: Redis, origin: str
) -> None:
    problem(post(client, Origin=origin), 403, "foreign-origin")
    answer = client.delete("/jobs/x", headers={"Origin": origin})
    problem(answer, 403, "foreign-origin")
    assert redis.keys("*job*") == []
    assert client.get("/models", headers={"Origin": origin}).status_code == 200


def test_the_services_own_page_may(client: httpx.Client) -> None:
    own = str(client.base_url).rstrip("/")
    assert post(client, Origin=own).status_code == 202


@pytest.fixture
def named(settings: Settings) -> Iterator[httpx.Client]:
    """Published elsewhere by a proxy, from which the name comes."""
    changes = {"allowed_hosts": "up.example, other.example", "host": "0.0.0.0", "allow_open": True}
    with serving(settings.model_copy(update=changes)) as client:
        yield client


def test_a_host_that_is_named_is_answered(named: httpx.Client) -> None:
    assert post(named, Host="up.example:443", Origin="https://up.example:443").status_code == 202
    # A proxy that does not pass the name on.
    assert post(named, Origin="https://up.example").status_code == 202
    assert named.get("/livez").status_code == 200
    problem(named.get("/livez", headers={"Host": "evil.example"}), 421, "foreign-host")
    problem(post(named, Origin="https://evil.example"), 403, "foreign-origin")


@pytest.mark.parametrize("changes", [{"allowed_hosts": "*"}, {"host": "0.0.0.0"}])
def test_who_is_to_be_reached_under_any_name_is(
    settings: Settings, changes: dict[str, object]
) -> None:
    with serving(settings.model_copy(update=changes)) as client:
        assert client.get("/jobs", headers={"Host": "any.example"}).status_code == 200


def test_a_key_tells_more_than_a_name(settings: Settings, redis: Redis) -> None:
    """A browser sends no key for a page that does not know it."""
    with serving(settings.model_copy(update={"require_key": True})) as client:
        assert client.get("/livez", headers={"Host": "any.example"}).status_code == 200
    Keys(redis).create("Ada")
    with serving(settings) as client:
        assert client.get("/livez", headers={"Host": "any.example"}).status_code == 200
        problem(client.get("/jobs", headers={"Host": "any.example"}), 401, "unauthorized")
