"""A service that upscales nothing: jobs, keys, events and results as the real one tells them."""

from __future__ import annotations

import email
import hashlib
import json
import threading
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

from tests.scripted_server import Answer, Script


def result_of(image: bytes, fields: dict[str, str]) -> bytes:
    """What this service makes of an image."""
    return f"upscaled {sorted(fields.items())}: ".encode() + image


@dataclass
class _Job:
    id: str
    name: str
    image: bytes
    fields: dict[str, str]
    state: str = "queued"
    ended: threading.Event = field(default_factory=threading.Event)

    def view(self) -> dict[str, Any]:
        content = result_of(self.image, self.fields)
        digest = hashlib.sha256(content).hexdigest()
        result = {"width": 96, "height": 64, "bytes": len(content), "sha256": digest}
        return {
            "id": self.id,
            "state": self.state,
            "preset": "tiny",
            "seed": int(self.fields["seed"]),
            "result": result if self.state == "succeeded" else None,
            "error": {"title": "The worker broke"} if self.state == "failed" else None,
        }


class FakeService:
    """Takes over what `script` answers.

    `refuse` and `fail` name files whose upload is refused, or whose job fails; those in `hold` are
    processed until `release`. `unauthorized` refuses all. `limits` are told with the models.
    """

    def __init__(self, script: Script) -> None:
        script.handle = self._handle
        self.url = script.url
        self.jobs: dict[str, _Job] = {}
        self.by_key: dict[str, _Job] = {}
        self.uploads: list[str] = []
        self.at_once = 0
        self.refuse: set[str] = set()
        self.fail: set[str] = set()
        self.hold: set[str] = set()
        self.unauthorized = False
        self.limits: dict[str, int] = {}
        self._followed: set[str] = set()
        self._changed = threading.Condition()

    def wait_for_uploads(self, *names: str, timeout: float = 100) -> None:
        """Returns when files of these names have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: set(names) <= set(self.uploads), timeout)

    def wait_for_followers(self, *names: str, timeout: float = 100) -> None:
        """Returns when the jobs of these files are followed."""
        with self._changed:
            assert self._changed.wait_for(lambda: set(names) <= self._followed, timeout)

    def release(self) -> None:
        """Lets the jobs that are held succeed."""
        self.hold.clear()
        for job in self.jobs.values():
            if job.state in ("queued", "processing"):
                self._end(job, "succeeded")

    def states(self) -> dict[str, list[str]]:
        """The states of the jobs of each file."""
        states: dict[str, list[str]] = {}
        for job in self.jobs.values():
            states.setdefault(job.name, []).append(job.state)
        return states

    def _end(self, job: _Job, state: str) -> None:
        job.state = state
        job.ended.set()

    def _handle(self, call: str, headers: dict[str, str], body: bytes) -> Answer | None:
        if call == "GET /models":
            return _json(200, {"models": [{"name": "tiny", "default": True}], **self.limits})
        if call == "POST /upscale" and self.unauthorized:
            problem = {"type": "/problems/unauthorized", "title": "The API key is wrong"}
            return _json(401, problem)
        if call == "POST /upscale":
            return self._submit(headers, body)
        method, _, rest = call.partition(" /jobs/")
        job = self.jobs.get(rest[:32])
        if job is None:
            return None
        if method == "DELETE":
            self._end(job, "canceled")
            return _json(200, job.view())
        if rest.endswith("/events"):
            with self._changed:
                self._followed.add(job.name)
                self._changed.notify_all()
            job.ended.wait(60)
            data = json.dumps(job.view())
            return Answer(200, f"id: 1\nevent: end\ndata: {data}\n\n".encode())
        if rest.endswith("/result"):
            return Answer(200, result_of(job.image, job.fields), {"ETag": '"1"'})
        return _json(200, job.view())

    def _submit(self, headers: dict[str, str], body: bytes) -> Answer:
        name, image, fields = _form(headers["content-type"], body)
        with self._changed:
            job = self.by_key.get(headers["idempotency-key"])
            if job is None and name not in self.refuse:
                job = _Job(f"{len(self.jobs):032x}", name, image, fields)
                self.jobs[job.id] = self.by_key[headers["idempotency-key"]] = job
                self.at_once = max(
                    self.at_once, sum(not other.ended.is_set() for other in self.jobs.values())
                )
            self.uploads.append(name)
            self._changed.notify_all()
        if job is None:
            problem = {"type": "/problems/image-truncated", "title": "The image is cut off"}
            return _json(422, problem)
        is_first = len(self.states()[name]) == 1
        # Of those that are held the first one fails.
        if name in self.fail and (is_first or name not in self.hold):
            self._end(job, "failed")
        elif name not in self.hold and not job.ended.is_set():
            self._end(job, "succeeded")
        return _json(202, job.view())


def _json(status: int, body: object) -> Answer:
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json"})


def _form(content_type: str, body: bytes) -> tuple[str, bytes, dict[str, str]]:
    """The image's name and content, and the other fields."""
    whole = email.message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    fields: dict[str, str] = {}
    name, image = "", b""
    for part in whole.get_payload():
        assert isinstance(part, Message)
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        if (filename := part.get_filename()) is not None:
            name, image = filename, content
        else:
            fields[str(part.get_param("name", header="content-disposition"))] = content.decode()
    return name, image, fields
