#!/usr/bin/env bash
# Guess: fal_client.run() and submit() send their POST once: where the connection breaks before the
# answer, nothing can tell whether the request runs already, and a second one would be paid twice.
# What happens: they post again, up to ten times, also after a timeout, 408, 409 or 429, and nothing in
# the requests lets the server see that they are one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check fal-client==1.0.3 httpx==0.28.1
cd "$folder"
FAL_KEY=key venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import fal_client
import httpx

posts = []
failures = [httpx.ReadError("broken"), httpx.ReadTimeout("late"), httpx.Response(409), None]


def answer(self, request):
    posts.append({k: v for k, v in request.headers.items() if k not in ("host", "user-agent")})
    failure = failures[len(posts) - 1]
    if isinstance(failure, Exception):
        failure.request = request
        raise failure
    return failure or httpx.Response(200, json={"ok": True})


fal_client.client.BackupDomainTransport.handle_request = answer
print("fal-client", version("fal-client"))
print(fal_client.run("ada/up", {"image_url": "data:,"}), "after", len(posts), "posts")
assert len(posts) == 4
assert all(headers == posts[0] for headers in posts)
print("headers of each:", ", ".join(sorted(posts[0])))
PYTHON
