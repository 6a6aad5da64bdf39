"""Settings come from the environment, and a wrong one is said in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import InvalidSettings
from jobs.settings import Settings


def test_the_defaults_suit_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    settings = Settings()
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.blob_root == Path("/var/state/stablesr/blobs")
    assert settings.host == "127.0.0.1"
    assert not settings.allow_open


def test_the_environment_sets_and_a_name_given_in_code_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STABLESR_PORT", "9000")
    monkeypatch.setenv("STABLESR_SLOTS", "4")
    settings = Settings(slots=3)
    assert settings.port == 9000
    assert settings.slots == 3


def test_a_variable_that_is_set_to_nothing_counts_as_not_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PORT", "ACCEPT_LICENCE", "FALLBACK"):
        monkeypatch.setenv(f"STABLESR_{name}", "")
    settings = Settings()
    assert settings.port == 8000
    assert settings.accept_licence is None


def test_a_relative_blob_root_becomes_absolute() -> None:
    assert Settings(blob_root="blobs").blob_root == Path.cwd() / "blobs"


def test_a_log_level_is_taken_in_any_case() -> None:
    assert Settings(log_level="debug").log_level == "DEBUG"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"port": 70000}, ["STABLESR_PORT", "70000", "65535"]),
        ({"max_queued": "many"}, ["STABLESR_MAX_QUEUED", "many", "integer"]),
        ({"preset": "huge"}, ["STABLESR_PRESET", "huge", "stablesr-512"]),
        ({"blob_url": "ftp://x/y"}, ["STABLESR_BLOB_URL", "s3://"]),
        ({"log_format": "xml"}, ["STABLESR_LOG_FORMAT", "xml", "json"]),
        ({"heartbeat_s": 40}, ["STABLESR_WORKER_TTL_S", "60", "heartbeat_s", "40"]),
        ({"prot": 1}, ["STABLESR_PROT is not a setting"]),
        ({"port": -1, "slots": 0}, ["STABLESR_PORT", "STABLESR_SLOTS"]),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(
    values: dict[str, object], said: list[str]
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        Settings(**values)
    sentence = caught.value.detail
    assert all(part in sentence for part in said), sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")


def test_a_wrong_value_in_the_environment_is_said_the_same_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STABLESR_PORT", "http")
    with pytest.raises(InvalidSettings, match="STABLESR_PORT is wrong"):
        Settings()


def test_a_setting_that_went_away_is_refused_with_what_replaces_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STABLESR_FALLBACK", "tiny")
    with pytest.raises(InvalidSettings, match=r"STABLESR_FALLBACK .*STABLESR_PRESET to tiny"):
        Settings()


def test_a_wrong_redis_url_does_not_show_its_password() -> None:
    with pytest.raises(InvalidSettings, match="redis://") as caught:
        Settings(redis_url="http://:geheim@example.org")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GB", 6 * 10**9), ("1.5 GiB", 3 * 2**29), ("500mb", 500 * 10**6), ("123", 123), ("7B", 7)],
)
def test_an_amount_of_memory_is_taken_with_its_unit(text: str, size: int) -> None:
    assert Settings(memory_limit=text).memory_limit == size


@pytest.mark.parametrize("text", ["six", "6 G B", "-1GB", "6PB", ""])
def test_what_is_no_amount_of_memory_is_refused_with_one(text: str) -> None:
    with pytest.raises(InvalidSettings, match=r"STABLESR_MEMORY_LIMIT .*such as 6GB"):
        Settings(memory_limit=text)


def test_a_variable_that_was_a_setting_is_refused_with_what_replaces_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STABLESR_REUSE_EVERY", "2")
    with pytest.raises(InvalidSettings, match=r"STABLESR_REUSE_EVERY is not .*fewer steps"):
        Settings()
    # As compose files do with what is not set.
    monkeypatch.setenv("STABLESR_REUSE_EVERY", "")
    Settings()
