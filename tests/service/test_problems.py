"""Whatever goes wrong is a problem with a request id, and never a traceback."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx
import pytest
import structlog

from jobs.settings import Settings
from jobs.store import BlobStore
from tests.service.harness import FakeWorker, problem, serving
from tests.service.pictures import picture


def test_an_unknown_path_is_a_404_problem(client: httpx.Client) -> None:
    body = problem(client.get("/nothing/here"), 404, "about:blank")
    assert "/nothing/here" in str(body["detail"])


def test_a_wrong_method_is_a_405_problem_with_all_that_would_do(client: httpx.Client) -> None:
    answer = client.patch("/jobs/x")
    body = problem(answer, 405, "about:blank")
    assert body["allowed"] == ["DELETE", "GET", "HEAD"]
    assert answer.headers["Allow"] == "DELETE, GET, HEAD"


def test_a_get_of_the_upload_is_a_405_problem(client: httpx.Client) -> None:
    answer = client.get("/upscale")
    problem(answer, 405, "about:blank")
    assert answer.headers["Allow"] == "POST"


def test_a_problem_about_a_strange_path_is_still_json(client: httpx.Client) -> None:
    answer = client.get("/caf%C3%A9/%F0%9F%90%88/%FF%22")
    assert answer.status_code == 404
    assert json.loads(answer.content)["instance"].isascii()


def test_an_error_in_the_middle_of_a_result_breaks_the_connection(
    settings: Settings, client: httpx.Client, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole-looking half image would be worse than none."""
    job = client.post("/upscale", files={"image": picture("PNG")}).json()["id"]
    worker.start(job)
    worker.succeed(job, bytes(1000))

    def breaking(store: BlobStore, key: str, *_: object) -> Iterator[bytes]:
        yield bytes(500)
        raise RuntimeError("the disk broke")

    monkeypatch.setattr(BlobStore, "stream", breaking)
    with structlog.testing.capture_logs(), pytest.raises(httpx.RemoteProtocolError):
        client.get(f"/jobs/{job}/result")


def test_a_refusal_reaches_a_client_that_still_sends(client: httpx.Client) -> None:
    """The server must not reset the connection while its answer is on the way."""
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, timeout=10) as connection:
        head = "POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000000\r\n"
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode())
        for _ in range(200):
            connection.sendall(bytes(50_000))
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")


def test_the_type_of_a_problem_can_be_looked_up(client: httpx.Client) -> None:
    body = problem(client.get("/jobs/x"), 404, "job-not-found")
    looked_up = client.get(str(body["type"])).json()
    assert looked_up == {"type": body["type"], "title": body["title"], "status": 404}


def test_the_type_of_a_jobs_error_can_be_looked_up(client: httpx.Client) -> None:
    assert client.get("/problems/worker-lost").json()["status"] is None


def test_an_unknown_type_of_problem_is_a_404_problem(client: httpx.Client) -> None:
    problem(client.get("/problems/nonsense"), 404, "about:blank")


def test_a_service_behind_a_prefix_says_so_in_its_paths(settings: Settings) -> None:
    with serving(settings, root_path="/upscaler") as client:
        answer = client.post("/upscale", files={"image": picture("PNG")})
        assert answer.headers["Location"] == f"/upscaler/jobs/{answer.json()['id']}"
        assert answer.json()["links"]["self"] == answer.headers["Location"]
        assert client.get("/jobs/x").json()["type"] == "/upscaler/problems/job-not-found"


def test_the_request_that_made_a_job_is_known_to_its_worker_alone(
    client: httpx.Client, worker: FakeWorker
) -> None:
    headers = {"X-Request-ID": "trace-7"}
    answer = client.post("/upscale", files={"image": picture("PNG")}, headers=headers)
    assert "request_id" not in answer.json()
    assert worker.start(answer.json()["id"]).request_id == "trace-7"
