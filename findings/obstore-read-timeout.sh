#!/usr/bin/env bash
# Guess: obstore's read_timeout is the longest silence while an answer is read ("applies to each
# read operation, and resets after a successful read"), so a slow upload is safe from it.
# What happens: it begins with the request. Sending the body counts, although bytes move all the
# time: 4 MB to a server that reads 1 MB a second fail with a read_timeout of 1 second, and so does a
# part of a multipart upload. A limit on silence must leave time for the largest part.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import obstore
from obstore.store import from_url


class Slow(BaseHTTPRequestHandler):
    def do_PUT(self):
        left = int(self.headers["Content-Length"])
        while left and (data := self.rfile.read(min(left, 10_000))):
            left -= len(data)
            time.sleep(len(data) / 1_000_000)
        self.send_response(200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def handle(self):
        try:
            super().handle()
        except OSError:
            pass

    def log_message(self, *_):
        pass


print("obstore", obstore.__version__)
server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
}
outcomes = {}
for limit in ("1s", "20s"):
    options = {"allow_http": True, "timeout": "1h", "read_timeout": limit}
    store = from_url("s3://bucket", client_options=options, retry_config={"max_retries": 0})
    start = time.monotonic()
    try:
        obstore.put(store, "name", bytes(4_000_000))
        outcomes[limit] = "stored"
    except obstore.exceptions.GenericError as error:
        outcomes[limit] = "TimedOut" if "TimedOut" in str(error) else str(error)
    print(f"read_timeout {limit}: {outcomes[limit]} after {time.monotonic() - start:.1f} s")
assert outcomes == {"1s": "TimedOut", "20s": "stored"}
PYTHON
