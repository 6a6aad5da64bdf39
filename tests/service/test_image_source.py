"""`image_url`: fetched within an upload's limits, from public addresses, for who waits for it."""

from __future__ import annotations

import base64
import io
import ipaddress
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

import anyio
import httpx
import pytest
from redis import Redis

from jobs.settings import Settings
from jobs.store import BlobStore, input_key
from service.egress import Egress, is_public
from service.image_source import MAX_REDIRECTS, fetch
from service.problems import HTTPError
from tests.redis_server import RedisServer
from tests.service.harness import Leftovers, eventually, plain_client, problem, serving, upload
from tests.service.receiver import HOST, LOCAL, PNG, SECRET, Names, Receiver

PUBLIC = ipaddress.ip_address("93.184.216.34")


@pytest.fixture(scope="module")
def service(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, httpx.Client]]:
    """No server of the file's own: each test has one with its settings."""
    blobs = tmp_path_factory.mktemp("store") / "blobs"
    with plain_client() as client:
        yield (
            Settings(redis_url=redis_server.url, blob_root=blobs, max_upload_bytes=2_000_000),
            client,
        )


@pytest.fixture
def fetching(
    settings: Settings, receiver: Receiver, leftovers: Leftovers
) -> Iterator[httpx.Client]:
    """A service that may call this machine, in a closed network."""
    with serving(settings.model_copy(update={"egress": "any"})) as client:
        yield client


def by_url(client: httpx.Client, url: str, key: str = "", **fields: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post("/upscale", json={"image_url": url, **fields}, headers=headers)


def test_an_image_is_fetched_by_its_address(
    fetching: httpx.Client, receiver: Receiver, settings: Settings
) -> None:
    url = receiver.show("/photos/a%20cat.png?of=1", 200, PNG)
    for answer in (
        by_url(fetching, url, scale=2),
        fetching.post("/upscale", files={"image_url": (None, url), "scale": (None, "2")}),
        # As a browser sends a form whose input for files is empty.
        fetching.post(
            "/upscale",
            content="".join(
                f"--x\r\nContent-Disposition: form-data; name={field}\r\n\r\n{value}\r\n"
                for field, value in (
                    ('"image"; filename=""', ""),
                    ('"image_url"', url),
                    ('"scale"', "2"),
                )
            )
            + "--x--\r\n",
            headers={"Content-Type": "multipart/form-data; boundary=x"},
        ),
    ):
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert BlobStore.open(settings).get(input_key(job["id"])) == PNG
        assert (job["input"]["filename"], job["parameters"]["scale"]) == ("a cat.png", 2)


def test_nothing_of_the_client_goes_with_the_request(
    fetching: httpx.Client, receiver: Receiver
) -> None:
    url = receiver.show("/a.png", 200, PNG, Set_Cookie="a=b")
    private = {"Cookie": "c=d", "Referer": "https://x.example/", "X-Request-ID": "mine"}
    for _ in range(2):
        answer = fetching.post("/upscale", json={"image_url": url}, headers=private)
        assert answer.status_code == 202
    receiver.next()
    delivery = receiver.next()
    assert {name.lower() for name in delivery.headers} == {
        "accept",
        "accept-encoding",
        "connection",
        "host",
        "user-agent",
    }
    assert delivery.headers["Accept-Encoding"] == "identity"
    assert delivery.headers["Host"] == f"{HOST}:{receiver.port}"
    assert delivery.server_name == HOST


def test_a_redirect_is_followed_also_by_a_relative_path(
    fetching: httpx.Client, receiver: Receiver
) -> None:
    receiver.show("/b/c.png", 200, PNG)
    receiver.show("/b/old", 302, Location="c.png#there")
    url = receiver.show("/a", 308, Location=receiver.address("/b/old"))
    assert by_url(fetching, url).json()["input"]["filename"] == "c.png"


def test_a_data_uri_is_an_address_too(fetching: httpx.Client) -> None:
    uri = "data:image/png;base64," + base64.b64encode(PNG).decode()
    for answer in (
        by_url(fetching, uri),
        fetching.post("/upscale", files={"image_url": (None, uri)}),
    ):
        assert answer.status_code == 202, answer.text


def chunked(*pieces: bytes, then: Callable[[], object] = bool) -> Callable[..., None]:
    """A page without a length."""

    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "image/png")
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(piece)
        handler.wfile.flush()
        then()

    return page


