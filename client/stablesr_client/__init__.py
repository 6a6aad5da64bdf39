"""A client of the StableSR service: submit an image, wait for it, download the result.

    from stablesr_client import Client

    with Client("http://127.0.0.1:8000") as client:
        client.upscale("in.png", "out.png", scale=2)

`AsyncClient` has the same methods for asyncio. `stablesr_client.errors` has the tree of errors.
"""

from stablesr_client.async_client import AsyncClient
from stablesr_client.client import Client
from stablesr_client.errors import (
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
from stablesr_client.retry import RetryPolicy
from stablesr_client.schema import (
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
    "Problem",
    "Progress",
    "Refused",
    "Result",
    "RetryPolicy",
    "TimedOut",
    "Unauthorized",
    "UnexpectedAnswer",
    "Unreachable",
]
