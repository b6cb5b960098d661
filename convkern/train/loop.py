"""The training loop: a run in memory, its steps, epochs, checkpoints and pictures."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import convkern as ck

from ..blas import own_products
from ..capture import CapturedStep, own_stream
from ..device import memory_error
from ..random import seed_noise
from . import checkpoint as checkpoints
from . import divergence, feeding
from . import folder as folders
from .checkpoint import BEST, LAST, Checkpoint, Facts, Position
from .config import Config
from .evaluation import build_model, evaluate_model
from .health import Health
from .interrupt import Interrupted, StopRequest
from .metrics import MetricsFile
from .progress import Progress
from .techniques import Schedule, build_average, build_optimizer
from .tensorboard import Logs


@dataclass(frozen=True)
class Result:
    """What a finished run leaves.

    Parameters
    ----------
    folder : Path
        Holds the checkpoints, metrics and pictures.
    accuracy : float
        Of the last epoch's weights on the test images, 0 to 1.
    best_accuracy : float
        Of the best epoch's.
    best_epoch : int
        From 1.
    """

    folder: Path
    accuracy: float
    best_accuracy: float
    best_epoch: int


class Trainer:
    """A run in memory: data, model, optimizer and how far it has come.

    Parameters
    ----------
    config : Config

    Attributes
    ----------
    folder : Path
        Where checkpoints, metrics and pictures go; set it before `save` or `run`.
    """

    folder: Path

    def __init__(self, config: Config) -> None:
        self.config = config
        train_set, self.test_set = feeding.load_split(config, "train"), feeding.load_split(config, "test")
        mean, std = feeding.statistics(train_set)
        self.facts = Facts(
            model=config.model,
            shape=train_set.shape,
            mean=mean,
            std=std,
            classes=train_set.classes,
            seed=config.seed,
            data_crc=self.test_set.checksum(train_set.checksum()),
        )
        self.loader = feeding.build_loader(config, train_set, mean, std)
        self.position = Position()
        self.device = ck.device.check(config.device)
        self.model = build_model(self.facts).to(self.device)
        self.optimizer = build_optimizer(config, self.model)
        self.schedule = Schedule(config, self.optimizer, len(self.loader))
        self.average = build_average(config, self.model)
        self.health = Health(self.model)
        self.logs: Logs | None = None
        self.captured: CapturedStep | None = None
        self._whole_met = False  # a whole batch of this process, which made the optimizer's state

    def restore(self, saved: Checkpoint) -> None:
        """Take over everything that a checkpoint holds.

        Raises
        ------
        ValueError
            If it belongs to other data or another seed.
        """
        names = [field.name for field in dataclasses.fields(Facts)]
        differing = [name for name in names if getattr(saved.facts, name) != getattr(self.facts, name)]
        if differing:
            raise ValueError(
                f"{self.folder} cannot be resumed: its data or model are not those of its checkpoint "
                f"({', '.join(differing)} differ)"
            )
        self.position = saved.position
        self.model.load_state_dict(saved.weights)
        self.optimizer.load_state_dict(saved.optimizer)
        self.schedule.load_state_dict(saved.schedule)
        if self.average is not None:
            self.average.load_state_dict(saved.average)

    def save(self, *names: str) -> None:
        """Write a checkpoint of this moment into the run's folder, under each name."""
        state = Checkpoint(
            self.facts,
            self.position,
            self.model.state_dict(),
            self.optimizer.state_dict(),
            self.schedule.state_dict(),
            {} if self.average is None else self.average.state_dict(),
        )
        for name in names:
            checkpoints.save(self.folder / name, state)

    def run(self, progress: Progress) -> Result:
        """Train until the last epoch, then draw the pictures.

        Raises
        ------
        Interrupted
            On Ctrl-C.
        """
        metrics = MetricsFile(self.folder / folders.METRICS)
        history = metrics.rewind(self.position.epoch)
        self.logs = Logs(self.folder, self._steps_made) if self.config.tensorboard else None
        try:
            with StopRequest() as stop, own_stream() if self.config.capture else nullcontext():
                progress.open(self.position)
                while self.position.epoch < self.config.epochs:
                    self._train_epoch(stop, progress)
                    record = self._end_epoch(stop, metrics)
                    history.append(record)
                    progress.epoch(record)
                    self._act_on(stop)
            progress.close()
            accuracy = self._draw(history)
        except Interrupted:
            raise
        except KeyboardInterrupt:  # the second Ctrl-C, or one while the pictures are drawn
            raise Interrupted(self.folder) from None
        finally:
            progress.close()
            if self.logs is not None:
                self.logs.close()
        return Result(self.folder, accuracy, self.position.best_accuracy, self.position.best_epoch)

    def warm_up(self, progress: Progress) -> None:
        """Compile what the run needs, on a model and an optimizer of the same kind that are thrown away."""
        model = build_model(self.facts).to(self.device)
        optimizer = build_optimizer(self.config, model)
        products = own_products() if self.config.capture else nullcontext()
        with products, progress.compiling(), np.errstate(over="ignore", invalid="ignore"):
            for count in _batch_counts(len(self.loader.dataset), self.config.batch_size):
                x, labels = self._blank(count)
                self._loss(model(x), labels).backward()
                optimizer.step()
            model.eval()
            with ck.no_grad():
                for count in _batch_counts(len(self.test_set), self.config.batch_size):
                    x, labels = self._blank(count)
                    ck.nn.functional.cross_entropy(model(x), labels)

    def _loss(self, logits: Any, labels: np.ndarray) -> Any:
        return ck.nn.functional.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)

    def _clip(self) -> None:
        """Keep the gradients as small as the configuration says."""
        if self.config.clip_norm is not None:
            ck.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        if self.config.clip_value is not None:
            ck.nn.utils.clip_grad_value_(self.model.parameters(), self.config.clip_value)

    @property
    def _tested(self) -> Any:
        """The model that is tested and drawn: the averaged one, once there is an average."""
        return self.model if self.average is None else self.average.module

    @property
    def _steps_made(self) -> int:
        """Since the run began."""
        return self.position.epoch * len(self.loader) + self.position.step

    def _blank(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        return self._placed(np.zeros((count, *self.facts.shape), np.float32), np.zeros(count, np.int64))

    def _placed(self, x: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A batch on the model's device."""
        return ck.device.moved(x, self.device), ck.device.moved(labels, self.device)

    def _train_epoch(self, stop: StopRequest, progress: Progress) -> None:
        """Make the steps of an epoch that are still to be made."""
        position = self.position
        self.model.train()
        self.loader.set_epoch(position.epoch)
        began, waited = time.perf_counter(), position.waited
        with self.loader.batches(start=position.step) as batches:
            for x, labels in batches:
                position.waited = waited + self.loader.waiting.waited
                loss, right = self._step_in_memory(x, labels)
                position.step += 1
                position.loss_sum += loss * len(labels)
                position.correct += right
                position.seen += len(labels)
                now = time.perf_counter()
                position.seconds += now - began
                began = now
                progress.step(position)
                for line in self.health.warnings():
                    progress.say(f"warning: {line}")
                    if self.logs is not None:
                        self.logs.warning(self._steps_made, line)
                if self.logs is not None:
                    self.logs.step(self._steps_made, loss, self.optimizer.param_groups[0]["lr"])
                self._act_on(stop)

    def _step_in_memory(self, x: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        """`_step`; where a GPU's memory runs out, the error tells the bytes and weights and optimizer are as before."""
        try:
            return self._step(*self._placed(x, labels))
        except MemoryError as error:
            told = memory_error(error)
            if told is error:
                raise
            raise told from error

    def _step(self, x: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        """Make one step on a batch (B, C, H, W); returns its mean loss and how many images were right before it."""
        position = self.position
        self._start_noise()
        captured = self._captured_step(x, labels)
        with np.errstate(over="ignore", invalid="ignore"):  # a loss that is not finite is told in our own words
            if captured is not None:
                loss, logits = captured.forward(x, labels)
            else:
                with self.health.forward(self._steps_made):
                    loss, logits = self._forward(x, labels)
            value = float(loss.item())
            if not math.isfinite(value):
                self._start_noise()  # the layers drop again what they dropped
                raise ValueError(self._diverged(value, f"epoch {position.epoch + 1}, step {position.step + 1}", [x]))
            self.schedule.begin_step(self._steps_made)
            if captured is not None:
                captured.backward()
            else:
                self.optimizer.zero_grad()
                loss.backward()
            self.health.gradients(self._steps_made, value, position.loss_sum / (position.seen or math.nan))
            self._clip()
            if captured is not None:
                captured.update()
            else:
                self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
        return value, int((logits.data.argmax(axis=1) == labels).sum())

    def _forward(self, x: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
        """The loss, and the logits (B, classes)."""
        logits = self.model(x)
        return self._loss(logits, labels), logits

    def _captured_step(self, x: np.ndarray, labels: np.ndarray) -> CapturedStep | None:
        """What replays this step; None where it runs eagerly."""
        if not self.config.capture or len(x) != self.config.batch_size:
            return None
        if not self._whole_met or self.health.looks(self._steps_made):
            self._whole_met = True
            return None
        if self.captured is None:
            self.captured = CapturedStep(self.model, self._forward, self.optimizer, x, labels)
        return self.captured

    def _start_noise(self) -> None:
        """The draws of dropout and the like belong to the step: a resumed run finds the same."""
        seed_noise(self.config.seed, self._steps_made)

    def _diverged(self, loss: float, place: str, batches: Iterable[np.ndarray]) -> str:
        return divergence.describe(loss, place, self.model, batches, self.folder, self.config.lr)

    def _end_epoch(self, stop: StopRequest, metrics: MetricsFile) -> dict[str, Any]:
        """Test the model, then write the metrics and the checkpoints."""
        began = time.perf_counter()
        found = evaluate_model(
            self._tested,
            self.test_set,
            self.facts,
            self.config.batch_size,
            between=lambda: self._act_on(stop),
            workers=self.config.workers,
        )
        done = self.position
        if not math.isfinite(found.loss):
            tested = ck.data.DataLoader(self.test_set, self.config.batch_size, mean=self.facts.mean, std=self.facts.std)
            place = f"the test after epoch {done.epoch + 1}"
            raise ValueError(self._diverged(found.loss, place, (self._placed(*batch)[0] for batch in tested)))
        record = {
            "epoch": done.epoch + 1,
            "train_loss": done.loss_sum / done.seen,
            "train_accuracy": done.correct / done.seen,
            "test_loss": found.loss,
            "test_accuracy": found.accuracy,
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": done.seconds,
            "test_seconds": time.perf_counter() - began,
            "images_per_second": done.seen / done.seconds,
            "idle_share": done.waited / done.seconds,
        }
        if self.logs is not None:
            self.logs.epoch(self._steps_made, record, self.model)
        self.schedule.end_epoch(self._steps_made, found.loss)
        better = found.accuracy > done.best_accuracy
        best = (found.accuracy, done.epoch + 1) if better else (done.best_accuracy, done.best_epoch)
        self.position = Position(epoch=done.epoch + 1, best_accuracy=best[0], best_epoch=best[1])
        # The checkpoint comes last: whatever a crash leaves in the other files is then dropped or written again.
        metrics.append(record)
        self.save(*([BEST] if better else []), LAST)
        return record

    def _act_on(self, stop: StopRequest) -> None:
        """Between two steps, where weights and optimizer agree: save and leave if Ctrl-C was pressed."""
        if stop.requested:
            self.save(LAST)
            raise Interrupted(self.folder)

    def _draw(self, history: list[dict[str, Any]]) -> float:
        """Draw the pictures; returns the accuracy of the weights they show."""
        from . import plots

        found = evaluate_model(
            self._tested, self.test_set, self.facts, self.config.batch_size, workers=self.config.workers
        )
        self._tested.cpu()  # pictures are drawn there
        plots.curves(history, self.folder / folders.CURVES)
        plots.confusion(found.confusion, found.classes, self.folder / folders.CONFUSION)
        plots.filters(self._tested, self.folder / folders.FILTERS)
        plots.features(self._tested, self.test_set, self.facts, self.folder / folders.FEATURES)
        plots.gradient_flow(self._with_gradients(), self.folder / folders.GRADIENTS)
        return found.accuracy

    def _with_gradients(self) -> Any:
        """A copy of the model, with the gradients of the run's first batch."""
        model = build_model(self.facts)
        model.load_state_dict(self.model.state_dict())
        self.loader.set_epoch(0)
        x, labels = next(iter(self.loader))
        self._start_noise()
        self._loss(model(x), labels).backward()
        return model


def _batch_counts(images: int, batch_size: int) -> list[int]:
    """The numbers of images that batches have: the whole ones, and the last if it has fewer."""
    counts = {min(batch_size, images), images % batch_size} - {0}
    return sorted(counts, reverse=True)
