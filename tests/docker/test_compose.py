"""What the compose file gives each container, and the checks of health that it asks for."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.processes import find_redis_server, free_port
from jobs.connection import connect
from jobs.settings import Settings
from jobs.workers import WorkerInfo, Workers
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
VARIABLE = re.compile(r"\$\{(\w+)(?::?-((?:[^{}]|\{[^{}]*\})*))?\}")
"""As Compose has it: ${NAME} or ${NAME:-default}, which may hold another."""


def filled(text: str, **values: str) -> str:
    """A text of the file under these variables, as Compose reads it."""
    while VARIABLE.search(text):
        text = VARIABLE.sub(lambda match: values.get(match[1]) or match[2] or "", text)
    return text


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_bounded_and_can_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"]
    assert service["mem_limit"]
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    # The images of the project have a user of their own; the others name one.
    assert service.get("user") or service["image"].startswith("stablesr-")
    assert "healthcheck" in service or service["restart"] == "no"


@pytest.mark.parametrize("given", [{}, {"STABLESR_REDIS_PASSWORD": "a1b2"}])
def test_redis_asks_for_the_password_that_its_clients_have(given: dict[str, str]) -> None:
    redis = SERVICES["redis"]
    password = re.findall(r"--requirepass (\S+)", filled(redis["command"], **given))
    assert password == [filled(redis["environment"]["REDISCLI_AUTH"], **given)]
    for name in ("service", "worker"):
        url = filled(SERVICES[name]["environment"]["STABLESR_REDIS_URL"], **given)
        assert url == f"redis://:{password[0]}@redis:6379/0"
    own = {**given, "STABLESR_REDIS_URL": "rediss://elsewhere:6380/1"}
    assert (
        filled(SERVICES["worker"]["environment"]["STABLESR_REDIS_URL"], **own)
        == own["STABLESR_REDIS_URL"]
    )


def test_redis_takes_its_command_line(tmp_path: Path) -> None:
    port = free_port()
    program, *options = filled(SERVICES["redis"]["command"]).split()
    assert program == "redis-server"
    own = ["--port", str(port), "--dir", str(tmp_path)]
    with subprocess.Popen(
        [find_redis_server(), *options, *own], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ready = any("Ready to accept connections" in line for line in process.stdout)
        try:
            url = filled(SERVICES["worker"]["environment"]["STABLESR_REDIS_URL"])
            settings = Settings(redis_url=url.replace("redis:6379", f"127.0.0.1:{port}"))
            with connect(settings) as connection:
                assert ready
                assert connection.ping()
        finally:
            process.terminate()


def test_a_secret_reaches_only_who_needs_it() -> None:
    assert SERVICES["worker"]["environment"]["STABLESR_WEBHOOK_SECRET"] == ""
    assert {name for name in SERVICES if "HF_TOKEN" in str(SERVICES[name]["environment"])} == {
        "weights"
    }
    with_settings = {name for name in SERVICES if "env_file" in SERVICES[name]}
    assert with_settings == {"service", "worker"}


def test_a_worker_is_healthy_while_its_heartbeat_is_in_redis(
    redis_server: RedisServer, redis_url: str
) -> None:
    kind, _, *arguments = SERVICES["worker"]["healthcheck"]["test"]
    assert kind == "CMD"

    def is_healthy() -> bool:
        env = {**os.environ, "STABLESR_REDIS_URL": redis_url}
        return subprocess.run([sys.executable, *arguments], env=env, check=False).returncode == 0

    with connect(Settings(redis_url=redis_url)) as connection:
        register = Workers(connection, ttl_s=60)
        other = WorkerInfo(name="other", preset="tiny", device="cpu", hostname="elsewhere")
        register.heartbeat(other)
        assert not is_healthy()
        register.heartbeat(
            other.model_copy(update={"name": "this", "hostname": socket.gethostname()})
        )
        assert is_healthy()
        register.unregister("this")
        assert not is_healthy()
    with redis_server.hanging():
        assert not is_healthy()


def test_the_settings_of_each_container_are_settings() -> None:
    for service in SERVICES.values():
        for name in service["environment"]:
            if name.startswith("STABLESR_"):
                assert name.removeprefix("STABLESR_").lower() in Settings.model_fields
