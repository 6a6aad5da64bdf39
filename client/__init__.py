"""A client of the service: submit an image, wait for it, fetch the result.

    from client import Client

    with Client("http://127.0.0.1:8000") as client:
        client.upscale("in.png", "out.png", scale=2)

`AsyncClient` has the same methods for asyncio. What calls can end with is in `client.errors`. It
needs httpx and pydantic and nothing else of this project.
"""

from client.aio import AsyncClient
from client.errors import (
    Busy,
    ClientError,
    DownloadFailed,
    JobFailed,
    NotFound,
    Refused,
    TimedOut,
    Unauthorized,
    UnexpectedAnswer,
    Unreachable,
)
from client.retry import Patience
from client.schema import (
    Event,
    Input,
    Job,
    Model,
    Models,
    Parameters,
    Problem,
    Progress,
    Result,
)
from client.sync import Client

__all__ = [
    "AsyncClient",
    "Busy",
    "Client",
    "ClientError",
    "DownloadFailed",
    "Event",
    "Input",
    "Job",
    "JobFailed",
    "Model",
    "Models",
    "NotFound",
    "Parameters",
    "Patience",
    "Problem",
    "Progress",
    "Refused",
    "Result",
    "TimedOut",
    "Unauthorized",
    "UnexpectedAnswer",
    "Unreachable",
]
