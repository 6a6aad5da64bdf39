"""A real Prometheus with short intervals, and promtool, out of Debian's package."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx
import yaml

from cli.processes import Child, free_port
from tests.charts.tools import ROOT
from tests.faults.house import until

TOOLS = ROOT / "downloads" / "prometheus"
EVERY = "1s"
# Within it all of a part lies; rates are over it.
WINDOW = "10m"
STOP_S = 20.0


def find(name: str) -> Path | None:
    """`prometheus` or `promtool`: what is on PATH, else what `fetch` has put into TOOLS."""
    program = shutil.which(name) or shutil.which(TOOLS / "usr" / "bin" / name)
    return Path(program) if program else None


def fetch() -> None:
    """Unpacks Debian's package, whose installation would start a server.

    Raises CalledProcessError or FileNotFoundError where there is no apt or no archive answers.
    """
    TOOLS.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "--quiet=2", "prometheus"], cwd=TOOLS, check=True)
    for package in TOOLS.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, TOOLS], check=True)


def check(folder: Path, rules: Mapping[str, Any], tests: Path) -> subprocess.CompletedProcess[str]:
    """What `promtool test rules` says of the tests, which read the rules as `rules.yaml`."""
    promtool = find("promtool")
    assert promtool is not None, "promtool is not here: `make observe` fetches it"
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    shutil.copy(tests, folder / "tests.yaml")
    return subprocess.run(
        [promtool, "test", "rules", folder / "tests.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )


class Target(NamedTuple):
    """A process that is read: the labels are those that the operator of Kubernetes would give."""

    port: int
    labels: Mapping[str, str]
    key: str = ""


class Sample(NamedTuple):
    labels: Mapping[str, str]
    value: float


class Prometheus:
    """`with Prometheus(folder, targets, rules) as prometheus: prometheus.query("up")`."""

    def __init__(self, folder: Path, targets: Sequence[Target], rules: Mapping[str, Any]) -> None:
        self.port = free_port()
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        self._folder = folder
        config = {
            "global": {"scrape_interval": EVERY, "evaluation_interval": EVERY},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                {
                    "job_name": f"target-{number}",
                    "static_configs": [
                        {"targets": [f"127.0.0.1:{target.port}"], "labels": dict(target.labels)}
                    ],
                    **({"authorization": {"credentials": target.key}} if target.key else {}),
                }
                for number, target in enumerate(targets)
            ],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))

    def __enter__(self) -> Self:
        program = find("prometheus")
        assert program is not None, "prometheus is not here: `make observe` fetches it"
        self._process = Child(
            "prometheus",
            [
                str(program),
                f"--config.file={self._folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={self._folder / 'series'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--log.level=warn",
            ],
            env=os.environ,
            log=self._folder / "prometheus.log",
        )
        until(self._answers, "Prometheus answers", seconds=60)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.stop(STOP_S)
        self._client.close()

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"Prometheus ended: {self._process.tail()}")
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def _get(self, path: str, **query: str) -> Any:
        answer = self._client.get(f"/api/v1{path}", params=query)
        # It says in the body what is wrong with a query.
        body = answer.json() if answer.status_code in (200, 400, 422) else {}
        assert body.get("status") == "success", f"{query or path}: {body.get('error') or answer}"
        return body["data"]

    def query(self, query: str) -> list[Sample]:
        """The samples of this moment; a dashboard's interval is WINDOW."""
        data = self._get("/query", query=query.replace("$__rate_interval", WINDOW))
        return [Sample(each["metric"], float(each["value"][1])) for each in data["result"]]

    def scraped(self) -> None:
        """Waits until every process that answers has been read twice from now on."""
        since = time.time()
        everything = f"count(up == 1) == count(timestamp(up) > {since + 1.1} and up == 1)"
        until(lambda: bool(self.query(everything)), "all targets are read", seconds=60)

    def rules(self) -> dict[str, dict[str, Any]]:
        """Each alert's `health`, `lastError` and `state`, by its name."""
        return {
            rule["name"]: rule for group in self._get("/rules")["groups"] for rule in group["rules"]
        }
