"""What a worker tells of itself: figures for the service, and lines that name the request."""

from __future__ import annotations

import json

from jobs.connection import connect
from jobs.origin import Origin
from jobs.overview import look_over
from jobs.schema import ImageInfo, Parameters, new_job_id
from jobs.store import input_key
from tests.worker.processes import House, png, wait_for


def test_figures_and_ids_reach_whoever_looks_after_the_service(house: House) -> None:
    job_id, data = new_job_id(), png()
    house.store.put(input_key(job_id), data)
    image = ImageInfo(width=10, height=6, format="PNG", media_type="image/png", bytes=len(data))
    parameters = Parameters(scale=2.0, seed=1, steps=4)
    with house.worker() as worker, connect(house.settings) as connection:
        house.queue.submit(job_id, parameters, image, Origin(request_id="trace-7"))
        house.ended(job_id)
        wait_for(
            lambda: (
                look_over(connection, house.settings).figures.get("stablesr_tiles_total", 0) >= 4
            ),
            "the figures are written with a heartbeat",
        )
        overview = look_over(connection, house.settings)
        lines = [json.loads(line) for line in worker.log.read_text().splitlines()]

    figures = overview.figures
    # Told once, and not again with the next heartbeat.
    assert figures["stablesr_departures_total|what=rows"] == 2
    steps = sum(count for name, count in figures.items() if "step_seconds|le=" in name)
    assert steps == 4
    assert figures["stablesr_job_moves_total|state=succeeded"] == 1
    assert any(name.startswith("stablesr_job_seconds|part=denoise|le=") for name in figures)
    [gauges] = overview.gauges.values()
    assert gauges["stablesr_worker_memory_bytes|kind=resident_peak"] > 2**20

    of_the_job = [line for line in lines if line.get("job") == job_id]
    assert {"job started", "job done"} <= {line["event"] for line in of_the_job}
    for line in of_the_job:
        if line["event"] in ("job started", "job done"):
            assert line["request_id"] == "trace-7"
