"""fal-client of PyPI, as its README has it; changed: two hosts, the key, the app's name."""

import fal_client
import httpx
from cases import BROKEN, PNG, refused, report, size, soon

APP = "stablesr/tiny"
IMAGE = fal_client.encode(PNG, "image/png")


def sides(result):
    return size(httpx.get(result["image"]["url"]).content)


def single():
    seen = []
    result = fal_client.subscribe(
        APP, {"image_url": IMAGE, "scale": 2}, with_logs=True, on_queue_update=seen.append
    )
    assert sides(result) == (48, 32)
    assert isinstance(seen[-1], fal_client.Completed)


def batch():
    handles = [fal_client.submit(APP, {"image_url": IMAGE, "seed": seed}) for seed in (1, 2, 3)]
    assert [handle.get()["seed"] for handle in handles] == [1, 2, 3]


def wait():
    assert sides(fal_client.run(APP, {"image_url": IMAGE, "upscale_factor": 2})) == (48, 32)


def poll():
    handle = fal_client.submit(APP, {"image_url": IMAGE, "steps": 40})
    soon(lambda: isinstance(fal_client.status(APP, handle.request_id), fal_client.Completed))
    assert sides(fal_client.result(APP, handle.request_id)) == (96, 64)


def cancel():
    handle = fal_client.submit(APP, {"image_url": IMAGE, "steps": 1000}, priority="low")
    handle.cancel()
    refused(handle.get, "canceled")


def failure():
    broken = fal_client.encode(BROKEN, "image/png")
    refused(lambda: fal_client.subscribe(APP, {"image_url": broken}), "broken")


def bad_input():
    refused(lambda: fal_client.run(APP, {"image_url": IMAGE, "creativity": 1}), "creativity")
    refused(lambda: fal_client.run("fal-ai/esrgan", {"image_url": IMAGE}), APP)
    hook = {"webhook_url": "https://example.org"}
    refused(lambda: fal_client.submit(APP, {"image_url": IMAGE}, **hook), "fal_webhook")
    stranger = fal_client.SyncClient(key="none")
    refused(lambda: stranger.run(APP, {"image_url": IMAGE}), "key")


report(
    "fal_client",
    {
        "single": single,
        "batch": batch,
        "wait": wait,
        "poll": poll,
        "cancel": cancel,
        "failure": failure,
        "bad input": bad_input,
    },
)
