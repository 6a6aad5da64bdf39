"""What every answer carries, and under which names the service answers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import httpx
import pytest
import structlog
from redis import Redis
from starlette.types import Message, Receive, Scope, Send

from jobs.keys import Keys
from jobs.queue import JobReader
from jobs.settings import Settings
from service.metrics import ServiceMetrics
from service.middleware import RequestEnvelope
from tests.service.harness import FakeWorker, eventually, problem, serving, upload
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
    changes = {"allowed_hosts": "up.example, other.example", "host": "0.0.0.0", "access": "open"}
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
    with serving(settings.model_copy(update={"access": "keys"})) as client:
        assert client.get("/livez", headers={"Host": "any.example"}).status_code == 200
    Keys(redis).create("Ada")
    with serving(settings) as client:
        assert client.get("/livez", headers={"Host": "any.example"}).status_code == 200
        problem(client.get("/jobs", headers={"Host": "any.example"}), 401, "unauthorized")


@pytest.mark.parametrize("path", ["/livez", "/models", "/jobs", "/jobs/x", "/nothing", "/docs"])
def test_every_answer_is_safe_to_receive(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_jobs_are_kept_by_no_cache_and_results_by_the_clients_own(
    client: httpx.Client, worker: FakeWorker
) -> None:
    answer = upload(client, PNG)
    job = answer.json()["id"]
    worker.start(job)
    worker.succeed(job, PNG)
    assert answer.headers["Cache-Control"] == "no-store"
    assert client.get(f"/jobs/{job}").headers["Cache-Control"] == "no-store"
    result = client.get(f"/jobs/{job}/result").headers
    assert result["Cache-Control"].startswith("private,")
    assert result["Vary"] == "Authorization, X-API-Key"
    assert result["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/" + "x" * 9_000, {}, 414),
        ("/jobs?cursor=" + "x" * 9_000, {}, 414),
        ("/livez", {"X-Large": "x" * 33_000}, 431),
        ("/livez", {f"X-{number}": "x" for number in range(200)}, 431),
    ],
)
def test_a_head_that_is_too_large_is_refused_as_a_problem(
    client: httpx.Client, path: str, headers: dict[str, str], status: int
) -> None:
    answer = client.get(path, headers=headers)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert len(answer.content) < 1000


def test_every_answer_has_a_request_id(client: httpx.Client) -> None:
    first, second = (client.get("/livez").headers["X-Request-ID"] for _ in range(2))
    assert len(first) == 32
    assert first != second


def test_a_clients_request_id_is_kept(client: httpx.Client) -> None:
    answer = client.get("/livez", headers={"X-Request-ID": "trace-1.a_B"})
    assert answer.headers["X-Request-ID"] == "trace-1.a_B"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "<script>", "né"])
def test_a_request_id_that_is_no_word_is_replaced(client: httpx.Client, given: str) -> None:
    answer = client.get("/livez", headers={b"X-Request-ID": given.encode()})
    assert len(answer.headers["X-Request-ID"]) == 32


def test_each_request_is_one_line_in_the_log(client: httpx.Client) -> None:
    with structlog.testing.capture_logs() as logs:
        client.get("/nothing")
        # The line is written when the answer has left.
        eventually(lambda: any(entry["event"] == "request" for entry in logs))
    (entry,) = [entry for entry in logs if entry["event"] == "request"]
    assert (entry["method"], entry["path"], entry["status"]) == ("GET", "/nothing", 404)
    assert entry["seconds"] >= 0
    assert entry["client"] == "127.0.0.1"


def test_the_line_names_the_client_that_a_trusted_proxy_tells_of(settings: Settings) -> None:
    for proxies, client_address in (("127.0.0.1", "203.0.113.7"), ("10.0.0.1", "127.0.0.1")):
        changed = settings.model_copy(update={"trusted_proxies": proxies})
        with structlog.testing.capture_logs() as logs, serving(changed) as client:
            client.get("/livez", headers={"X-Forwarded-For": "198.51.100.1, 203.0.113.7"})
        (entry,) = [entry for entry in logs if entry["event"] == "request"]
        assert entry["client"] == client_address


def test_others_wait_for_few_requests_of_a_client_that_has_many() -> None:
    """Counted, not timed: what is served while one request of another client takes its course."""
    turns, crowd = 10, 200
    ends: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 204})
        ends.append(scope["client"][0])

    async def send(message: Message) -> None:
        pass

    async def main() -> None:
        envelope = RequestEnvelope(app, ServiceMetrics(), Settings())

        def request(address: str) -> Coroutine[None, None, None]:
            head = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/"}
            host = {"headers": [(b"host", b"localhost")], "query_string": b""}
            receive: Any = None
            return envelope({**head, **host, "client": (address, 1)}, receive, send)

        await asyncio.gather(*(request("192.0.2.1") for _ in range(crowd)), request("192.0.2.2"))

    asyncio.run(main())
    assert len(ends) == crowd + 1
    assert ends.index("192.0.2.2") <= turns


def test_an_unexpected_error_is_a_500_problem_and_a_log_entry(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(reader: JobReader, *_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(JobReader, "job_of", broken)
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as logs:
        answer = client.get("/jobs/x")
    body = problem(answer, 500, "internal-error")
    assert "secret" not in answer.text
    (entry,) = [entry for entry in logs if entry["event"] == "unexpected error"]
    assert entry["exc_info"] is True
    assert entry["request_id"] == body["request_id"]
    # The connection lives on.
    assert client.get("/livez").status_code == 200


HOME = "https://app.example.org"


@pytest.fixture
def shared(settings: Settings) -> Iterator[httpx.Client]:
    """A service that pages of one other origin may use."""
    with serving(settings.model_copy(update={"cors_origins": f"{HOME}, http://b.example"})) as it:
        yield it


def test_a_page_of_an_origin_that_is_named_may_do_everything(shared: httpx.Client) -> None:
    for method, fields in [
        ("POST", "authorization,content-type,idempotency-key,prefer,x-api-key"),
        ("GET", "last-event-id"),
        ("DELETE", "authorization"),
    ]:
        asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": fields}
        answer = shared.options("/upscale", headers={"Origin": HOME, **asked})
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == HOME
        assert "Access-Control-Allow-Credentials" not in answer.headers
    accepted = post(shared, Origin=HOME)
    assert accepted.status_code == 202
    assert accepted.headers["Access-Control-Allow-Origin"] == HOME
    exposed = accepted.headers["Access-Control-Expose-Headers"].split(", ")
    assert {"Location", "Retry-After", "ETag", "RateLimit", "RateLimit-Policy"} <= {*exposed}
    assert {"X-Request-ID", "Idempotent-Replayed", "Content-Disposition"} <= {*exposed}
    # What is wrong can be read too.
    answer = shared.get("/jobs/x", headers={"Origin": HOME})
    assert problem(answer, 404, "job-not-found")
    assert answer.headers["Access-Control-Allow-Origin"] == HOME
    assert shared.delete(accepted.headers["Location"], headers={"Origin": HOME}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://app.example.org", f"{HOME}:444", f"{HOME}.evil.test"],
)
def test_a_page_of_another_origin_than_those_named_reads_nothing(
    shared: httpx.Client, origin: str
) -> None:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    for answer in (
        shared.options("/upscale", headers=asked),
        shared.get("/models", headers={"Origin": origin}),
        post(shared, Origin=origin),
    ):
        assert "Access-Control-Allow-Origin" not in answer.headers
    problem(post(shared, Origin=origin), 403, "foreign-origin")


def test_any_origin_may_be_let_in_and_never_with_credentials(settings: Settings) -> None:
    with serving(settings.model_copy(update={"cors_origins": "*"})) as client:
        answer = post(client, Origin="https://anything.example")
        assert answer.status_code == 202
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in answer.headers


def test_nothing_is_said_to_other_origins_unless_they_are_named(client: httpx.Client) -> None:
    answer = client.get("/models", headers={"Origin": HOME})
    assert "Access-Control-Allow-Origin" not in answer.headers
