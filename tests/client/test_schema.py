"""The parameters that are sent and the models of what the service sends."""

from __future__ import annotations

from stablesr_client import Cost
from tests.client.shells import Shell
from tests.scripted_server import JOB_ID, Script, job


def test_the_presets_have_their_limits(script: Script, client: Shell) -> None:
    models = [{"name": "tiny", "default": True, "available": True, "new": 1}, {"name": "big"}]
    script.add("GET /models", 200, {"models": models, "max_input_pixels": 40, "formats": ["PNG"]})
    presets = client.models()
    assert presets.default is not None
    assert presets.default.name == "tiny"
    assert presets.max_input_pixels == 40
    assert presets.formats == ("PNG",)


def test_what_the_server_sends_beside_is_no_reason_to_fail(script: Script, client: Shell) -> None:
    script.add(
        f"GET /jobs/{JOB_ID}",
        200,
        job("thinking", progress={"stage": "dream", "fraction": 0.1, "x": [1]}),
    )
    now = client.get(JOB_ID)
    assert (now.state, now.ended) == ("thinking", False)


def test_a_job_has_its_cost_where_the_server_tells_it(script: Script, client: Shell) -> None:
    cost = {"canvas_width": 512, "canvas_height": 640, "tiles": 2, "steps": 4, "note": "Why."}
    script.add(f"GET /jobs/{JOB_ID}", 200, job("queued"))
    script.add(f"GET /jobs/{JOB_ID}", 200, job("queued", cost=cost))
    assert client.get(JOB_ID).cost is None
    assert client.get(JOB_ID).cost == Cost(**cost)
