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
    assert settings.access == "auto"


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
        ({"log_level": "loud"}, ["STABLESR_LOG_LEVEL", "LOUD", "DEBUG"]),
        ({"prot": 1}, ["STABLESR_PROT is not a setting"]),
        ({"port": -1, "slots": 0}, ["STABLESR_PORT", "STABLESR_SLOTS"]),
        ({"retry_pauses_s": "0;9"}, ["STABLESR_RETRY_PAUSES_S", "0;9", "seconds, comma-separated"]),
        ({"webhook_secret": "whsec_" + 31 * "a" + "="}, ["STABLESR_WEBHOOK_SECRET", "24 bytes"]),
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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FALLBACK", "set STABLESR_PRESET to tiny"),
        ("REUSE_EVERY", "ask for fewer steps"),
        ("DEVICES", "name them in STABLESR_DEVICE, comma-separated"),
        ("MAX_QUEUED_EACH", "a tenth of STABLESR_MAX_QUEUED"),
    ],
)
def test_a_setting_that_went_away_is_refused_with_what_replaces_it(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"STABLESR_{name}", "2")
    with pytest.raises(
        InvalidSettings, match=rf"STABLESR_{name} is not a setting any more: .*{said}"
    ):
        Settings()
    # As compose files do with what is not set.
    monkeypatch.setenv(f"STABLESR_{name}", "")
    Settings()


def test_what_is_derived_follows_the_setting_it_is_derived_from() -> None:
    settings = Settings()
    assert (settings.max_streams, settings.max_transfers, settings.max_each) == (500, 100, 20)
    assert (settings.max_queued_each, settings.reads_per_minute) == (100, 1200)
    assert (settings.upload_timeout_s, settings.step_timeout_s) == (300, 300)
    assert (settings.heartbeat_s, settings.maintenance_s) == (5, 20)
    assert settings.retry_pauses == [0, 10]
    for ttl_s, times in {2: (0.5, 1, 1), 20: (5, 10, 10), 60: (5, 50, 10)}.items():
        one = Settings(worker_ttl_s=ttl_s)
        assert (one.heartbeat_s, one.lease_s, one.patience_s) == times
    assert Settings(uploads_per_minute=0).reads_per_minute == 0
    assert Settings(max_upload_bytes=100 * 2**20).upload_timeout_s == 600
    small = Settings(max_connections=1, max_queued=1, max_upload_bytes=1)
    assert (small.max_streams, small.max_transfers, small.max_each) == (1, 1, 1)
    assert (small.max_queued_each, small.upload_timeout_s) == (10, 300)


def test_the_documents_table_has_every_setting_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `STABLESR_")]
    defaults = {name.strip("|` "): default for name, default, _ in rows}
    # Read by the models themselves, which do not know these settings.
    del defaults["STABLESR_WEIGHTS"]
    assert list(defaults) == [f"STABLESR_{name.upper()}" for name in Settings.model_fields]
    for name, field in Settings.model_fields.items():
        shown = defaults[f"STABLESR_{name.upper()}"]
        if field.default is None or field.default == "":
            assert shown.startswith(("unset", "planned")), name
        elif not field.default_factory:
            value = str(field.default)
            assert shown.split()[0].strip("`,:") == (
                value.lower() if isinstance(field.default, bool) else value
            ), name


@pytest.mark.parametrize(
    "origins", ["example.org", "https://", "https://a.example/", "https://a.example,,", "HTTPS://A"]
)
def test_origins_are_exact(origins: str) -> None:
    with pytest.raises(InvalidSettings, match="CORS_ORIGINS is wrong: it must be origins such as"):
        Settings(cors_origins=origins)


def test_several_origins_may_be_named() -> None:
    assert Settings(cors_origins="https://a.example, http://[::1]:80").allowed_origins == [
        "https://a.example",
        "http://[::1]:80",
    ]


@pytest.mark.parametrize(
    ("query", "seconds"), [("", 0), ("?links=60", 60), ("?links=604800", 604800)]
)
def test_links_to_results_are_asked_for_in_the_stores_url(query: str, seconds: int) -> None:
    assert Settings(blob_url=f"s3://bucket/prefix{query}").links_s == seconds


@pytest.mark.parametrize("query", ["?links=604801", "?links=-1", "?links=", "?link=60", "?a=1"])
def test_a_store_takes_no_other_member(query: str) -> None:
    with pytest.raises(InvalidSettings, match="BLOB_URL is wrong: only links=SECONDS"):
        Settings(blob_url=f"s3://bucket{query}")
