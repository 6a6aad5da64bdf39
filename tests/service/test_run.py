"""The service as a process: where it may listen, how it ends, what it logs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.settings import Settings
from service.errors import OpenAddress
from service.run import check_address

ROOT = Path(__file__).parents[2]
SERVE = "from jobs.settings import Settings; from service.run import main; main(Settings())"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_leave(host: str) -> None:
    check_address(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_an_address_that_others_reach_needs_leave(host: str) -> None:
    with pytest.raises(OpenAddress, match="STABLESR_ALLOW_OPEN"):
        check_address(Settings(host=host))
    check_address(Settings(host=host, allow_open=True))
    check_address(Settings(host=host, require_key=True))


def test_the_process_serves_logs_json_and_ends_in_order(tmp_path: Path, redis_url: str) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("STABLESR_")},
        "STABLESR_REDIS_URL": redis_url,
        "STABLESR_BLOB_ROOT": str(tmp_path),
        "STABLESR_PORT": "0",
    }
    lines = []
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVE],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(json.loads(line))
            if "running on" in lines[-1]["event"]:
                process.send_signal(signal.SIGTERM)
    # uvicorn shuts down in order and then ends by the signal that it was sent.
    assert process.returncode == -signal.SIGTERM
    assert "Finished server process" in lines[-1]["event"]
    assert any("http://127.0.0.1:" in line["event"] for line in lines), lines
    assert all({"level", "timestamp", "logger"} <= set(line) for line in lines)


def test_a_warning_is_a_line_like_any_other() -> None:
    code = (
        "from jobs.logs import configure_logging; from jobs.settings import Settings; "
        "import warnings; configure_logging(Settings()); "
        "warnings.warn('an odd file', stacklevel=1)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stderr
    line = json.loads(said)
    assert "an odd file" in line["event"]
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")


def test_the_service_needs_of_the_models_only_what_its_image_holds() -> None:
    code = "import sys, cli.main, service.app; print(*filter(lambda m: 'models' in m, sys.modules))"
    modules = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    ours = [name for name in modules if name.startswith("models.")]
    assert ours
    for name in ours:
        assert f" {name.replace('.', '/')}.py" in (ROOT / "docker/service.Dockerfile").read_text()
