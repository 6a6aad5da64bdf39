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
from torch.optim.swa_utils import AveragedModel

from training.checkpoint import Checkpoints, Log, Progress
from training.config import LoopSettings, RunExists
from training.objectives import Objective, learns
from training.pairs import Batch

WEIGHTS_FOLDER = "weights"
"""Below a stage's folder: the averaged weights, which the next stage starts from."""

_Tensors = tuple[Tensor, ...] | list[Tensor]
Outcome = Literal["finished", "limited", "stopped"]
"""At its last step; at `max_steps`; by a signal."""


class Trainer:
    """Trains what an objective names; everything else of its networks stays bit for bit.

    Args:
        objective: what is learned, on the accelerator's device; no parameter has a gradient yet.
        settings: how long and how fast.
        folder: of checkpoints, log and weights.
        accelerator: of this stage alone.
        on_progress: hears a line for people now and then.
        blend: how far of the way from the start to the averaged weights is exported
            (arXiv 2109.01903, section 3).
    """

    def __init__(
        self,
        objective: Objective,
        settings: LoopSettings,
        folder: Path,
        accelerator: Accelerator,
        *,
        on_progress: Callable[[str], None],
        blend: float = 1.0,
    ) -> None:
        self._objective, self._settings, self._folder = objective, settings, folder
        self._accelerator, self._on_progress = accelerator, on_progress
        folder.mkdir(parents=True, exist_ok=True)
        parameters = objective.networks.named_parameters()
        trainable = {name: p for name, p in parameters if learns(objective.stage, name)}
        self._parameters, self._blend = nn.ParameterList(trainable.values()), blend
        self._parameters.requires_grad_(True)
        self._start = [p.detach().clone() for p in self._parameters] if blend < 1 else []
        self.progress = Progress(settings)
        self._average = AveragedModel(self._parameters, multi_avg_fn=self._update_average)
        optimizer = self._adam(_groups(trainable, settings.factors))
        self._module, self._optimizer = accelerator.prepare(objective, optimizer)
        self._models, self._optimizers = [self._module], [self._optimizer]
        state: list[Any] = [self.progress, self._average, self._parameters]
        critic = objective.loss.critic if objective.loss is not None else None
        if critic is not None:
            group = {"params": list(critic.parameters()), "factor": 1.0}
            module, optimizer = accelerator.prepare(critic, self._adam([group]))
            self._models.append(module)
            self._optimizers.append(optimizer)
            state.append(critic)
        accelerator.register_for_checkpointing(*state)
        self._checkpoints = Checkpoints(folder, accelerator)
        self._checkpoint_step = -1
        self._batches = Prefetcher(objective.draw, accelerator.device)
        # Terms of the steps since the last look: to read them sooner would wait for the device.
        self._unread: list[dict[str, Tensor]] = []

    def _adam(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        s, on_gpu = self._settings, self._accelerator.device.type == "cuda"
        return torch.optim.AdamW(
            groups, lr=s.learning_rate, betas=s.betas, weight_decay=s.weight_decay, fused=on_gpu
        )

    def run(self, *, resume: bool, max_steps: int | None = None) -> Outcome:
        """Trains to the end, or to `max_steps`, or until SIGINT or SIGTERM.

        However it ends, the averaged weights are then in the last export.

        Raises:
            RunExists: there is a checkpoint, and `resume` is False.
        """
        progress, newest = self.progress, self._checkpoints.newest()
        if newest is not None and not resume:
            raise RunExists(
                f"{self._folder} already holds a run ({newest.name}): go on with it with "
                "--resume, or name another --out."
            )
        if newest is not None:
            self._accelerator.load_state(str(newest))
            self._checkpoint_step = progress.step
            self._on_progress(f"{self._folder}: resuming after step {progress.step}")
        elif resume:
            self._on_progress(f"{self._folder}: no checkpoint to resume from, starting at step 0")
        log = Log(self._folder, progress.step) if self._accelerator.is_main_process else None
        try:
            with _stop_event() as stop:
                while not (progress.over or stop.is_set()):
                    if max_steps is not None and progress.step >= max_steps:
                        break
                    self._advance(log)
            if self._checkpoint_step != progress.step:
                self._save()
        finally:
            self._batches.close()
            if log is not None:
                log.close()
        if progress.over:
            return "finished"
        return "stopped" if stop.is_set() else "limited"

    def _advance(self, log: Log | None) -> None:
        """One step, logged and kept where it is time to."""
        start = time.monotonic()
        self._unread.append(self._step())
        progress = self.progress
        progress.step += 1
        log_now = progress.step % self._settings.log_every == 0
        save_now = progress.step % self._settings.save_every == 0
        if log_now or save_now:
            self._read()
        progress.seconds += time.monotonic() - start
        if log_now:
            values = {name: sum(terms) / len(terms) for name, terms in progress.recent.items()}
            progress.recent.clear()
            if log is not None:
                rate = self._optimizer.param_groups[0]["lr"]
                log.write(progress.step, {**values, "rate": rate, "seconds": progress.seconds})
                self._on_progress(
                    f"step {progress.step} of {progress.total}, loss {values['loss']:.5f}, "
                    f"{progress.seconds:.0f} s"
                )
        if save_now:
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
        step, accelerator, loss = self.progress.step, self._accelerator, self._objective.loss
        for group in [group for o in self._optimizers for group in o.param_groups]:
            group["lr"] = self.progress.learning_rate * group["factor"]
        sums: dict[str, Tensor] = {}
        for part in range(self._settings.accumulate):
            batch = self._batches(step * self._settings.accumulate + part)
            with accelerator.accumulate(*self._models):
                outputs = self._module(batch)  # prepared: autocasts by itself
                with accelerator.autocast():
                    terms = self._objective.terms(outputs, batch, step)
                total = torch.stack(list(terms.values())).sum()
                accelerator.backward(total)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self._parameters, self._settings.clip_norm)
                self._optimizer.step()
                self._optimizer.zero_grad()
                if loss is not None and loss.has_critic(step):
                    images = outputs["image"], batch["target"]
                    terms["critic"] = loss.critic_term(self._models[1], *images)
                    accelerator.backward(terms["critic"])
                    self._optimizers[1].step()
                    self._optimizers[1].zero_grad()
            for name, term in {"loss": total, **terms}.items():
                sums[name] = sums[name] + term.detach() if name in sums else term.detach()
        self._average.update_parameters(self._parameters)
        return {name: value / self._settings.accumulate for name, value in sums.items()}

    def _update_average(self, averages: _Tensors, parameters: _Tensors, count: object) -> None:
        # Early steps would otherwise weigh the start for hundreds of steps.
        step = self.progress.step
        decay = min(self._settings.average, (1 + step) / (10 + step))
        torch._foreach_lerp_(averages, parameters, 1 - decay)

    def _save(self) -> None:
        self._read()
        self.progress.replan()
        # Processes differ in seconds.
        [self.progress.total] = broadcast_object_list([self.progress.total])
        self._checkpoints.save(self.progress.step)
        self._checkpoint_step = self.progress.step
        if self._accelerator.is_main_process:
            self._export_average()
        self._accelerator.wait_for_everyone()

    @torch.no_grad()
    def _export_average(self) -> None:
        """Meanwhile the parameters hold what is exported; after it their own values again."""
        parameters, own = list(self._parameters), [p.clone() for p in self._parameters]
        torch._foreach_copy_(parameters, list(self._average.module.parameters()))
        if self._start:
            torch._foreach_lerp_(parameters, self._start, 1 - self._blend)
        try:
            self._objective.export(self._folder / WEIGHTS_FOLDER)
        finally:
            torch._foreach_copy_(parameters, own)


