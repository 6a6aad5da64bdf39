#!/usr/bin/env bash
# Guess: options of obstore's client that a program gives add to those of the environment, as all
# other settings of a store do: with AWS_ALLOW_HTTP=true, a time limit leaves http:// allowed.
# What happens: any client_options, even none in a dictionary, replace the environment's. A program
# that begins to set a time limit thereby refuses every http:// endpoint, and drops the proxy too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import obstore
from obstore.store import from_url


class Takes(BaseHTTPRequestHandler):
    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


print("obstore", obstore.__version__)
server = HTTPServer(("127.0.0.1", 0), Takes)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
    "AWS_ALLOW_HTTP": "true",
}
outcomes = {}
for options in (None, {}, {"timeout": "30s"}, {"timeout": "30s", "allow_http": True}):
    try:
        obstore.put(from_url("s3://bucket", client_options=options), "name", b"1")
        outcomes[str(options)] = "stored"
    except obstore.exceptions.GenericError as error:
        outcomes[str(options)] = "BadScheme" if "BadScheme" in str(error) else str(error)
    print(f"client_options={options}: {outcomes[str(options)]}")
assert list(outcomes.values()) == ["stored", "BadScheme", "BadScheme", "stored"]
PYTHON
