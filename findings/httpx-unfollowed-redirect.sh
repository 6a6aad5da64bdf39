#!/usr/bin/env bash
# Guess: with follow_redirects=False, the default, httpx hands an answer 302 over as it came, and
# what its Location says is the caller's business.
# What happens: the address is parsed all the same, for `response.next_request`. Where httpx cannot
# parse one that browsers and urllib can (an octal IPv4 host, an underscore with an accent), the
# whole answer is lost: get() raises RemoteProtocolError, as if the server had broken HTTP.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check httpx==0.28.1
"$folder/venv/bin/python" - <<'PYTHON'
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

import httpx

LOCATIONS = ["https://127.0.0.1/a", "https://0177.0.0.1/a", "https://my_caf\u00e9.example.org/a"]


class Leads(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(302)
        location = LOCATIONS[int(self.path[1:])]
        self.send_header("Location", location.encode().decode("latin-1"))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


print("httpx", httpx.__version__)
server = HTTPServer(("127.0.0.1", 0), Leads)
threading.Thread(target=server.serve_forever, daemon=True).start()
outcomes = []
for number, location in enumerate(LOCATIONS):
    url = f"http://127.0.0.1:{server.server_port}/{number}"
    try:
        answer = httpx.get(url, follow_redirects=False, trust_env=False)
        outcomes.append(str(answer.status_code))
    except httpx.RemoteProtocolError as error:
        outcomes.append("RemoteProtocolError")
    print(f"Location: {location} (urllib: {urlsplit(location).hostname}): {outcomes[-1]}")
assert outcomes == ["302", "RemoteProtocolError", "RemoteProtocolError"], outcomes
PYTHON
