"""Bodies in JSON that mean no good, by name."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from tests.hostile.files import PNG
from tests.service.pictures import bomb


def _json(**fields: object) -> tuple[str, bytes]:
    return JSON, json.dumps(fields).encode()


def _address(url: str) -> tuple[str, bytes]:
    return _json(image_url=url)


JSON = "application/json"
TEXT = base64.b64encode(PNG).decode()
DOCUMENTS: Mapping[str, tuple[str, bytes]] = {
    "json of no image": _json(image="AAAA"),
    "a bomb in base64": _json(image=base64.b64encode(bomb(20_000, 20_000)).decode()),
    "a picture that is cut, in base64": _json(image=TEXT[: len(TEXT) // 8 * 4]),
    "base64 without its padding": _json(image=TEXT.rstrip("=")[:-1]),
    "base64 with padding in the middle": _json(image="AAA=" + TEXT),
    "base64 of another alphabet": _json(image=TEXT.replace("/", "_").replace("+", "-") + "_-=="),
    "base64 with a line's end": _json(image=TEXT[:76] + "\r\n" + TEXT[76:]),
    "base64 with a null letter": _json(image=TEXT[:8] + "\0" + TEXT[8:]),
    "base64 of padding alone": _json(image="=" * 100_000),
    "base64 twice": _json(image=base64.b64encode(TEXT.encode()).decode()),
    "base64 above the limit": _json(image="A" * 2_700_000),
    "a data uri of commas": _json(image="data:" + "," * 100_000),
    "a data uri without base64": _json(image="data:image/svg+xml,<svg onload=alert(1)/>"),
    "a data uri in a data uri": _json(image="data:image/png;base64,data:image/png;base64," + TEXT),
    "json nested without an end": (JSON, b'{"image":' + b"[" * 60_000),
    "json objects nested": (JSON, b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "json with a name twice": (JSON, b'{"image": "' + TEXT.encode() + b'", "image": "AAAA"}'),
    "json of 100000 names": (JSON, json.dumps({str(n): n for n in range(100_000)}).encode()),
    "json of a number of 60000 digits": (JSON, b'{"seed": ' + b"9" * 60_000 + b"}"),
    "json of spaces": (JSON, b" " * 2_000_000),
    "json in utf-16": (JSON, json.dumps({"image": TEXT}).encode("utf-16")),
    "json with half a letter": (JSON, b'{"image": "\xc3"}'),
    "json with a lone surrogate": (JSON, b'{"image": "\\ud800", "prompt": "\\udfff"}'),
    "json with a proto": _json(image=TEXT, __proto__={"scale": 2}),
    "json with text for a number": _json(image=TEXT, scale="2"),
    "json cut in its image": (JSON, json.dumps({"image": TEXT}).encode()[:-20]),
    "an address of this machine": _address("https://127.0.0.1/a.png"),
    "an address of a cloud's secrets": _address("https://169.254.169.254/latest/meta-data/"),
    "an address in the old decimal form": _address("https://2130706433/"),
    "an address without tls": _address("http://example.org/a.png"),
    "an address of a file": _address("file:///etc/passwd"),
    "an address with a password": _address("https://user:word@example.org/"),
    "an address of 20000 letters": _address("https://example.org/" + "a" * 20_000),
    "an address with a line's end": _address("https://example.org/\r\nHost: internal"),
}
