"""Redis and Valkey servers of Debian, fetched and unpacked into a folder, installed nowhere.

Those of Debian 13 run with their own C library, so that they run on Debian 12 too.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

SUITES = {"redis-7": "bookworm", "redis-8": "trixie", "valkey-8": "trixie"}
LIBRARIES = [
    *("libc6", "libgcc-s1", "libstdc++6", "libatomic1", "libssl3t64", "libsystemd0", "libcap2"),
    *("libzstd1", "libjemalloc2", "liblzf1", "libhiredis1.1.0", "liblua5.1-0", "lua-bitop"),
    "lua-cjson",
]
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class NoServer(Exception):
    """The server cannot be had on this machine; says why."""


class Programs:
    """Each is fetched when it is first asked for. All lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def path(self, name: str | None) -> Path | None:
        """A redis-server that runs here, by its name in SUITES; without a name the one that tests
        take anyway. Raises NoServer."""
        if name is None:
            return None
        with self._lock:
            return self._path(name)

    def _path(self, name: str) -> Path:
        script = self._folder / name
        if not script.exists():
            kind = name.partition("-")[0]
            libraries = self._unpack("trixie", LIBRARIES)
            root = self._unpack(SUITES[name], [f"{kind}-server", f"{kind}-tools"])
            library = libraries / "usr/lib/x86_64-linux-gnu"
            loader = library / "ld-linux-x86-64.so.2"
            program = root / f"usr/bin/{kind}-server"
            script.write_text(
                f'#!/bin/sh\nexec "{loader}" --library-path "{library}" "{program}" "$@"\n'
            )
            script.chmod(0o755)
        said = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
        if said.returncode:
            raise NoServer(f"{name} does not run here: {said.stderr.strip()}")
        return script

    def _unpack(self, suite: str, packages: list[str]) -> Path:
        root = self._folder / f"{suite}-{packages[0]}"
        if root.exists():
            return root
        root.mkdir()
        for package in packages:
            _run(*self._apt(suite), "download", package, at=root)
        for archive in root.glob("*.deb"):
            _run("dpkg-deb", "-x", str(archive), str(root), at=root)
        return root

    def _apt(self, suite: str) -> list[str]:
        """apt-get for that suite alone, with lists of its own."""
        state = self._folder / f"apt-{suite}"
        command = [
            *("apt-get", "-q", "-o", f"Dir::Etc::sourcelist={state}/sources.list"),
            *("-o", "Dir::Etc::sourceparts=-", "-o", f"Dir::State::lists={state}/lists"),
            *("-o", f"Dir::Cache={state}/cache", "-o", "APT::Sandbox::User=root"),
        ]
        if not state.exists():
            for part in ("lists/partial", "cache/archives/partial"):
                (state / part).mkdir(parents=True)
            source = f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {suite} main\n"
            (state / "sources.list").write_text(source)
            _run(*command, "update", at=state)
        return command


def _run(*command: str, at: Path) -> None:
    if shutil.which(command[0]) is None:
        raise NoServer(f"{command[0]} is not on this machine")
    ended = subprocess.run(command, cwd=at, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise NoServer(f"{' '.join(command[-2:])}: {ended.stderr.strip().splitlines()[-1]}")