@pytest.mark.parametrize(
    ("page", "status", "slug", "said"),
    [
        ((404, PNG, {}), 422, "image-url-failed", "answers 404"),
        ((206, PNG, {}), 422, "image-url-failed", "answers 206"),
        ((304, b"", {}), 422, "image-url-failed", "answers 304"),
        ((200, PNG, {"Content_Type": "text/html"}), 422, "image-url-failed", "'text/html'"),
        ((200, PNG, {"Content_Encoding": "gzip"}), 422, "image-url-failed", "it is 'gzip'"),
        ((200, PNG, {"Content_Length": "2000001"}), 413, "upload-too-large", "at the URL"),
        ((200, PNG[:-20], {"Content_Length": str(len(PNG))}), 422, "image-url-failed", "failed"),
        ((200, PNG[:-20], {}), 422, "image-truncated", "cut"),
        ((200, b"<html>", {"Content_Type": "image/png"}), 422, "image-format-unsupported", ""),
        ((200, b"", {}), 422, "image-empty", "0 bytes"),
        ((302, b"", {"Location": "http://a.example/"}), 422, "image-url-refused", "https://"),
        ((302, b"", {"Location": "https://u:p@a.example/"}), 422, "image-url-refused", "password"),
        ((302, b"", {"Location": "https://["}), 422, "image-url-refused", "no URL"),
        ((302, b"", {"Location": "file:///etc/passwd"}), 422, "image-url-refused", "https://"),
        ((302, b"", {"Location": "/page"}), 422, "image-url-failed", "more than 3 times"),
        ((302, b"", {}), 422, "image-url-failed", "more than 3 times"),
    ],
)
def test_what_is_no_image_within_the_limits_is_refused(
    fetching: httpx.Client,
    receiver: Receiver,
    leftovers: Leftovers,
    page: tuple[int, bytes, dict[str, str]],
    status: int,
    slug: str,
    said: str,
) -> None:
    code, body, headers = page
    answer = by_url(fetching, receiver.show("/page", code, body, **headers))
    assert said in problem(answer, status, slug)["detail"]
    assert leftovers.found() == []
    if slug == "image-url-failed" and code == 302:
        assert receiver.connections == MAX_REDIRECTS + 1


def test_a_body_without_an_end_is_cut_at_the_limit(
    fetching: httpx.Client, receiver: Receiver, leftovers: Leftovers
) -> None:
    receiver.pages["/endless"] = chunked(*[bytes(100_000)] * 1000)
    problem(by_url(fetching, receiver.address("/endless")), 413, "upload-too-large")
    assert leftovers.found() == []


@pytest.mark.parametrize("limit", ["FETCH_S", "STALLS"])
def test_a_server_that_is_slow_is_given_up(
    fetching: httpx.Client,
    receiver: Receiver,
    leftovers: Leftovers,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
) -> None:
    value = 0.3 if limit == "FETCH_S" else httpx.Timeout(0.3)
    monkeypatch.setattr(f"service.image_source.{limit}", value)
    release = threading.Event()
    receiver.pages["/slow"] = chunked(PNG[:50], then=lambda: release.wait(10))
    try:
        problem(by_url(fetching, receiver.address("/slow")), 422, "image-url-failed")
    finally:
        release.set()
    assert leftovers.found() == []


def test_a_server_that_is_not_there_or_is_another_is_told(
    fetching: httpx.Client, receiver: Receiver
) -> None:
    for url in ("https://hooks.example.org:1/", f"https://other.example.org:{receiver.port}/"):
        body = problem(by_url(fetching, url), 422, "image-url-failed")
        assert body["detail"].startswith("image_url cannot be fetched: the connection failed")
    assert receiver.got.empty()


def test_a_wrong_field_is_told_before_anything_is_fetched(
    fetching: httpx.Client, receiver: Receiver
) -> None:
    url = receiver.show("/a.png", 200, PNG)
    problem(by_url(fetching, url, scale=99), 422, "invalid-parameters")
    problem(by_url(fetching, url, image="AAAA"), 422, "invalid-parameters")
    problem(by_url(fetching, "example.org/a.png"), 422, "image-url-refused")
    assert receiver.connections == 0


