"""What a worker tells of itself: metrics at its port, and lines that name the request."""

from __future__ import annotations

import json
import signal
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cli.processes import free_port
from jobs.schema import ImageInfo, Origin, new_job_id
from jobs.store import input_key
from models.parameters import UpscaleParameters
from tests.worker.processes import House, png, wait_for


def scrape(port: int) -> dict[str, float]:
    """Every sample at the port, by its name and the values of its labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        " ".join((sample.name, *(text for _, text in sorted(sample.labels.items())))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_and_ids_reach_the_operator(house: House) -> None:
    job_id, data, port = new_job_id(), png(), free_port()
    house.store.put(input_key(job_id), data)
    image = ImageInfo(width=10, height=6, format="PNG", media_type="image/png", bytes=len(data))
    parameters = UpscaleParameters(scale=2.0, seed=1, steps=4)
    with house.worker(metrics_port=port) as worker:
        house.queue.submit(job_id, parameters, image, Origin(request_id="trace-7"))
        job = house.ended(job_id)
        wait_for(
            lambda: "stablesr_job_seconds_count total" in scrape(port),
            "the job's end is observed",
        )
        metrics = scrape(port)
        [info] = house.queue.capacity().workers
        lines = [json.loads(line) for line in worker.log.read_text().splitlines()]

    assert metrics["stablesr_tiles_total"] == 8
    assert metrics["stablesr_network_call_seconds_count"] == 4
    assert metrics["stablesr_batch_fill_sum"] == 4 * 2 / 8
    assert metrics["stablesr_step_seconds_count"] == 4
    assert metrics["stablesr_departures_total rows"] == 2
    assert metrics["stablesr_departures_total tile_batch"] == 0
    assert metrics["stablesr_departures_total eager_failure"] == 0
    assert metrics["stablesr_sweep_put_off_total"] == 0
    assert job.timings is not None
    for part, seconds in job.timings.model_dump().items():
        assert metrics[f"stablesr_job_seconds_sum {part}"] == pytest.approx(seconds, abs=1e-3)
        assert metrics[f"stablesr_job_seconds_bucket 1800.0 {part}"] == 1
    # Through the register, with each heartbeat.
    assert info.memory["resident_peak"] > 2**20

    of_the_job = [line for line in lines if line.get("job") == job_id]
    assert {"job started", "job done"} <= {line["event"] for line in of_the_job}
    for line in of_the_job:
        if line["event"] in ("job started", "job done"):
            assert line["request_id"] == "trace-7"


def test_a_worker_that_starts_again_has_its_port_and_a_second_one_is_refused(
    house: House,
) -> None:
    port = free_port()
    for _ in range(2):
        with house.worker(metrics_port=port) as worker:
            house.ready()
            assert scrape(port)["stablesr_tiles_total"] == 0
            with house.worker(metrics_port=port) as second:
                assert second.wait() == 1
                said = second.log.read_text()
                assert f"STABLESR_METRICS_PORT is {port}" in said
                assert "Give each worker of a host a port of its own" in said
            assert worker.exit_code is None
            worker.signal(signal.SIGTERM)
            assert worker.wait() == 0
