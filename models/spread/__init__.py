"""One image over several devices of a host: the tiles of each network call, split among them.

Within a step tiles do not depend on each other, so that is exact. A process for each further device
holds the same weights and answers; the first one does everything else, and its share of every call.
What goes between them is small (a 64 x 64 tile of four channels is 64 KB in float32, its prediction
as much, for milliseconds of arithmetic), so it goes through the host by torch.distributed's gloo,
whatever the devices are.
"""

from __future__ import annotations

from models.spread.peers import Peers, start
from models.spread.spread import Spread

__all__ = ["Peers", "Spread", "start"]
