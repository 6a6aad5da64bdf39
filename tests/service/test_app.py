"""The service tidies up although there is no worker."""

from __future__ import annotations

from redis import Redis

from jobs.settings import Settings
from jobs.store import BlobStore, input_key
from tests.service.harness import eventually, serving, upload
from tests.service.pictures import picture


def test_a_canceled_jobs_image_is_removed_without_any_worker(
    settings: Settings, redis: Redis
) -> None:
    store = BlobStore.open(settings)
    with serving(settings.model_copy(update={"worker_ttl_s": 1})) as client:
        job = upload(client, picture("PNG")).json()["id"]
        assert store.exists(input_key(job))
        assert client.delete(f"/jobs/{job}").status_code == 200
        eventually(lambda: not store.exists(input_key(job)))
