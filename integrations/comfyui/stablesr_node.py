"""A ComfyUI node that upscales by a StableSR server: IMAGE in, IMAGE out.

Copy this file into ComfyUI's folder custom_nodes. Where the server asks for a key, start ComfyUI
with STABLESR_API_KEY set: a key in a workflow would be saved with every picture.

It needs what ComfyUI has: numpy, Pillow, torch; and of ComfyUI comfy.utils.ProgressBar and
comfy.model_management.throw_exception_if_processing_interrupted.
"""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from PIL import Image

TIMEOUT_S = 60
LOOK_S = 0.1
# Steps of the bar an image.
TICKS = 100


class StableSRUpscale:
    """Each image of the batch is a job; interrupting cancels those that have not ended."""

    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "server": ("STRING", {"default": "http://127.0.0.1:8000"}),
                "scale": ("FLOAT", {"default": 4.0, "min": 1.0, "max": 16.0, "step": 0.1}),
                "fidelity_weight": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**32 - 1}),
            },
            "optional": {
                # Empty, and 0: what the server does by default.
                "preset": ("STRING", {"default": ""}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000}),
            },
        }

    def upscale(
        self, image: torch.Tensor, server: str, preset: str = "", steps: int = 0, **fields: float
    ) -> tuple[torch.Tensor]:
        """`image` and the result: float32 (batch, height, width, 3) in [0, 1]."""
        url = server.rstrip("/")
        given = {"preset": preset.strip() or None, "steps": steps or None, **fields}
        bar = ProgressBar(TICKS * len(image))
        jobs: list[Job] = []
        try:
            for pixels in image:
                throw_exception_if_processing_interrupted()
                content = base64.b64encode(_encode(pixels)).decode()
                jobs.append(Job(url, _ask("POST", f"{url}/upscale", {"image": content, **given})))
            while not all(job.has_ended for job in jobs):
                throw_exception_if_processing_interrupted()
                bar.update_absolute(round(TICKS * sum(job.fraction for job in jobs)))
                time.sleep(LOOK_S)
            return (torch.stack([_decode(job.result()) for job in jobs]),)
        except BaseException:
            for job in jobs:
                job.cancel()
            raise


class Job:
    """One job, whose events are read beside the caller."""

    def __init__(self, server: str, view: dict[str, Any]) -> None:
        self.fraction = 0.0
        self.has_ended = False
        self._server, self._view = server, view
        self._fault: Exception | None = None
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        path = self._view["links"]["self"]
        try:
            while self._view["ended_at"] is None:
                # A stream may break off; the next one begins with the job as it is.
                with _open("GET", f"{self._server}{path}/events") as stream:
                    for line in stream:
                        if line.startswith(b"data: "):
                            self._note(json.loads(line[6:]))
        except Exception as error:
            self._fault = error
        self.has_ended = True

    def _note(self, event: dict[str, Any]) -> None:
        if "state" in event:
            self._view = event
        progress = event.get("progress", event) or {}
        self.fraction = progress.get("fraction", self.fraction)

    def result(self) -> bytes:
        """The image's file; raises RuntimeError for a job without one."""
        if self._fault is not None:
            raise self._fault
        if self._view["state"] != "succeeded":
            error = self._view["error"] or {"detail": f"The job is {self._view['state']}."}
            raise RuntimeError(f"StableSR: {error['detail']}")
        with _open("GET", self._server + self._view["links"]["result"]) as answer:
            return answer.read()

    def cancel(self) -> None:
        if not self.has_ended:
            _ask("DELETE", self._server + self._view["links"]["self"])


def _encode(pixels: torch.Tensor) -> bytes:
    array = (pixels[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def _decode(data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)


def _ask(method: str, url: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    with _open(method, url, content) as answer:
        view: dict[str, Any] = json.load(answer)
        return view


def _open(method: str, url: str, content: dict[str, Any] | None = None) -> Any:
    """An open answer; raises RuntimeError with the server's own words for a refusal."""
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    if key := os.environ.get("STABLESR_API_KEY"):
        request.add_header("Authorization", f"Bearer {key}")
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            detail = json.load(error).get("detail", error.reason)
        raise RuntimeError(f"StableSR: {detail}") from None


NODE_CLASS_MAPPINGS = {"StableSRUpscale": StableSRUpscale}
NODE_DISPLAY_NAME_MAPPINGS = {"StableSRUpscale": "StableSR upscale (server)"}
