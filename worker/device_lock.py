"""Who uses the device: one lock for all slots of a process and its engine.

A claim has a kind. **Jobs** share the device, but one that was lost once runs alone: when a process
dies with several jobs in it, nothing says whose fault it was, and together again the guilty one
would take the others with it a second time and for good. So a second attempt waits until the other
slots are done, and no job begins until it has ended. A second such job is refused and goes back: it
must not be in the process when the first one kills it.

Within jobs, the **autoencoder** works on one image after the other, so that the memory of one
suffices, while **denoiser** calls go on; where networks take turns on the device (offload), these
wait too. Between two strips of a large image, which takes minutes, the small ones that wait step
in, each to its end; `models.plan` counts the memory of one such guest. What comes while guests are
at work waits for the next strip. All else is first come, first served.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

POLL_S = 0.1

Poll = Callable[[], None]
"""Called now and then while a claim waits; what it raises ends the waiting"""

Pause = Callable[[], None]
"""To be called between two strips; returns when the device is the caller's again"""


class DeviceTaken(Exception):
    """Another job that must be alone has the device or waits for it; this one is to be given back,
    unbegun."""


@dataclass(eq=False)
class _Claim:
    kind: Literal["job", "autoencoder", "denoiser"]
    poll: Poll
    exclusive: bool = False
    small: bool = False


class DeviceLock:
    """Shared by all threads of a process.

    Args:
        offload: whether autoencoder and denoiser take turns on the device.
    """

    def __init__(self, *, offload: bool = False) -> None:
        self._offload = offload
        self._condition = threading.Condition()
        self._waiting: list[_Claim] = []
        self._holders: list[_Claim] = []

    @property
    def open(self) -> bool:
        """Whether a job that need not be alone could begin now."""
        with self._condition:
            claims = (*self._holders, *self._waiting)
            return not any(claim.kind == "job" and claim.exclusive for claim in claims)

    def job(self, *, alone: bool, poll: Poll) -> AbstractContextManager[None]:
        """All of a job. One that must be alone goes before those that come after it.

        Raises:
            DeviceTaken: this job must be alone, and another one that must be holds or waits.
        """
        return self._hold(_Claim("job", poll, exclusive=alone))

    @contextmanager
    def autoencoder(self, *, small: bool, poll: Poll) -> Iterator[Pause]:
        """Encoding or decoding one image.

        `small`: whether it may step in between the strips of an image that is not.
        """
        claim = _Claim("autoencoder", poll, exclusive=True, small=small)
        with self._hold(claim):
            yield partial(self._pause, claim)

    def denoiser(self, poll: Poll = lambda: None) -> AbstractContextManager[None]:
        """A network call."""
        return self._hold(_Claim("denoiser", poll))

    @contextmanager
    def _hold(self, claim: _Claim) -> Iterator[None]:
        """An error may end it wherever it is: while it waits, in its pause or at work."""
        with self._condition:
            if claim.kind == "job" and claim.exclusive and not self.open:
                raise DeviceTaken
            self._waiting.append(claim)
        try:
            self._await(claim)
            yield
        finally:
            with self._condition:
                line = self._waiting if claim in self._waiting else self._holders
                line.remove(claim)
                self._condition.notify_all()

    def _await(self, claim: _Claim) -> None:
        while True:
            with self._condition:
                if self._condition.wait_for(lambda: self._is_next(claim), POLL_S):
                    self._waiting.remove(claim)
                    self._holders.append(claim)
                    # Claims of other kinds, or shared ones, may begin beside it.
                    self._condition.notify_all()
                    return
            claim.poll()

    def _is_next(self, claim: _Claim) -> bool:
        before = self._waiting[: self._waiting.index(claim)]
        return not any(self._conflict(claim, other) for other in (*self._holders, *before))

    def _conflict(self, one: _Claim, other: _Claim) -> bool:
        if one.kind == other.kind:
            return one.exclusive or other.exclusive
        return self._offload and "job" not in (one.kind, other.kind)

    def _pause(self, claim: _Claim) -> None:
        with self._condition:
            guests = [waiting for waiting in self._waiting if waiting.small]
            if claim.small or not guests:
                return
            others = [waiting for waiting in self._waiting if not waiting.small]
            self._waiting = [*guests, claim, *others]
            self._holders.remove(claim)
            self._condition.notify_all()
        self._await(claim)
