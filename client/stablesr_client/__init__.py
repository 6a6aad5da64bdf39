"""A client of the StableSR service: submit an image, wait for it, download the result.

    from stablesr_client import Client

    with Client("http://127.0.0.1:8000") as client:
        client.upscale("in.png", "out.png", scale=2)

`AsyncClient` has the same methods for asyncio. `stablesr_client.errors` has the tree of errors.
"""

from stablesr_client.client import AsyncClient as AsyncClient
from stablesr_client.client import Client as Client
from stablesr_client.errors import Busy as Busy
from stablesr_client.errors import ClientError as ClientError
from stablesr_client.errors import DownloadFailed as DownloadFailed
from stablesr_client.errors import JobFailed as JobFailed
from stablesr_client.errors import NotFound as NotFound
from stablesr_client.errors import Refused as Refused
from stablesr_client.errors import TimedOut as TimedOut
from stablesr_client.errors import Unauthorized as Unauthorized
from stablesr_client.errors import UnexpectedAnswer as UnexpectedAnswer
from stablesr_client.errors import Unreachable as Unreachable
from stablesr_client.retry import RetryPolicy as RetryPolicy
from stablesr_client.schema import Cost as Cost
from stablesr_client.schema import Event as Event
from stablesr_client.schema import Input as Input
from stablesr_client.schema import Job as Job
from stablesr_client.schema import Model as Model
from stablesr_client.schema import Models as Models
from stablesr_client.schema import Parameters as Parameters
from stablesr_client.schema import Problem as Problem
from stablesr_client.schema import Progress as Progress
from stablesr_client.schema import Result as Result
