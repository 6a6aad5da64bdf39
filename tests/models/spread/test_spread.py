"""Network calls over several processes: exact, and none hangs when one of them fails."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.errors import ModelError, PeerLost
from models.options import Options
from models.spread import Peers, Spread, start
from models.spread.spread import split
from tests.models.spread.stand_ins import (
    Arithmetic,
    arithmetic,
    leaves,
    narrow_sr,
    no_weights,
    of_narrow,
    one_late,
)

CPU = torch.device("cpu")
PATIENCE_S = 30.0


@pytest.mark.parametrize(
    ("tiles", "among", "sizes"),
    [(7, 3, [3, 2, 2]), (2, 3, [1, 1, 0]), (8, 2, [4, 4]), (1, 1, [1])],
)
def test_tiles_are_split_as_evenly_as_it_goes(tiles: int, among: int, sizes: list[int]) -> None:
    cuts = split(tiles, among)
    assert [cut.stop - cut.start for cut in cuts] == sizes
    assert [cut.start for cut in cuts] == [sum(sizes[:n]) for n in range(among)]


def test_an_image_over_three_processes_is_that_of_one() -> None:
    image = torch.rand(1, 3, 30, 45, generator=torch.Generator().manual_seed(1))
    alone, other = (narrow_sr(CPU).upscale(image, Options(steps=3, seed=seed)) for seed in (5, 6))
    sr = narrow_sr(CPU)
    with start(["cpu", "cpu"], of_narrow) as peers:
        sr.denoiser = Spread(sr.denoiser, peers)
        assert sr.planner.room(4) == 12
        together = sr.upscale(image, Options(steps=3, seed=5))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert float((together - other).abs().mean()) > 1e-3


@pytest.fixture(scope="module")
def peers() -> Iterator[Peers]:
    with start(["cpu", "cpu"], arithmetic) as made:
        yield made


class Call:
    """Tiles as a network call takes them, all of different numbers."""

    def __init__(self, tiles: int, *, context: bool = False) -> None:
        self.noisy = torch.arange(tiles * 12.0).reshape(tiles, 3, 2, 2).bfloat16()
        self.lr = -self.noisy / 7
        self.times = list(range(100, 100 + tiles))
        text = torch.arange(tiles * 6.0).reshape(tiles, 3, 2).bfloat16()
        self.context = text if context else None

    def by(self, denoiser: Spread | Arithmetic) -> Tensor:
        return denoiser(self.noisy, self.lr, self.times, self.context)


@pytest.mark.parametrize("tiles", [1, 2, 3, 8])
@pytest.mark.parametrize("context", [False, True])
def test_every_tile_has_its_own_prediction_whoever_makes_it(
    tiles: int, context: bool, peers: Peers
) -> None:
    call, own = Call(tiles, context=context), Arithmetic()
    assert torch.equal(call.by(Spread(own, peers)), call.by(Arithmetic()))
    assert own.calls == [-(-tiles // 3)]


def test_compiling_ahead_is_done_by_all(peers: Peers) -> None:
    own = Arithmetic()
    Spread(own, peers).warm(8, 64)
    assert own.calls == [-3]


def test_what_fails_on_another_device_is_raised_here_and_the_next_call_is_well(
    peers: Peers,
) -> None:
    spread, call = Spread(Arithmetic(), peers), Call(6)
    for bad, error, words in (
        (13, RuntimeError, "cpu: a tile that cannot be predicted"),
        (14, MemoryError, "cpu: no room for two"),
    ):
        call.times[-1] = bad
        with pytest.raises(error, match=words):
            call.by(spread)
    call.times[-1] = 105
    assert torch.equal(call.by(spread), Call(6).by(Arithmetic()))


def test_what_fails_here_leaves_the_others_ready(peers: Peers) -> None:
    spread, call = Spread(Arithmetic(), peers), Call(6)
    call.times[0] = 13
    with pytest.raises(RuntimeError, match=r"^a tile that cannot be predicted"):
        call.by(spread)
    assert torch.equal(Call(6).by(spread), Call(6).by(Arithmetic()))


def test_weights_that_cannot_be_loaded_there_are_told_here() -> None:
    with pytest.raises(ModelError, match="cpu: no weights for cpu"):
        start(["cpu"], no_weights)


def test_a_process_that_is_killed_ends_the_call_and_not_the_waiting() -> None:
    with start(["cpu"], arithmetic) as peers:
        spread = Spread(Arithmetic(), peers)
        Call(2).by(spread)
        [pid] = peers.pids
        assert pid is not None
        ended = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        assert select.select([ended], [], [], PATIENCE_S)[0]
        os.close(ended)
        with pytest.raises(PeerLost, match=r"The process of .* is gone"):
            Call(2).by(spread)


def test_a_process_that_is_gone_before_it_has_connected_is_not_awaited_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("models.spread.wire.CONNECT", timedelta(seconds=2))
    with pytest.raises(PeerLost, match=r"The process of cpu is gone"):
        start(["cpu"], leaves)


def test_a_process_that_has_loaded_awaits_one_that_takes_longer() -> None:
    with start(["cpu", "cpu:0"], one_late) as peers:
        call = Call(6)
        assert torch.equal(call.by(Spread(Arithmetic(), peers)), call.by(Arithmetic()))


STARTED = """
import sys
from models.spread import start
from tests.models.spread.stand_ins import arithmetic
if __name__ == "__main__":
    peers = start(["cpu", "cpu"], arithmetic)
    print(*peers.pids, sep="\\n", flush=True)
    sys.stdin.read()
"""
STARTING = """
from models.spread import start
from tests.models.spread.stand_ins import never_loaded
if __name__ == "__main__":
    start(["cpu", "cpu"], never_loaded)
"""


@pytest.mark.parametrize("host", [STARTED, STARTING], ids=["at rest", "while they load"])
def test_the_others_end_when_the_first_process_is_killed(host: str, tmp_path: Path) -> None:
    script = tmp_path / "host.py"
    script.write_text(host)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    ) as first:
        assert first.stdout is not None
        ends = [os.pidfd_open(int(first.stdout.readline())) for _ in range(2)]
        first.kill()
        for end in ends:
            assert select.select([end], [], [], PATIENCE_S)[0], "a process was left behind"
            os.close(end)
