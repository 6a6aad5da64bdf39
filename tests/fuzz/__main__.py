"""schemathesis with all its checks against a running service: Redis, the service, a worker.

    python -m tests.fuzz [--examples 50] [--seed 1] [--paths REGEX]

Once open and once with keys. Ends with 1 when a check failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from jobs.connection import connect
from jobs.keys import Keys
from jobs.settings import PROTOCOLS
from models.presets import PRESETS
from tests.faults.house import House, until
from tests.temporary import temporary_folder

# Nothing that ordinary use does not meet: limits have tests of their own.
SETTINGS: dict[str, Any] = {
    "uploads_per_minute": 0,
    "max_queued": 1_000_000,
    "max_connections": 20_000,
    "compat": ",".join(PROTOCOLS),
    "webhook_secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--examples", type=int, default=50, help="cases an operation, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--paths", default=".", help="only operations whose path matches")
    chosen = parser.parse_args()
    failed = 0
    for keyed in (False, True):
        with temporary_folder("fuzz"), House("fuzz", **SETTINGS) as house:
            headers = []
            if keyed:
                with connect(house.settings) as connection:
                    headers = ["--header", f"X-API-Key:{Keys(connection).create('fuzz')[1]}"]
            for preset in PRESETS:
                house.worker(step_s=0, preset=preset)
            until(lambda: _served(house) == len(PRESETS), "every preset is served")
            print(f"\n{'with a key' if keyed else 'open'}: {house.client.base_url}", flush=True)
            failed += run(str(house.client.base_url), headers, chosen)
    return 1 if failed else 0


def _served(house: House) -> int:
    models = house.client.get("/models").json()["models"]
    return sum(model["available"] for model in models)


def run(url: str, headers: list[str], chosen: argparse.Namespace) -> int:
    config = Path(__file__).with_name("schemathesis.toml")
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)]
    command += ["run", f"{url}/openapi.json"]
    options = [
        # DELETE cancels a job, which is then shown as canceled and not as gone.
        *("--checks", "all", "--exclude-checks", "use_after_free"),
        *("--continue-on-failure", "--request-timeout", "70"),
        *("--max-examples", str(chosen.examples), "--seed", str(chosen.seed)),
        *("--generation-database", "none", "--include-path-regex", chosen.paths),
    ]
    env = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks"}
    return subprocess.run([*command, *options, *headers], env=env, check=False).returncode


sys.exit(main())
