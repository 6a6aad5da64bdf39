#!/usr/bin/env bash
# Guess: obstore raises FileNotFoundError for an object that is not there, so only reading and
# deleting can; a bucket that is not there is an error of another kind.
# What happens: with S3 a put to a missing bucket raises FileNotFoundError, as get, head and delete
# do, while a list of it raises GenericError. Deleting a missing object of a bucket raises nothing.
# The answer to a head has no body, so of a missing bucket it says no more than of a missing object.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  obstore==0.12.1 'moto[s3]==5.2.5' flask==3.1.3 flask-cors==6.0.5
cd "$folder"
venv/bin/python - 2>/dev/null <<'PYTHON'
import os
import urllib.request

import obstore
from moto.server import ThreadedMotoServer
from obstore.store import from_url

print("obstore", obstore.__version__)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = "http://{}:{}".format(*server.get_host_and_port())
os.environ |= {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_ENDPOINT_URL": url,
    "AWS_ALLOW_HTTP": "true",
}
urllib.request.urlopen(urllib.request.Request(f"{url}/there", method="PUT")).close()
CALLS = {
    "put": lambda store: obstore.put(store, "name", b"1"),
    "get": lambda store: obstore.get(store, "none"),
    "head": lambda store: obstore.head(store, "none"),
    "delete": lambda store: obstore.delete(store, "none"),
    "list": lambda store: list(obstore.list(store)),
}
outcomes = {}
for bucket in ("there", "missing"):
    for name, call in CALLS.items():
        code = ""
        try:
            call(from_url(f"s3://{bucket}"))
            outcomes[bucket, name] = "no error"
        except Exception as error:
            outcomes[bucket, name] = type(error).__name__
            code = "NoSuchBucket" if "NoSuchBucket" in str(error) else "no code of the bucket"
        print(f"{bucket:8} {name:7} {outcomes[bucket, name]:18} {code}")
        if (bucket, name) == ("missing", "head"):
            assert code == "no code of the bucket"
there, missing = ([outcomes[bucket, name] for name in CALLS] for bucket in ("there", "missing"))
assert there == ["no error", "FileNotFoundError", "FileNotFoundError", "no error", "no error"]
assert missing == ["FileNotFoundError"] * 4 + ["GenericError"]
server.stop()
PYTHON
