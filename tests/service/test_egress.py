"""What a client may have called: https, and no address that is not public."""

from __future__ import annotations

import ipaddress

import pytest
from redis import Redis

from jobs.settings import Settings
from service.egress import BadTarget, Target, is_public
from tests.service.harness import problem, serving, upload
from tests.service.receiver import PNG, SECRET


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/",
        "ftp://example.org/",
        "https://",
        "https:///path",
        "example.org",
        "https://user@example.org/",
        "https://user:word@example.org/",
        "https://example.org/#there",
        "https://example.org\\@evil.example/",
        "https://exa mple.org/",
        "https://example.org:99999/",
        "https://example.org:x/",
        "https://localhost/",
        "https://internal/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest/meta-data/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://b\u00fccher.example/",
        "https://example.org/" + "x" * 2000,
        "https://example.org/\r\nX: y",
        "https://[",
        "https://.example.org/",
    ],
)
def test_an_address_that_no_webhook_can_have_is_no_target(url: str) -> None:
    with pytest.raises(BadTarget):
        Target.parse(url, allow_private=False)


@pytest.mark.parametrize(
    "url", ["https://example.org", "https://example.org:8443/a?b=c", "https://93.184.216.34/x"]
)
def test_a_public_https_address_is_taken(url: str) -> None:
    target = Target.parse(url, allow_private=False)
    assert target.authority in url
    assert target.path.startswith("/")


def test_a_bad_address_is_refused_with_the_upload(settings: Settings, redis: Redis) -> None:
    with serving(settings.model_copy(update={"webhook_secret": SECRET})) as client:
        answer = upload(client, PNG, webhook_url="https://169.254.169.254/latest/meta-data/")
    body = problem(answer, 422, "invalid-parameters")
    assert [error["field"] for error in body["errors"]] == ["webhook_url"]
    assert redis.keys("stablesr:job:*") == []


def test_without_a_secret_nothing_could_be_signed(settings: Settings) -> None:
    with serving(settings) as client:
        answer = upload(client, PNG, webhook_url="https://example.org/")
    body = problem(answer, 422, "invalid-parameters")
    assert "API key" in body["detail"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700:4700::1111", True),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("127.255.255.254", False),
        ("169.254.169.254", False),
        ("172.31.0.1", False),
        ("192.0.0.1", False),
        ("192.168.1.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fc00::1", False),
        ("fe80::1", False),
        ("ff02::1", False),
        ("2001:db8::1", False),
        ("::ffff:192.168.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::93.184.216.34", True),
        ("64:ff9b:1::10.0.0.1", False),
        ("64:ff9b::ffff:1", False),
        ("64:ff9b:1::93.184.216.34", False),
        ("64:ff9b:1:a00:0:100::", False),
        ("::ffff:100.64.0.1", False),
        ("::ffff:0:93.184.216.34", False),
        ("::93.184.216.34", False),
        ("::10.0.0.1", False),
        ("2002:7f00:1::", False),
        ("2002:a00:1::1", False),
        ("2002:5db8:d822::1", True),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("2001:1::1", False),
        ("2001:2::1", False),
        ("2001:4:112::1", False),
        ("2001:10::1", False),
        ("2001:20::1", False),
        ("2001:1ff:ffff::1", False),
        ("2001:200::1", True),
        ("3fff::1", False),
        ("3fff:fff::1", False),
        ("fec0::1", False),
        ("feff::1", False),
        ("fdff::1", False),
        ("100::1", False),
        ("4000::1", False),
        ("5f00::1", False),
        ("0.1.2.3", False),
        ("192.0.0.9", False),
        ("192.0.0.170", False),
        ("192.0.2.1", False),
        ("192.88.99.1", False),
        ("198.19.255.255", False),
        ("198.51.100.1", False),
        ("203.0.113.1", False),
        ("100.127.255.255", False),
        ("100.128.0.1", True),
        ("172.32.0.1", True),
        ("239.255.255.250", False),
        ("240.0.0.1", False),
    ],
)
def test_an_address_is_public_whatever_it_is_wrapped_in(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_nonsense_is_refused_as_a_target() -> None:
    with pytest.raises(BadTarget):
        Target.parse("https://\x00/", allow_private=True)
