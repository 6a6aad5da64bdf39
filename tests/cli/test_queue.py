"""`stablesr queue` as an operator types it."""

from __future__ import annotations

from redis import Redis
from typer.testing import CliRunner, Result

from cli.main import app
from cli.processes import free_port
from jobs.fair_queue import dispatch


def queue(*arguments: str, url: str) -> Result:
    return CliRunner().invoke(app, ["queue", *arguments], env={"STABLESR_REDIS_URL": url})


def test_a_preset_is_paused_and_goes_on(redis_url: str) -> None:
    with Redis.from_url(redis_url) as connection:
        for _ in range(2):
            said = queue("pause", "tiny", url=redis_url)
            assert (said.exit_code, "tiny is paused" in said.stderr) == (0, True)
            assert not dispatch(connection, "tiny")
        assert dispatch(connection, "stablesr-512")
        for _ in range(2):
            assert queue("resume", "tiny", url=redis_url).exit_code == 0
            assert dispatch(connection, "tiny")


def test_an_unknown_preset_is_refused_with_the_known_ones(redis_url: str) -> None:
    said = queue("pause", "huge", url=redis_url)
    assert said.exit_code == 2
    assert "tiny" in said.stderr


def test_without_redis_the_command_says_so() -> None:
    port = free_port()
    said = queue("resume", "tiny", url=f"redis://127.0.0.1:{port}/0")
    assert (said.exit_code, str(port) in said.stderr) == (4, True)
