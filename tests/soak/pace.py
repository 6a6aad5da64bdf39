"""How fast it all goes: a soak of many jobs, and a short one for trying."""

from __future__ import annotations

from dataclasses import dataclass

FEW_JOBS = 200


@dataclass(frozen=True)
class Pace:
    """`jobs_at_once` are one client's, at most; `client_pause_s` is the mean between them."""

    jobs_at_once: int
    client_pause_s: float
    chaos_pauses_s: tuple[float, float]
    """The shortest and the longest between two faults"""
    away_s: float
    """The longest that the store is away, and twice the longest of Redis: less than a lease."""
    result_ttl_s: int
    """A client may wait a minute for a request whose key a dead service holds, and then must still
    find the results of the jobs that it submitted before."""
    worker_ttl_s: int
    memory_is_judged: bool


LONG = Pace(6, 8.0, (2.0, 8.0), 6.0, result_ttl_s=150, worker_ttl_s=10, memory_is_judged=True)
SHORT = Pace(1, 1.5, (0.3, 1.2), 2.0, result_ttl_s=30, worker_ttl_s=4, memory_is_judged=False)
