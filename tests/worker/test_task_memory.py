"""What a task holds of an image: freed however it ends, and written as it comes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from structlog.testing import capture_logs
from torch import Tensor

from jobs.schema import JobState
from jobs.store import result_key
from models.errors import NotEnoughMemory, ScratchFull
from models.parameters import UpscaleParameters
from tests.worker.double import ERROR, Double, Prepared
from tests.worker.processes import House
from tests.worker.test_tasks import attempt, failure, serving


@dataclass(frozen=True)
class Held(Prepared):
    """Says when it is closed."""

    double: Holding | None = None

    def close(self) -> None:
        assert self.double is not None
        self.double.held -= 1 if self.double.held else 0


class Holding(Double):
    """Counts the images whose features it holds; decodes in strips of two rows."""

    held = 0
    told: float = 0.0
    held_when_written = -1

    def prepare(
        self, image: Tensor, options: UpscaleParameters, tell: Callable[[float], None]
    ) -> Prepared:
        plain = super().prepare(image, options, tell)
        tell(0.5)
        self.held += 1
        return Held(plain.image, plain.size, {"keep": "disk", "rows": 2}, self)

    def rows(
        self,
        prepared: Prepared,
        latent: Tensor,
        options: UpscaleParameters,
        tell: Callable[[float], None],
    ) -> Iterator[Tensor]:
        whole = torch.cat(list(super().rows(prepared, latent, options, tell)), dim=1)
        for part in range(4):
            tell(part / 4)
        return self._strips(whole)

    def _strips(self, whole: Tensor) -> Iterator[Tensor]:
        self.held_when_written = self.held
        yield from torch.split(whole, 2, dim=1)


def test_a_result_is_written_from_its_rows_and_what_was_held_is_freed_before(house: House) -> None:
    model = Holding()
    with serving(house, model) as process:
        job_id = house.submit(scale=2.0)
        with capture_logs() as lines:
            attempt(process, job_id)
    assert house.job(job_id).state is JobState.SUCCEEDED
    assert (model.held, model.held_when_written) == (0, 0)
    with Image.open(io.BytesIO(house.store.get(result_key(job_id)))) as image:
        assert image.size == (20, 12)
    [planned] = [line for line in lines if line["event"] == "job planned"]
    assert (planned["keep"], planned["rows"], planned["job"]) == ("disk", 2, job_id)


def test_a_job_that_fails_frees_what_it_held(house: House) -> None:
    model = Holding()
    with serving(house, model) as process:
        job_id = house.submit(seed=ERROR)
        attempt(process, job_id)
    assert failure(house, job_id) == "internal-error"
    assert model.held == 0


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_a_job_canceled_between_two_strips_ends_there_and_frees_what_it_held(
    house: House, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of many strips is not finished for nobody."""
    monkeypatch.setattr("worker.progress.NOTE_S", 0.0)
    ended: list[str] = []

    class Canceling(Holding):
        def prepare(self, image: Tensor, options: UpscaleParameters, tell: Any) -> Prepared:
            if stage == "encode":
                house.queue.cancel(job_id)
            prepared = super().prepare(image, options, tell)
            ended.append("encode")
            return prepared

        def rows(
            self, prepared: Prepared, latent: Tensor, options: UpscaleParameters, tell: Any
        ) -> Iterator[Tensor]:
            house.queue.cancel(job_id)
            rows = super().rows(prepared, latent, options, tell)
            ended.append("decode")
            return rows

    model = Canceling()
    with serving(house, model) as process:
        job_id = house.submit()
        attempt(process, job_id)
        assert not house.store.exists(result_key(job_id))
    assert house.job(job_id).state is JobState.CANCELED
    assert ended == ([] if stage == "encode" else ["encode"])
    assert model.held == 0


@pytest.mark.parametrize("error", [NotEnoughMemory("no plan fits"), ScratchFull("no room")])
def test_an_image_without_room_is_tried_again_alone_and_then_fails(
    house: House, error: Exception
) -> None:
    class Full(Double):
        def prepare(
            self, image: Tensor, options: UpscaleParameters, tell: Callable[[float], None]
        ) -> Prepared:
            raise error

    with serving(house, Full()) as process:
        job_id = house.submit()
        with pytest.raises(type(error)):
            attempt(process, job_id)
        assert house.job(job_id).state is JobState.PROCESSING
        with pytest.raises(type(error)):
            attempt(process, job_id, last=True)
    assert failure(house, job_id) == "out-of-memory"


def test_results_in_the_making_lie_in_the_temporary_folder(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    seen: list[list[Path]] = []

    class Looking(Holding):
        def _strips(self, whole: Tensor) -> Iterator[Tensor]:
            seen.append(list(scratch.iterdir()))
            yield from super()._strips(whole)

    with serving(house, Looking()) as process:
        attempt(process, house.submit())
    assert len(seen[0]) == 1
    assert list(scratch.iterdir()) == []