def _groups(parameters: dict[str, nn.Parameter], factors: dict[str, float]) -> list[dict[str, Any]]:
    """The optimizer's groups: parameters whose learning rate has the same factor."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        factor = next((f for start, f in factors.items() if name.startswith(start)), 1.0)
        groups.setdefault(factor, []).append(parameter)
    return [{"params": params, "factor": factor} for factor, params in groups.items()]


@contextmanager
def _stop_event() -> Iterator[threading.Event]:
    """Set by SIGINT and SIGTERM; the step is finished and kept first."""
    stop = threading.Event()
    handlers = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Prefetcher:
    """Draws batches in their order; on a GPU each on a thread of its own, one before it is asked.

    A batch follows from its number alone, so nothing depends on when it was made. On a CPU the
    thread would take from the step what it gives to the batch, and none is used.
    """

    def __init__(self, draw: Callable[[int], Batch], device: torch.device) -> None:
        self._draw = draw
        self._executor: ThreadPoolExecutor | None = None
        if device.type == "cuda":
            # The current device is each thread's own, and `device` may leave its number open.
            current = torch.cuda.current_device()
            self._executor = ThreadPoolExecutor(1, "batches", torch.cuda.set_device, (current,))
        self._futures: dict[int, Future[Batch]] = {}

    def __call__(self, number: int) -> Batch:
        """The batch of that number; raises what `draw` raises."""
        if self._executor is None:
            return self._draw(number)
        numbers = (number, number + 1)
        self._futures = {
            n: self._futures.get(n) or self._executor.submit(self._draw, n) for n in numbers
        }
        return self._futures[number].result()

    def close(self) -> None:
        """Ends the thread; what it made in vain is dropped."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
