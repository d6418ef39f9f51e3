"""The training loop: settings and images in, curves and a checkpoint out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from simsiam.data.batches import Batch, evaluated, held_out_views, make_source, shuffled
from simsiam.data.dataset import Dataset
from simsiam.distributed.ranks import ONE_RANK, Gradients, Ranks
from simsiam.errors import CheckpointError
from simsiam.evaluation.diagnostics import effective_rank, is_collapsed
from simsiam.evaluation.knn import knn_classes
from simsiam.evaluation.linear import whiten
from simsiam.evaluation.logistic import fit_logistic
from simsiam.model.batch_norm import synchronise
from simsiam.model.siamese import Output, Siamese
from simsiam.randomness import derive
from simsiam.record import checkpoint
from simsiam.record.curves import MetricsWriter, Point, finite
from simsiam.settings.checks import check_ranks
from simsiam.settings.fields import Settings
from simsiam.settings.own import own_parts
from simsiam.settings.own_code import look_in
from simsiam.training import logged
from simsiam.training.cached_targets import CachedTargets
from simsiam.training.captured import CapturedStep, Inputs
from simsiam.training.optim import make_optimizer, set_rates

Outcome = Literal["healthy", "collapsed", "diverged"]


@dataclass
class Hooks:
    """What a launcher may do to a run, and is told of it; with several ranks each has its own."""

    should_stop: Callable[[], bool] = lambda: False  # asked after each step; all stop when one is to
    before_publishing: Callable[[], None] = lambda: None  # raises if this attempt no longer owns the run
    on_point: Callable[[Point], None] = lambda point: None  # told of each logged point
    on_step: Callable[[int], None] = lambda step: None  # told of each step
    on_saved: Callable[[int], None] = lambda step: None  # told of each checkpoint, once it is published
    checkpoint_seconds: float = 60.0  # between two checkpoints within an epoch


def train(
    settings: Settings,
    dataset: Dataset,
    folder: Path,
    *,
    attempt: int,
    device: torch.device,
    hooks: Hooks | None = None,
    ranks: Ranks = ONE_RANK,
) -> Outcome | None:
    """Train one run, from its checkpoint in ``folder`` if there is one, to its end.

    Writes ``metrics.<attempt>.jsonl`` and ``checkpoint.pt`` there. Returns how the run ended, or None if
    ``hooks.should_stop`` asked it to stop, in which case it has left a checkpoint to go on from.

    With several ranks, all call it with the same arguments, but for the device and the hooks; rank 0 alone reads and
    writes the folder. Raises RankLostError when one of them is gone.
    """
    return Training(settings, dataset, folder, attempt, device, hooks or Hooks(), ranks).run()


class Training:
    """The state of a run between two steps."""

    def __init__(
        self,
        settings: Settings,
        dataset: Dataset,
        folder: Path,
        attempt: int,
        device: torch.device,
        hooks: Hooks,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        check_ranks(settings, ranks.world_size)
        self.settings, self.folder, self.attempt, self.device, self.hooks = settings, folder, attempt, device, hooks
        self.ranks = ranks
        self.has_own_parts = bool(own_parts(settings))
        look_in(folder.parent)
        self.source = make_source(settings, dataset, device, ranks)
        self.dataset = dataset
        self.num_queries = len(evaluated(settings, dataset, "query"))
        self.num_bank = len(evaluated(settings, dataset, "bank"))
        model = Siamese(settings, dataset.num_channels, len(dataset.train), ranks)
        self.model = model.to(device).to(memory_format=torch.channels_last)
        synchronise(self.model, ranks, device)
        self.gradients = Gradients(ranks, self.model.parameters())
        self.optimizer = make_optimizer(settings, self.model)
        self.steps_per_epoch = len(dataset.train) // settings.batch_size
        self.num_steps = settings.epochs * self.steps_per_epoch
        self.cache = CachedTargets(settings, self.steps_per_epoch)
        # With several ranks there are collectives in the step, and one's own parts may do what no graph can hold.
        captures = settings.execution.cuda_graph and ranks.world_size == 1 and not self.has_own_parts
        self.captured = CapturedStep(self.forward_and_backward, self.model.buffers()) if captures else None
        self.step = 0
        self.collapsed_evaluations = 0
        self.held_out: logged.HeldOut | None = None  # of the last evaluation, to be published
        # The step at which the loss first was NaN or infinite; on the device, so that no step waits for it.
        self.diverged_at = torch.full((), self.num_steps + 1, device=device)
        # All go on from what rank 0 sees, whatever a network file system shows to the others.
        resumed = ranks.broadcast(checkpoint.load(folder) if ranks.rank == 0 else None)
        self.is_new = resumed is None
        if resumed is not None:
            self.load_state(resumed)
        self.metrics = MetricsWriter(folder, attempt, None if self.is_new else self.step) if ranks.rank == 0 else None
        self.last_checkpoint = self.last_log = time.monotonic()
        self.last_logged_step = self.step

    def state(self) -> checkpoint.State:
        """All that the run's future depends on; random numbers need none of it."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "collapsed_evaluations": self.collapsed_evaluations,
            "cache": self.cache.state(),
        }

    def load_state(self, state: checkpoint.State) -> None:
        """Go on from where :meth:`state` was taken."""
        if "optimizer" not in state:
            raise CheckpointError(
                f"{self.folder}: only the weights of this run were kept (gc); move the folder away to train it anew"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.collapsed_evaluations = state["collapsed_evaluations"]
        if state["cache"] and not self.cache.starts_at(self.step):
            first = self.step - self.step % self.cache.num_steps
            with self.precision():
                self.cache.resume(self.model, self.batches_from(first, self.cache.num_steps), state["cache"])

    def run(self) -> Outcome | None:
        """See :func:`train`."""
        try:
            return self._run()
        finally:
            if self.metrics is not None:
                self.metrics.close()

    def _run(self) -> Outcome | None:
        evaluation = self.settings.evaluation
        if self.is_new:
            self.evaluate(None)  # the untrained network: the line that learning has to rise above
            self.save()
        while self.step < self.num_steps and not self._collapsed_for_good():
            epoch, first_batch = divmod(self.step, self.steps_per_epoch)
            for batch in self.source.epoch(epoch, first_batch):
                output = self.update(batch)
                self.hooks.on_step(self.step)
                epoch_ends, ends = self.step % self.steps_per_epoch == 0, self.step == self.num_steps
                if epoch_ends or self.step == 1 or self.step % evaluation.log_every_steps == 0:
                    self.log(output)
                    if self.diverged():
                        return "diverged"
                if epoch_ends and ((epoch + 1) % evaluation.every_epochs == 0 or ends):
                    self.evaluate(output)
                is_due = time.monotonic() - self.last_checkpoint > self.hooks.checkpoint_seconds
                # Any rank may be asked to stop; when to save is rank 0's to say.
                stop, is_due = self.ranks.any(self.hooks.should_stop() and not ends, is_due and self.ranks.rank == 0)
                if stop or epoch_ends or is_due:
                    if self.diverged():
                        return "diverged"
                    self.save()
                if stop:
                    return None
        return "collapsed" if self.collapsed_evaluations else "healthy"

    def update(self, batch: Batch) -> Output:
        """One step of Algorithm 1: the loss of two views, its gradient, an update of f and h, and of what follows them.

        With two pairs of views (Sec. 4.6, "2x") the loss is the mean over both; the first one's output is returned.
        The loss that is returned is the whole batch's and has no weight, the rest is of this rank's images; the
        gradients are those of the weighted loss.
        """
        set_rates(self.optimizer, self.settings, self.step, self.steps_per_epoch, self.num_steps)
        if self.has_own_parts:  # they may draw, as dropout does, and a resume shall draw the same
            torch.manual_seed(derive(self.settings.seed, "own parts", self.step, self.ranks.rank))
        if self.cache.starts_at(self.step):
            with self.precision():
                self.cache.fill(self.model, self.batches_from(self.step, self.cache.num_steps))
        self.model.before_forward(self.step, self.num_steps)
        inputs = Inputs(
            batch.pairs,
            batch.more,
            batch.places.to(self.device, non_blocking=True),
            self.model.shuffle(self.step, self.device),
            self.cache.of(self.step),
        )
        output = self.forward_and_backward(inputs) if self.captured is None else self.captured(inputs)
        self.gradients.finish()
        self.optimizer.step()
        self.model.after_step(output, batch.places, self.step, self.num_steps)
        self.step += 1
        output = output._replace(loss=self.ranks.mean(output.loss.detach()))
        first_bad = torch.where(output.loss.isfinite(), self.num_steps + 1, self.step)
        torch.minimum(self.diverged_at, first_bad, out=self.diverged_at)
        return output

    def forward_and_backward(self, inputs: Inputs) -> Output:
        """The networks' part of a step. Leaves the gradients of the weighted loss; the loss returned has no weight."""
        with self.precision():
            outputs: list[Output] = [
                self.model(*pair, more=inputs.more, index=inputs.places, shuffle=inputs.shuffle, cached=cached)
                for pair, cached in itertools.zip_longest(inputs.pairs, inputs.cached)
            ]
        loss = torch.stack([output.loss for output in outputs]).mean()
        self.optimizer.zero_grad()
        (self.settings.loss.weight * loss).backward()  # type: ignore[no-untyped-call]
        return outputs[0]._replace(loss=loss)

    def batches_from(self, step: int, num: int) -> Iterator[Batch]:
        """The batches of the next ``num`` steps from ``step`` on, over the ends of epochs, but not of the run."""
        last = min(step + num, self.num_steps)
        while step < last:
            epoch, first_batch = divmod(step, self.steps_per_epoch)
            for batch in itertools.islice(self.source.epoch(epoch, first_batch), last - step):
                yield batch
                step += 1

    def precision(self) -> torch.autocast:
        """The context in which the networks run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16")

    def diverged(self) -> bool:
        """Whether the loss has been NaN or infinite; if so, says so in the curves, with the step."""
        step = int(self.diverged_at.item())
        if step > self.num_steps:
            return False
        self._write({"epoch": step / self.steps_per_epoch, "step": step, "diverged": True})
        return True

    def log(self, output: Output) -> None:
        """A point of the training curves, from the batch of the step just made."""
        z1, z2 = self.views_of_batch(output)
        now = time.monotonic()
        images = (self.step - self.last_logged_step) * self.settings.batch_size
        self._write(
            {
                "epoch": self.step / self.steps_per_epoch,
                "step": self.step,
                "loss": output.loss.item(),
                "lr": self.optimizer.param_groups[0]["lr"],
                **logged.of_step(self.model, z1, z2, more=self.settings.evaluation.diagnostics),
                "images_per_s": images / max(now - self.last_log, 1e-9),
            }
        )
        self.last_log, self.last_logged_step = time.monotonic(), self.step

    def views_of_batch(self, output: Output) -> tuple[Tensor, Tensor]:
        """z1, z2 (B, d) of the whole batch, of all ranks."""
        return self.ranks.gather(output.z1.detach()), self.ranks.gather(output.z2.detach())

    def evaluate(self, output: Output | None) -> None:
        """Accuracy of classifiers on backbone features, effective rank of held-out z, and whether z has collapsed.

        The weighted kNN at each evaluation; the linear classifier before the first step and at the end of the run.
        ``output`` is that of the last step; None before the first.
        """
        started = time.monotonic()
        evaluation = self.settings.evaluation
        self.model.eval()
        with torch.inference_mode():
            bank, bank_labels = (self.ranks.gather(part, self.num_bank) for part in self.features("bank"))
            queries, labels = self.features("query")
            classes = knn_classes(
                bank, bank_labels, queries, k=evaluation.knn_k, temperature=evaluation.knn_temperature
            )
            queries, labels, classes = (
                self.ranks.gather(part, self.num_queries) for part in (queries, labels, classes)
            )
            sample = shuffled(self.num_queries, 4 * self.settings.projector.output_dim, "z")
            z = self.model.projector(queries[torch.from_numpy(sample).to(self.device)])
            rank = effective_rank(z)
            more: Point = {}
            if evaluation.diagnostics:
                views = held_out_views(self.settings, self.dataset, self.encode, self.device, self.ranks)
                more = logged.of_evaluation(queries, z, views)
        self.model.train()
        if output is not None:
            std = logged.relative_std(*self.views_of_batch(output))
            collapsed = self.ranks.broadcast(is_collapsed(self.settings, std, rank))
            self.collapsed_evaluations = self.collapsed_evaluations + 1 if collapsed else 0
        by_classifier = {"knn": classes}
        if evaluation.linear and (self.step in (0, self.num_steps) or self._collapsed_for_good()):
            linear = self.linear_classes(bank, bank_labels, queries)
            by_classifier |= {} if linear is None else {"linear": linear}
        held_out = logged.HeldOut(z, sample, queries, labels, by_classifier, self.dataset.classes)
        point: Point = {**held_out.correctness(), "num_queries": self.num_queries, "effective_rank": rank, **more}
        if self.source.replaced:  # of rank 0 alone
            point["replaced_images"] = len(self.source.replaced)
        self._write({"epoch": self.step / self.steps_per_epoch, "step": self.step, **point})
        self.held_out = held_out if evaluation.diagnostics else None
        self.last_log += time.monotonic() - started  # so that images_per_s is the speed of training alone

    @torch.no_grad()
    def linear_classes(self, bank: Tensor, bank_labels: Tensor, queries: Tensor) -> Tensor | None:
        """The class (N,) of each query by a linear classifier fitted to the bank; None where that cannot be done.

        On rank 0 alone, which writes the curves; features that are not finite can be fitted by none.
        """
        if self.ranks.rank > 0 or not (bank.isfinite().all() and queries.isfinite().all()):
            return None
        bank, queries = whiten(bank, queries)
        classes: Tensor = fit_logistic(bank, bank_labels, len(self.dataset.classes))(queries).argmax(1)
        return classes

    def encode(self, images: Tensor) -> Tensor:
        """z (N, d) of images (N, C, S, S)."""
        with self.precision():
            z: Tensor = self.model.projector(self.model.backbone(images)).float()
        return z

    def features(self, split: Literal["bank", "query"]) -> tuple[Tensor, Tensor]:
        """Pooled backbone features (N, num_features) of this rank's share of unaugmented images, and their labels."""
        features, labels = [], []
        for images, truth in self.source.plain(split):
            with self.precision():
                features.append(self.model.backbone(images).float())
            labels.append(truth)
        return torch.cat(features), torch.cat(labels)

    def save(self) -> None:
        """Publish a checkpoint; the points up to its step are on disk before it is. All ranks hold the same state."""
        if self.metrics is not None:
            self.hooks.before_publishing()
            self.metrics.sync()
            if self.held_out is not None:
                self.held_out.save(self.folder, self.step, self.attempt)
                self.held_out = None
            checkpoint.save(self.folder, self.state(), self.attempt)
        self.last_checkpoint = time.monotonic()
        self.hooks.on_saved(self.step)

    def _collapsed_for_good(self) -> bool:
        limit = self.settings.evaluation.stop_after_collapsed
        return 0 < limit <= self.collapsed_evaluations

    def _write(self, point: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.write(point)
        self.hooks.on_point(finite(point))
