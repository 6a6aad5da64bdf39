"""The kinds of Redis: each starts one, has the contract done on it or sees it refused, and says so.

A kind gives what the table prints: `right: ...` or `refused: ...` with the sentence.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.faults.house import House, until
from tests.redis_kinds.contract import SETTINGS, contract
from tests.redis_kinds.servers import Programs
from tests.redis_sentinel import RedisGroup
from tests.redis_server import RedisServer

Kind = Callable[[Programs], str]
PASSWORD = "p:w/d@1"
ACL = Path(__file__).parents[2] / "configs" / "redis-user.acl"


@contextmanager
def serving(name: str, server: RedisServer | RedisGroup, **settings: Any) -> Iterator[House]:
    with House(name, server, **{**SETTINGS, **settings}) as house:
        yield house
    # Left where it is when something went wrong: its logs say what.
    shutil.rmtree(house.folder)


def right_on(house: House) -> str:
    return f"right: {len(contract(house))} steps"


def right(name: str, server: RedisServer | RedisGroup, **settings: Any) -> str:
    with serving(name, server, **settings) as house:
        return right_on(house)


def plain(name: str | None, programs: Programs) -> str:
    return right(name or "redis-6", RedisServer(program=programs.path(name)))


def sentinel(name: str | None, programs: Programs) -> str:
    """The primary is killed while jobs wait and run; then the whole contract on the next one."""
    group = RedisGroup(acknowledged=1, program=programs.path(name))
    # A failover takes longer than the leases of the other kinds last.
    with serving("sentinel", group, worker_ttl_s=10) as house:
        house.worker(step_s=0.1)
        house.ready()
        house.submit(6, steps=20)
        old = group.primary
        group.kill()
        group.fails_over(old)
        until(lambda: house.client.get("/readyz").status_code == 200, "ready again", seconds=30)
        house.submit(2)
        house.all_ended(seconds=60)
        ends = [house.look(job) for job in house.jobs]
        assert house.right() == 8, [(end["state"], end["attempt"], end["error"]) for end in ends]
        house.workers[0].close()
        house.workers.clear()
        return f"right: failover with 6 jobs, {len(contract(house))} steps"


def user(programs: Programs) -> str:
    """A user who may do what configs/redis-user.acl says and no more; no command was refused."""
    rules = ACL.read_text().split()
    login = ("--user", "ada", "on", f">{PASSWORD}", *rules)
    server = RedisServer(*login, program=programs.path("redis-7"))
    url = f"redis://ada:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/0"
    with serving("user", server, redis_url=url) as house, server.connect() as root:
        said = right_on(house)
        denials: Any = root.execute_command("ACL", "LOG")
        assert not denials, denials
        return said


def tls(programs: Programs) -> str:
    server = RedisServer(program=programs.path("redis-7"))
    folder, port = server.folder, server.port + 1
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    request = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject)
    files = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "ca.pem"))
    subprocess.run([*request, *files], check=True, capture_output=True)
    server.options += (
        *("--tls-port", str(port), "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(folder / "ca.pem"), "--tls-key-file", str(folder / "key.pem")),
    )
    url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={folder / 'ca.pem'}"
    return right("tls", server, redis_url=url)


def unix(programs: Programs) -> str:
    server = RedisServer()
    path = server.folder / "redis.sock"
    server.options += ("--unixsocket", str(path))
    return right("unix", server, redis_url=f"unix://{path}?db=1")


def password(programs: Programs) -> str:
    server = RedisServer("--requirepass", PASSWORD)
    server.url = f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/0"
    return right("password", server)


def emptied(programs: Programs) -> str:
    """FLUSHALL while jobs run: they are gone, as must be; all goes on with what comes then."""
    server = RedisServer()
    with serving("emptied", server) as house:
        house.worker()
        house.ready()
        house.submit(3, steps=40)
        server.flush()
        assert {house.client.get(f"/jobs/{job.id}").status_code for job in house.jobs} == {404}
        house.jobs.clear()
        return f"right: {len(contract(house))} steps after FLUSHALL"


def evicting(policy: str, programs: Programs) -> str:
    server = RedisServer("--maxmemory", "64mb", "--maxmemory-policy", policy)
    with serving("evicting", server) as house:
        return refused(house, "may evict jobs")


def evicting_allowed(programs: Programs) -> str:
    server = RedisServer("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
    return right("allowed", server, allow_eviction=True) + ", and said in /readyz"


def full(programs: Programs) -> str:
    server = RedisServer()
    with serving("full", server) as house, server.connect() as root:
        house.worker()
        house.ready()
        house.submit()
        house.all_ended(seconds=30)
        root.config_set("maxmemory", 1)
        said = refused(house, "takes no writes")
        for path in (f"/jobs/{house.jobs[0].id}", "/jobs", f"/jobs/{house.jobs[0].id}/result"):
            assert house.client.get(path).status_code == 200, path
        root.config_set("maxmemory", 0)
        until(lambda: house.client.get("/readyz").status_code == 200, "ready again", seconds=10)
        house.submit()
        house.all_ended(seconds=30)
        return said + " Reads go on; right once there is room"


def replica(programs: Programs) -> str:
    with RedisServer() as primary:
        server = RedisServer("--replicaof", "127.0.0.1", str(primary.port))
        with serving("replica", server) as house, server.connect() as root:
            said = refused(house, "is a read-only replica")
            root.execute_command("REPLICAOF", "NO", "ONE")
            return f"{said} Once promoted {right_on(house)}"


def cluster(programs: Programs) -> str:
    """For a service that was up before it became one, and a service and a worker that start."""
    server = RedisServer("--cluster-enabled", "no")
    with serving("cluster", server) as house:
        # A cluster would claim the slots of what it has.
        server.flush()
        server.kill()
        server.options = ("--cluster-enabled", "yes")
        server.start()
        with server.connect() as root:
            root.execute_command("CLUSTER", "ADDSLOTS", *map(str, range(16384)))
            until(lambda: "state:ok" in str(root.execute_command("CLUSTER", "INFO")), "it is up")
        said = refused(house, "is a Redis Cluster")
        for command, status in (("serve", 2), ("worker", 1)):
            ended = subprocess.run(
                [sys.executable, "-m", "cli", command],
                env=house.environment(),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert ended.returncode == status, ended
            assert "is a Redis Cluster; the service needs a single Redis" in ended.stderr, ended
        return f"{said} So do service and worker when they start"


def refused(house: House, reason: str) -> str:
    """The sentence of a refused upload, after what /readyz says."""

    def says_so() -> bool:
        component = house.client.get("/readyz").json()["components"]["redis"]
        return not component["ready"] and reason in component["detail"]

    # It repeats what it knows for some seconds.
    until(says_so, f"/readyz says {reason}", seconds=10)
    answer = house.post()
    assert answer.status_code == 503, answer.text
    assert reason in answer.json()["detail"], answer.text
    return f"refused: {answer.json()['detail']}"


KINDS: dict[str, Kind] = {
    "Redis 6.2": partial(plain, None),
    "Redis 7.0": partial(plain, "redis-7"),
    "Redis 8.0": partial(plain, "redis-8"),
    "Valkey 8.1": partial(plain, "valkey-8"),
    "Sentinel, Redis 6.2": partial(sentinel, None),
    "Sentinel, Redis 8.0": partial(sentinel, "redis-8"),
    "Sentinel, Valkey 8.1": partial(sentinel, "valkey-8"),
    "ACL user": user,
    "TLS, own authority": tls,
    "Unix socket": unix,
    "password with :/@": password,
    "emptied": emptied,
    "full, noeviction": full,
    "read-only replica": replica,
    "volatile-lru": partial(evicting, "volatile-lru"),
    "allkeys-lru": partial(evicting, "allkeys-lru"),
    "allkeys-lru, allowed": evicting_allowed,
    "Cluster": cluster,
}
