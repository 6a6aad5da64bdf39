#!/usr/bin/env bash
# Guess: predictions.create(..., wait=True) of replicate asks the server to hold the answer until the
# prediction has ended, whether the model is named by `version=` or by `model=`.
# What happens: only with `version=`. With `model=` the argument is accepted and dropped, so the answer
# comes at once, as a prediction that has only begun.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check replicate==1.0.7 httpx==0.28.1
cd "$folder"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import httpx
import replicate

asked = []


def answer(request):
    asked.append((request.url.path, request.headers.get("prefer")))
    prediction = dict.fromkeys(("input", "output", "logs", "error", "metrics", "urls"))
    moments = dict.fromkeys(("created_at", "started_at", "completed_at"))
    names = {"id": "p", "model": "ada/up", "version": "v", "status": "starting"}
    return httpx.Response(201, json={**prediction, **moments, **names})


print("replicate", version("replicate"))
client = replicate.Client(api_token="t", transport=httpx.MockTransport(answer))
client.predictions.create(version="v", input={}, wait=True)
client.predictions.create(model="ada/up", input={}, wait=True)
client.models.predictions.create(model="ada/up", input={}, wait=True)
for path, prefer in asked:
    print(f"{path:36} Prefer: {prefer}")
assert [prefer for _, prefer in asked] == ["wait", None, "wait"]
PYTHON
