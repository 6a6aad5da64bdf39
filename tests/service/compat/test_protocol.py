"""Results at an address that needs no key."""

from __future__ import annotations

import httpx
import pytest

from tests.service.compat.conftest import RESULT, URI
from tests.service.harness import problem


@pytest.mark.usefixtures("working")
def test_an_output_is_fetched_without_the_key_and_by_its_whole_address_only(
    client: httpx.Client,
    keyed: httpx.Client,
) -> None:
    body = {"version": "stablesr/tiny", "input": {"image": URI}}
    made = keyed.post("/v1/predictions", json=body, headers={"Prefer": "wait"}).json()
    output = httpx.URL(made["output"])
    answer = client.get(output)
    assert answer.content == RESULT
    assert answer.headers["Content-Type"] == "image/png"
    problem(client.get(f"/jobs/{made['id']}/result"), 401, "unauthorized")
    *_, owner, job_id, signature, name = output.path.split("/")
    for wrong in (
        f"/outputs/{owner}/{job_id}/{signature[:-1]}x/{name}",
        f"/outputs/{owner}/{'0' * 32}/{signature}/{name}",
        f"/outputs/00000000/{job_id}/{signature}/{name}",
    ):
        problem(client.get(wrong), 404, "job-not-found")
