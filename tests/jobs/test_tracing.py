"""Traces of a service and a worker, two real processes, as a collector gets them by OTLP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from structlog.testing import capture_logs

from cli.processes import free_port
from jobs import tracing
from jobs.settings import Settings
from tests.redis_server import RedisServer
from tests.worker import double
from tests.worker.processes import House, WorkerProcess, png, wait_for

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1", "baggage": "a=b"}
SECRET = "a-secret-of-a-client"
# Far below the SDK's own 30 seconds, far above what busy machines need.
SOON_S = 12.0


class Collector(ThreadingHTTPServer):
    """Keeps the spans that come, each with the name of its service."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.spans: list[tuple[str, Span]] = []
        self.fields: Mapping[str, str] = {}
        self.resource: Mapping[str, str] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def named(self, name: str) -> Span:
        [span] = [span for _, span in self.spans if span.name == name]
        return span


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.fields = dict(self.headers)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.resource = attributes(resource.resource)
            service = self.server.resource["service.name"]
            for scope in resource.scope_spans:
                self.server.spans += [(service, span) for span in scope.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def attributes(of: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in of.attributes}


def worker_under(settings: Settings, variables: dict[str, str]) -> int:
    os.environ.update(variables)
    return double.main(settings, step_s=0.01, load_s=0.0)


@dataclass
class Run:
    """A service and a worker under variables. `end` asks both to end, and says how long that took;
    from then on their lines can be read."""

    client: httpx.Client
    house: House
    end: Callable[[], float]

    def lines(self, part: str) -> list[dict[str, Any]]:
        log = self.house.folder / f"{part}.log"
        return [json.loads(line) for line in log.read_text().splitlines()]

    def post(self, **fields: Any) -> str:
        """The id of a job that has ended."""
        fields = {"scale": "2", "seed": "1", "steps": "4", **fields}
        files = {"image": ("a.png", png(), "image/png")}
        answer = self.client.post("/upscale", files=files, data=fields, headers=HEADERS)
        job: str = answer.raise_for_status().json()["id"]
        self.house.ended(job)
        return job


@contextmanager
def running(redis: RedisServer, folder: Path, **variables: str) -> Iterator[Run]:
    redis.flush()
    port = free_port()
    house = House(redis.url, folder)
    variables |= {"OTEL_BSP_SCHEDULE_DELAY": "100"}
    environment = {
        **os.environ,
        **variables,
        "STABLESR_REDIS_URL": redis.url,
        "STABLESR_BLOB_ROOT": str(house.settings.blob_root),
        "STABLESR_PORT": str(port),
        "STABLESR_RETRY_PAUSES_S": "0",
    }
    command = [sys.executable, "-W", "error", "-m", "cli", "serve"]
    with (
        (folder / "service.log").open("wb") as log,
        subprocess.Popen(command, env=environment, stderr=log) as service,
        WorkerProcess(worker_under, house.settings, folder / "worker.log", variables) as worker,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        try:

            def answers() -> bool:
                try:
                    return client.get("/readyz").status_code == 200
                except httpx.TransportError:
                    return False

            def end() -> float:
                start = time.monotonic()
                service.terminate()
                worker.signal(signal.SIGTERM)
                assert (worker.wait(), service.wait(30)) == (0, -signal.SIGTERM)
                return time.monotonic() - start

            wait_for(answers, "the service and its worker are ready", seconds=60)
            yield Run(client, house, end)
        finally:
            service.kill()
            house.queue.close()


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    with Collector(port) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def run(
    redis_server: RedisServer, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Run, str]]:
    """One job that succeeded; both processes ended at once after it."""
    variables = {ENDPOINT: collector.url, "OTEL_EXPORTER_OTLP_HEADERS": "api-key=k"}
    variables["OTEL_RESOURCE_ATTRIBUTES"] = "deployment.environment.name=test"
    with running(redis_server, tmp_path_factory.mktemp("traced"), **variables) as run:
        job = run.post()
        keyed = {"X-API-Key": SECRET}
        run.client.get(f"/outputs/a/b/{SECRET}", params={"sig": SECRET}, headers=keyed)
        run.end()
        yield run, job


def test_a_job_is_one_trace_of_two_processes_within_its_callers(
    run: tuple[Run, str], collector: Collector
) -> None:
    job_id = run[1]
    post, job = collector.named("POST /upscale"), collector.named("job")
    parts = [collector.named(n) for n in ("queue", "load", "encode", "denoise", "decode", "save")]
    assert {span.trace_id.hex() for span in (post, job, *parts)} == {TRACE}
    assert {span.trace_state for span in (post, job, *parts)} == {"vendor=1"}
    assert post.parent_span_id.hex() == CALLER
    assert job.parent_span_id == post.span_id
    assert {span.parent_span_id for span in parts} == {job.span_id}
    times = [t for part in parts for t in (part.start_time_unix_nano, part.end_time_unix_nano)]
    assert times == sorted(times)
    assert job.start_time_unix_nano == times[0]
    assert job.end_time_unix_nano >= times[-1]
    assert {service for service, span in collector.spans if span in (job, *parts)} == {
        "stablesr-worker"
    }
    assert ("stablesr-service", post) in collector.spans
    said = attributes(job)
    assert said["stablesr.job.id"] == job_id
    assert (said["stablesr.job.preset"], said["stablesr.job.steps"]) == ("tiny", 4)
    assert (said["stablesr.job.attempt"], said["stablesr.job.state"]) == (1, "succeeded")
    assert attributes(post) == {
        "http.request.method": "POST",
        "http.response.status_code": 202,
        "http.route": "/upscale",
        "url.scheme": "http",
    }
    assert collector.fields["api-key"] == "k"
    assert collector.resource["deployment.environment.name"] == "test"


def test_what_is_asked_all_the_time_is_no_span_and_no_address_is_in_one(
    run: tuple[Run, str], collector: Collector
) -> None:
    names = {span.name for _, span in collector.spans}
    assert {"POST /upscale", "GET"} <= names
    assert not [name for name in names if "livez" in name or "readyz" in name]
    assert SECRET.encode() not in b"".join(span.SerializeToString() for _, span in collector.spans)


def test_log_lines_name_the_trace_of_their_request_and_their_job(
    run: tuple[Run, str], collector: Collector
) -> None:
    for part, event, name in (
        ("service", "request", "POST /upscale"),
        ("service", "submitted", "POST /upscale"),
        ("worker", "job started", "job"),
        ("worker", "job done", "job"),
    ):
        [line] = [
            line
            for line in run[0].lines(part)
            if line["event"] == event and line.get("path") in (None, "/upscale")
        ]
        assert line["trace_id"] == TRACE
        assert line["span_id"] == collector.named(name).span_id.hex()
    assert "trace_id" not in run[0].lines("worker")[-1]


def test_attempts_that_fail_are_errors_in_the_same_trace(
    redis_server: RedisServer, collector: Collector, tmp_path: Path
) -> None:
    collector.spans.clear()
    variables = {ENDPOINT: collector.url, "OTEL_SERVICE_NAME": "upscaler"}
    with running(redis_server, tmp_path, **variables) as run:
        run.post(seed=str(double.OUT_OF_MEMORY))
        run.end()
    assert {service for service, _ in collector.spans} == {"upscaler"}
    jobs = [span for _, span in collector.spans if span.name == "job"]
    assert [attributes(span)["stablesr.job.attempt"] for span in jobs] == [1, 2]
    assert {span.trace_id.hex() for span in jobs} == {TRACE}
    assert {span.status.code for span in jobs} == {Status.STATUS_CODE_ERROR}
    assert attributes(jobs[-1])["error.type"] == "OutOfMemoryError"
    assert attributes(jobs[-1])["stablesr.job.state"] == "failed"
    # It waited once, and the stage it failed in is there.
    assert collector.named("queue").parent_span_id == jobs[0].span_id
    assert [span.name for _, span in collector.spans].count("denoise") == 2


@pytest.mark.parametrize("is_silent", [False, True], ids=["closed", "silent"])
def test_without_its_collector_jobs_run_and_processes_end_and_one_line_says_so(
    redis_server: RedisServer, tmp_path: Path, is_silent: bool
) -> None:
    """Its port is closed, or open and silent."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if is_silent:
            listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        variables = {ENDPOINT: url, "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
        with running(redis_server, tmp_path, **variables) as run:
            job = run.post()
            if not is_silent:
                wait_for(lambda: "batch" in (tmp_path / "worker.log").read_text(), "a line says so")
            assert run.house.job(job).state == "succeeded"
            run.post()
            assert run.end() < SOON_S
    for part in ("service", "worker"):
        said = [line for line in run.lines(part) if line["logger"].startswith("opentelemetry")]
        assert len(said) <= 1, said


def test_spans_wait_for_a_collector_that_is_away_for_a_moment() -> None:
    code = (
        "import sys; from jobs import logs, settings, tracing; "
        "logs.configure_logging(settings.Settings()); stop = tracing.start('a'); "
        "tracing.TRACER.start_span('late').end(); sys.stdin.read(); stop()"
    )
    port = free_port()
    variables = {ENDPOINT: f"http://127.0.0.1:{port}", "OTEL_BSP_SCHEDULE_DELAY": "10"}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["logger"].startswith("opentelemetry")
        with collecting(port) as collector:
            line = json.loads(process.stderr.readline())
        assert (line["event"], line["dropped"]) == ("traces are sent again", 0)
        process.stdin.close()
    assert collector.named("late")


def test_without_the_variables_nothing_is_imported_that_sends_traces() -> None:
    """redis-py imports the SDK's metrics wherever the SDK is installed."""
    code = (
        "import sys, service.run; from jobs import tracing; tracing.start('a')(); "
        "sent = 'opentelemetry.sdk.trace', 'opentelemetry.exporter', 'requests'; "
        "print([name for name in sys.modules if name.startswith(sent)])"
    )
    environment = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    said = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert said == "[]\n"


@pytest.mark.parametrize(
    ("variables", "module", "said"),
    [
        ({}, "opentelemetry.exporter.otlp.proto.http.trace_exporter", "stablesr-server[otel]"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "none", "only http/protobuf"),
    ],
)
def test_what_keeps_traces_from_being_sent_is_said_in_one_line(
    variables: Mapping[str, str], module: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for name, value in {ENDPOINT: "http://127.0.0.1:9", **variables}.items():
        monkeypatch.setenv(name, value)
    with capture_logs() as lines:
        tracing.start("a")()
    [line] = lines
    assert line["log_level"] == "error"
    assert said in line["reason"]


def test_a_sdk_that_is_disabled_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with capture_logs() as lines:
        tracing.start("a")()
    assert lines == []