def test_a_repetition_gets_the_job_and_fetches_nothing(
    fetching: httpx.Client, receiver: Receiver
) -> None:
    url = receiver.show("/a.png", 404)
    problem(by_url(fetching, url, "k"), 422, "image-url-failed")
    receiver.show("/a.png", 200, PNG)
    first = by_url(fetching, url, "k", scale=2)
    assert first.status_code == 202
    again = by_url(fetching, url, "k", scale=2)
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    problem(by_url(fetching, url, "k", scale=3), 422, "idempotency-mismatch")
    problem(by_url(fetching, f"{url}?", "k", scale=2), 422, "idempotency-mismatch")
    assert receiver.connections == 2


def test_fetches_are_counted_apart_and_given_back(settings: Settings, receiver: Receiver) -> None:
    """One transfer and one fetch of a client at once: a slow address holds no upload up."""
    release = threading.Event()
    receiver.pages["/slow"] = chunked(PNG, then=lambda: release.wait(10))
    url = receiver.show("/a.png", 200, PNG)
    narrow = settings.model_copy(update={"egress": "any", "max_connections": 40})
    with serving(narrow) as client, plain_client(client.base_url) as other:
        with ThreadPoolExecutor(1) as threads:
            slow = threads.submit(by_url, other, receiver.address("/slow"))
            receiver.next()
            assert upload(client, PNG).status_code == 202
            assert problem(by_url(client, url), 429, "too-many-fetches")["limit"] == 1
            release.set()
            assert slow.result(timeout=10).status_code == 202
        assert by_url(client, url).status_code == 202


def test_a_client_that_leaves_ends_its_fetch(
    settings: Settings, receiver: Receiver, leftovers: Leftovers
) -> None:
    release = threading.Event()
    receiver.pages["/slow"] = chunked(PNG[:50], then=lambda: release.wait(20))
    narrow = settings.model_copy(update={"egress": "any", "max_connections": 40})
    with serving(narrow) as client:
        with (
            plain_client(client.base_url, timeout=0.5) as impatient,
            pytest.raises(httpx.ReadTimeout),
        ):
            by_url(impatient, receiver.address("/slow"))
        eventually(lambda: leftovers.found() == [])
        url = receiver.show("/a.png", 404)
        eventually(lambda: by_url(client, url).status_code == 422)
    release.set()


def test_a_server_may_call_no_addresses_at_all(
    settings: Settings, receiver: Receiver, redis: Redis
) -> None:
    off = settings.model_copy(update={"egress": "none", "webhook_secret": SECRET})
    with serving(off) as client:
        answer = by_url(client, receiver.show("/a.png", 200, PNG))
        assert "this server calls no" in problem(answer, 422, "image-url-refused")["detail"]
        answer = upload(client, PNG, webhook_url=receiver.url)
        assert "this server calls no" in problem(answer, 422, "invalid-parameters")["detail"]
    assert receiver.connections == 0


# Each must lead to no connection: as the address in the URL, as what a name stands for, and as
# where a public server leads on.
PRIVATE = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.254", "127.0.0.1", "127.1.1.1"),
    *("169.254.169.254", "172.16.0.1", "172.31.255.254", "192.0.0.1", "192.0.0.170", "192.0.2.1"),
    *("192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1"),
    *("239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fc00::1", "fd12:3456::1", "fe80::1", "fec0::1", "ff02::1", "100::1"),
    *("2001:db8::1", "2001::1", "2001:10::1", "2001:20::1", "3fff::1", "4000::1", "5f00::1"),
    # IPv4 within: mapped, compatible, translated, NAT64 (local, too), 6to4, Teredo.
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1"),
    *("::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::10.0.0.1"),
    *("2002:7f00:1::", "2002:a00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
]
# Hosts that are read as an address by some resolvers, and names of no public domain.
HOSTS = [
    *("2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1"),
    *(
        "0",
        "localhost",
        "localhost.",
        "internal",
        "metadata",
        "a.1",
        "127.0.0.1.",
        "\uff11\uff12\uff17.0.0.1",
    ),
    *("fe80::1%25eth0", "[::1%25lo]", "example.org@127.0.0.1", "127.0.0.1#@example.org"),
    *("127.0.0.1\\@example.org", "ex%61mple.org", "%31%32%37.0.0.1", "-a.example", "a..example"),
]
OTHERS = ["http://example.org/", "ftp://example.org/", "file:///etc/passwd", "//example.org/"]
OTHERS += ["gopher://example.org:70/", "https:example.org", "https:/example.org", "unix:///run/x"]


