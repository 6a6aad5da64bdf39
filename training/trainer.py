"""The loop of every stage: AdamW, accumulation, averaging, checkpoints, through accelerate.

A step's data follow from its number, its rate from its progress, and the rest is in the
checkpoint: a run that was killed and resumed goes through the losses of one that was not.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from training.checkpoint import Average, Checkpoints, Log, Progress
from training.config import LoopSettings, RunExists, TrainingError
from training.objective import Batch, ImageObjective, Objective

__all__ = ["Ahead", "Ended", "Trainer"]

Ended = Literal["finished", "limited", "stopped"]
"""At its last step; at `max_steps`; by a signal."""


class Trainer:
    """Trains what an objective names; everything else of its networks stays bit for bit.

    Args:
        objective: what is learned, on the accelerator's device.
        settings: how long and how fast.
        folder: checkpoints and log go here.
        accelerator: made for this stage.
        export: writes the networks as they are; called with the averaged weights in place at every
            checkpoint.
        say: hears a line for people now and then.
    """

    def __init__(
        self,
        objective: Objective,
        settings: LoopSettings,
        folder: Path,
        accelerator: Accelerator,
        *,
        export: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._objective, self._settings, self._folder = objective, settings, folder
        self._accelerator, self._export, self._say = accelerator, export, say
        folder.mkdir(parents=True, exist_ok=True)
        objective.networks.requires_grad_(False)
        learned = {
            name: parameter
            for name, parameter in objective.networks.named_parameters()
            if objective.trainable(name)
        }
        if not learned:
            raise TrainingError("No parameter of the networks learns in this stage.")
        for parameter in learned.values():
            parameter.requires_grad_(True)
        self._learned = list(learned.values())
        self._average = Average(learned, settings.average)
        self.progress = Progress(settings)
        self._optimizer = self._adam(*_grouped(learned, settings.factors))
        self._module, self._optimizer = accelerator.prepare(objective, self._optimizer)
        kept = [learned]
        self._critic: nn.Module | None = None
        self._judged = objective if isinstance(objective, ImageObjective) else None
        critic = None if self._judged is None else self._judged.critic
        if critic is not None:
            kept.append(dict(critic.named_parameters()))
            optimizer = self._adam({"params": list(critic.parameters())})
            self._critic, self._critic_optimizer = accelerator.prepare(critic, optimizer)
        self._models = [m for m in (self._module, self._critic) if m is not None]
        accelerator.register_for_checkpointing(self.progress, self._average)
        self._checkpoints = Checkpoints(folder, accelerator, tuple(kept))
        self._kept = -1  # step of the newest checkpoint
        self._batches = Ahead(objective.draw, accelerator.device)
        # Terms of the steps since the last look: to read them sooner would wait for the device.
        self._unread: list[dict[str, Tensor]] = []

    def _adam(self, *groups: dict[str, Any]) -> torch.optim.Optimizer:
        s = self._settings
        return torch.optim.AdamW(
            groups,
            lr=s.learning_rate,
            betas=s.betas,
            weight_decay=s.weight_decay,
            fused=self._accelerator.device.type == "cuda",
        )

    def run(self, *, resume: bool, max_steps: int | None = None) -> Ended:
        """Trains to the end, or to `max_steps`, or until SIGINT or SIGTERM.

        However it ends, the averaged weights are then in the networks and in the last export.

        Raises:
            RunExists: there is a checkpoint, and `resume` is False.
        """
        newest = self._checkpoints.newest()
        if newest is not None and not resume:
            raise RunExists(
                f"{self._folder} already holds a run ({newest.name}): go on with it with "
                "--resume, or name another --out."
            )
        if newest is not None:
            self._checkpoints.load(newest)
            self._kept = self.progress.step
            self._say(f"{self._folder}: going on after step {self.progress.step}")
        elif resume:
            self._say(f"{self._folder}: no checkpoint to resume from, starting at step 0")
        last = self.progress.total if max_steps is None else max_steps
        log = Log(self._folder, self.progress.step) if self._accelerator.is_main_process else None
        try:
            with _stop_requested() as stopped:
                while not self.progress.over and self.progress.step < last and not stopped():
                    self._advance(log)
                    last = self.progress.total if max_steps is None else max_steps
                interrupted = stopped()
            if self._kept != self.progress.step:
                self._save()
        finally:
            self._batches.close()
            if log is not None:
                log.close()
        self._average.apply()
        if self.progress.over:
            return "finished"
        return "stopped" if interrupted else "limited"

    def _advance(self, log: Log | None) -> None:
        """One step, logged and kept where it is time to."""
        began = time.monotonic()
        self._unread.append(self._step())
        self.progress.step += 1
        step, recent = self.progress.step, self.progress.recent
        logged = step % self._settings.log_every == 0
        if logged or step % self._settings.save_every == 0:
            self._read()
        self.progress.seconds += time.monotonic() - began
        if logged:
            values = {name: sum(seen) / len(seen) for name, seen in recent.items()}
            recent.clear()
            if log is not None:
                rate = self._optimizer.param_groups[0]["lr"]
                log.write(step, {**values, "rate": rate, "seconds": self.progress.seconds})
                self._say(
                    f"step {step} of {self.progress.total}, loss {values['loss']:.5f}, "
                    f"{self.progress.seconds:.0f} s"
                )
        if step % self._settings.save_every == 0:
            self._save()

    def _read(self) -> None:
        """The terms of the steps since the last look, as numbers: means over all processes."""
        unread, self._unread = self._unread, []
        for terms in unread:
            means = self._accelerator.reduce(torch.stack(list(terms.values())), "mean")
            for name, value in zip(terms, means.tolist(), strict=True):
                self.progress.recent.setdefault(name, []).append(value)

    def _step(self) -> dict[str, Tensor]:
        """One step of the optimizers; this process's terms, scalars on the device."""
        step, accelerator = self.progress.step, self._accelerator
        joined = self._judged is not None and self._judged.wants_critic(step)
        self._set_rates()
        sums: dict[str, Tensor] = {}
        for part in range(self._settings.accumulate):
            batch = self._batches(step * self._settings.accumulate + part)
            with accelerator.accumulate(*self._models):
                made = self._module(batch)  # prepared: autocasts by itself
                with accelerator.autocast():
                    terms = self._objective.terms(made, batch, step)
                loss = torch.stack(list(terms.values())).sum()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self._learned, self._settings.clip_norm)
                self._optimizer.step()
                self._optimizer.zero_grad()
                if joined:
                    terms["critic"] = self._critic_step(made, batch)
            for name, term in {"loss": loss, **terms}.items():
                sums[name] = sums[name] + term.detach() if name in sums else term.detach()
        self._average.update(step)
        return {name: total / self._settings.accumulate for name, total in sums.items()}

    def _critic_step(self, made: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        accelerator, critic = self._accelerator, self._critic
        assert critic is not None
        assert self._judged is not None
        loss = self._judged.critic_terms(critic, made, batch)
        accelerator.backward(loss)
        self._critic_optimizer.step()
        self._critic_optimizer.zero_grad()
        return loss

    def _set_rates(self) -> None:
        rate = self.progress.learning_rate
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        if self._judged is not None and self._critic is not None:
            usual = self._settings.learning_rate
            for group in self._critic_optimizer.param_groups:
                group["lr"] = rate * ((self._judged.critic_learning_rate or usual) / usual)

    def _save(self) -> None:
        self._read()
        self.progress.replan()
        told: list[Any] = [self.progress.total]  # processes differ in seconds
        self.progress.total = broadcast_object_list(told)[0]
        self._checkpoints.save(self.progress.step)
        self._kept = self.progress.step
        if self._accelerator.is_main_process:
            with self._average.in_place():
                self._export()
        self._accelerator.wait_for_everyone()


def _grouped(learned: dict[str, nn.Parameter], factors: dict[str, float]) -> list[dict[str, Any]]:
    """The optimizer's groups: parameters whose learning rate has the same factor."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in learned.items():
        factor = next((f for start, f in factors.items() if name.startswith(start)), 1.0)
        groups.setdefault(factor, []).append(parameter)
    return [{"params": params, "factor": factor} for factor, params in groups.items()]


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM came; the step is finished and kept first."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: asked.set()) for number in signals]
    try:
        yield asked.is_set
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


class Ahead:
    """Draws batches in their order; on a GPU each on a thread of its own, one before it is asked.

    A batch follows from its number alone, so nothing depends on when it was made. On a CPU the
    thread would take from the step what it gives to the batch, and none is used.

    Args:
        draw: number -> batch; never called by two threads at once.
        device: of the batches.
    """

    def __init__(self, draw: Callable[[int], Batch], device: torch.device) -> None:
        self._draw = draw
        # The current device is each thread's own, and `device` may leave its number open.
        self._current = torch.cuda.current_device() if device.type == "cuda" else None
        self._pool = ThreadPoolExecutor(1, "batches") if device.type == "cuda" else None
        self._next: tuple[int, Future[Batch]] | None = None

    def __call__(self, number: int) -> Batch:
        """The batch of that number; raises what `draw` raises."""
        if self._pool is None:
            return self._draw(number)
        if self._next is not None and self._next[0] == number:
            made = self._next[1]
        else:
            made = self._pool.submit(self._drawn, number)
        batch = made.result()
        self._next = (number + 1, self._pool.submit(self._drawn, number + 1))
        return batch

    def _drawn(self, number: int) -> Batch:
        torch.cuda.set_device(self._current)
        return self._draw(number)

    def close(self) -> None:
        """Ends the thread; what it made in vain is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
