"""replicate of PyPI, as its README has it; changed: base_url, token, and the model's name."""

import io
import json
import sys

import replicate
from cases import BROKEN, HOOK, TLS_URL, photo, refused, report, size, soon
from replicate.webhook import Webhooks

MODEL = "stablesr/tiny"


def version():
    return replicate.models.get(MODEL).latest_version


def single():
    output = replicate.run(MODEL, input={"image": photo(), "scale": 2})
    assert size(output.read()) == (48, 32)


def by_version():
    ref = f"{MODEL}:{version().id}"
    output = replicate.run(ref, input={"image": photo(), "scale_factor": 2})
    assert size(output.read()) == (48, 32)


def batch():
    for scale in (2, 3):
        replicate.predictions.create(version=version(), input={"image": photo(), "scale": scale})
    page = replicate.predictions.list()
    assert len(page.results) >= 2
    for prediction in page.results[:2]:
        prediction.wait()
        assert prediction.status == "succeeded", prediction


def wait_runs_out():
    # Longer than the wait of a second.
    slow = {"image": photo(), "num_inference_steps": 60}
    output = replicate.run(MODEL, input=slow, wait=1)
    assert size(output.read()) == (96, 64)


def poll():
    prediction = replicate.predictions.create(
        version=version(), input={"image": photo(), "num_inference_steps": 60}
    )
    assert prediction.status == "starting"
    seen = []

    def ended():
        prediction.reload()
        if prediction.progress:
            seen.append(prediction.progress.percentage)
        return prediction.status == "succeeded"

    soon(ended)
    assert seen, prediction
    assert seen == sorted(seen), seen
    assert prediction.metrics["predict_time"] > 0


def cancel():
    slow = {"image": photo(), "num_inference_steps": 1000}
    prediction = replicate.predictions.create(version=version(), input=slow)
    prediction.cancel()
    prediction.wait()
    assert prediction.status == "canceled"


def failure():
    broken = {"image": io.BytesIO(BROKEN)}
    refused(lambda: replicate.run(MODEL, input=broken), "broken")


def bad_input():
    refused(
        lambda: replicate.run(MODEL, input={"image": photo(), "face_enhance": True}), "face_enhance"
    )
    refused(lambda: replicate.run("nightmareai/real-esrgan", input={"image": photo()}), MODEL)
    refused(lambda: replicate.run(MODEL, input={"image": "data:image/png;base64,%"}), "base64")
    stranger = replicate.Client(api_token="r8_none", base_url=TLS_URL)
    refused(lambda: stranger.predictions.list(), "401")


def webhook():
    prediction = replicate.predictions.create(
        version=version(),
        input={"image": photo()},
        webhook=HOOK,
        webhook_events_filter=["completed"],
    )
    print("hook " + prediction.id, flush=True)
    told = json.loads(sys.stdin.readline())
    headers = {f"webhook-{name}": told[name] for name in ("id", "timestamp", "signature")}
    secret = replicate.webhooks.default.secret()
    Webhooks.validate(headers=headers, body=told["body"], secret=secret)


report(
    "replicate",
    {
        "single": single,
        "single, by version": by_version,
        "batch": batch,
        "wait": wait_runs_out,
        "poll": poll,
        "cancel": cancel,
        "failure": failure,
        "bad input": bad_input,
        "webhook": webhook,
    },
)