def in_url(address: str) -> str:
    return f"https://[{address}]/" if ":" in address else f"https://{address}/"


@pytest.fixture(scope="module")
def egress() -> Egress:
    return Egress(Settings())


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts that anything tries to connect to; each try fails."""
    hosts: list[str] = []

    async def connect(remote_host: str, *_: object, **__: object) -> None:
        hosts.append(str(remote_host))
        raise OSError("not here")

    monkeypatch.setattr("anyio.connect_tcp", connect)
    return hosts


def refusal(egress: Egress, url: str) -> str:
    with pytest.raises(HTTPError) as raised:
        anyio.run(partial(fetch, egress, url, io.BytesIO(), 1000, "image_url"))
    assert raised.value.detail.startswith("image_url ")
    return raised.value.type


def test_the_table_is_long_enough() -> None:
    assert len({*PRIVATE, *HOSTS, *OTHERS}) >= 70


@pytest.mark.parametrize(
    "url", [*map(in_url, PRIVATE), *(f"https://{host}/" for host in HOSTS), *OTHERS]
)
def test_no_private_address_is_connected_to(
    egress: Egress, connected: list[str], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    # Whatever the name, this resolver would find a public address for it.
    names = Names([PUBLIC])
    monkeypatch.setattr("service.egress.lookup", names)
    assert refusal(egress, url) == "image-url-refused"
    assert (connected, names.asked) == ([], [])


@pytest.mark.parametrize("address", PRIVATE)
def test_no_name_leads_to_a_private_address(
    egress: Egress, connected: list[str], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    private = ipaddress.ip_address(address)
    for answer in ([private], [PUBLIC, private]):
        monkeypatch.setattr("service.egress.lookup", Names(answer))
        assert refusal(egress, "https://a.example.org/") == "image-url-refused"
    assert connected == []


def test_a_name_that_changes_leads_to_the_address_that_was_judged(
    egress: Egress, connected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.egress.lookup", Names([PUBLIC], [LOCAL]))
    assert refusal(egress, "https://a.example.org/") == "image-url-failed"
    assert connected == [str(PUBLIC)]


def test_no_redirect_leads_to_a_private_address(
    settings: Settings,
    receiver: Receiver,
    leftovers: Leftovers,
    names: Names,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The receiver stands for a public server, at an address that counts as one here."""
    monkeypatch.setattr("service.egress.is_public", lambda a: a == LOCAL or is_public(a))
    # It counts so too where it is wrapped.
    urls = [in_url(a) for a in PRIVATE if "127.0.0.1" not in a and "7f00:1" not in a]
    urls += [f"https://{host}/" for host in HOSTS if not host.startswith("127.0.0.1")] + OTHERS[:3]
    many = settings.model_copy(update={"uploads_per_minute": 0})
    with serving(many) as client:
        for number, url in enumerate(urls):
            start = receiver.show("/start", 302, Location=url.encode().decode("latin-1"))
            # httpx does not even read an answer that leads to some of these hosts.
            is_read = not url.startswith(("https://0177.", "https://\uff11", "https://fe80:"))
            slug = "image-url-refused" if is_read else "image-url-failed"
            problem(by_url(client, start), 422, slug)
            # One for the start, and none for where it leads.
            assert receiver.connections == number + 1
    assert set(names.asked) == {HOST}
    assert leftovers.found() == []


def test_a_redirect_to_a_name_that_stands_for_a_private_address_is_refused(
    settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.egress.is_public", lambda a: a == LOCAL or is_public(a))
    monkeypatch.setattr(
        "service.egress.lookup", Names([LOCAL], [ipaddress.ip_address("169.254.169.254")])
    )
    start = receiver.show("/start", 302, Location="https://metadata.example.org/latest")
    with serving(settings) as client:
        body = problem(by_url(client, start), 422, "image-url-refused")
    assert "stands for 169.254.169.254" in body["detail"]
    assert receiver.connections == 1
