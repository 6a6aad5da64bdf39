"""Who may come in: the key is checked and the request counted before a byte of its body is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from service.auth import NOBODY, Caller, token_of
from service.errors import Unauthorized
from service.ratelimit import Policy, client_of
from service.state import Services, ServicesDep

__all__ = ["ReaderDep", "UploaderDep", "add_headers"]


def add_headers(request: Request, headers: dict[str, str]) -> None:
    """Header fields for the answer to this request, whatever it will be."""
    request.scope["state"].setdefault("headers", {}).update(headers)


def _admit(request: Request, services: Services, policy: Callable[[Caller], Policy]) -> Caller:
    address = None if request.client is None else request.client.host
    try:
        caller = services.authenticator.caller(token_of(request.headers))
    except Unauthorized:
        # Guesses cost a lookup each: they are counted too, by address.
        services.limits.hit(services.limits.reads(NOBODY), client_of(NOBODY, address))
        raise
    add_headers(request, {**services.limits.hit(policy(caller), client_of(caller, address))})
    # For the request's line in the log.
    request.state.key = caller.owner or None
    request.state.client_id = client_of(caller, address)
    return caller


def _reader(request: Request, services: ServicesDep) -> Caller:
    return _admit(request, services, services.limits.reads)


def _uploader(request: Request, services: ServicesDep) -> Caller:
    return _admit(request, services, services.limits.uploads)


ReaderDep = Annotated[Caller, Depends(_reader)]
UploaderDep = Annotated[Caller, Depends(_uploader)]
