"""What each rank of tests/test_distributed.py does: one process, many cases, in float64 where numbers are compared.

Called as ``python -m tests.rank_cases RANK WORLD_SIZE FOLDER``; the answers go to ``FOLDER/answers.RANK.pt``. At its
end the last rank fails once, and then is killed. With names of METHODS after the folder, only their steps are made;
with "falls silent", only that fault.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.launcher import RunContext
from experiments.local.ranks import run_cell_on_ranks
from experiments.runs.folder import RunFolder
from experiments.studies.methods import load_method
from simsiam.data.batches import Batch, Source, make_source
from simsiam.data.dataset import Dataset
from simsiam.data.sets import load, prepare
from simsiam.distributed.ranks import Ranks
from simsiam.distributed.rendezvous import Rendezvous, join
from simsiam.evaluation.linear import LinearProtocol, LogisticProtocol, evaluate_linear
from simsiam.model.batch_norm import convert, synchronise
from simsiam.model.siamese import Siamese
from simsiam.record.curves import merge
from simsiam.settings.checks import validate
from simsiam.settings.fields import Settings, flatten
from simsiam.training.logged import relative_std
from simsiam.training.loop import Hooks, Training, train
from tests import own_methods, pictures
from tests.conftest import SMALL
from tests.own_methods import own

Answers = dict[str, Any]
CPU = torch.device("cpu")
SILENCE = 20.0  # seconds that a rank says nothing, where others wait for a quarter of it

# Methods at smoke scale, trained for 20 steps; switches that compare or remember across the batch, for 5, in which
# every image is seen again.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "SimSiam": ("simsiam", {}),
    "SimCLR": ("simclr", {}),
    "SwAV": ("swav", {}),
    "BYOL": ("byol", {}),
    "MoCo v2": ("moco-v2", {}),
    "MoCo v2, asymmetric, 3 groups over 2 ranks": (
        "moco-v2",
        {"loss.symmetry": "asymmetric", "batch_norm.groups": 3, "batch_size": 36, "target.queue_size": 72},
    ),
    "SimCLR, own statistics for each view, predictor, no gradient to keys": (
        "simclr",
        {"batch_norm.one_forward": False, "predictor.kind": "mlp", "target.stop_gradient": True},
    ),
    "SwAV without stop-gradient": ("swav", {"target.stop_gradient": False}),
    "no stop-gradient": ("simsiam", {"target.stop_gradient": False}),
    "k steps": ("simsiam", {"target.cache_steps": 3}),
    "average of each image": ("simsiam", {"predictor.kind": "none", "target.image_average": 0.8}),
    "frozen predictor, two pairs": ("simsiam", {"predictor.kind": "fixed", "loss.symmetry": "asymmetric-2x"}),
    "Barlow Twins, a loss of one's own": (
        "simsiam",
        {"loss.name": own("loss.name", "barlow_twins"), "predictor.kind": "none", "target.stop_gradient": False},
    ),
    "all parts of one's own": ("simsiam", own_methods.everything()),
    "LARS, groups": ("simsiam", {"optimizer.name": "lars", "batch_norm.groups": 4}),
}


def settings_of(case: str) -> Settings:
    method, changes = METHODS[case]
    flat = flatten(load_method(method, "smoke"))
    size = {"epochs": 3, "batch_size": 32, "data.num_train": 96 if changes else 320, "backbone.width": 4}
    # At the methods' own rates training is chaotic: within 20 steps differences of 1e-16 grow to 1e-8.
    size |= {"optimizer.lr": 0.003, "evaluation.bank_size": None}
    return validate({**flat, **size, **changes})


@cache
def dataset(settings: Any) -> Dataset:
    return load(settings, Path())


def wide(batch: Batch) -> Batch:
    pairs = tuple((x1.double(), x2.double()) for x1, x2 in batch.pairs)
    return Batch(batch.places, pairs, tuple(x.double() for x in batch.more))


class WideTraining(Training):
    """Training in float64, so that what is left between two ways to add up is far below any mistake."""

    def __init__(self, settings: Settings, folder: Path, ranks: Ranks) -> None:
        super().__init__(settings, dataset(settings.data), folder, 1, CPU, Hooks(), ranks)
        self.model.double()
        original = self.source.epoch
        self.source.epoch = lambda *place: map(wide, original(*place))  # type: ignore[method-assign]


def steps(case: str, folder: Path, ranks: Ranks) -> Answers:
    """Some steps: the loss, std and size of the gradient at each, and the whole state after the last."""
    training = WideTraining(settings_of(case), folder, ranks)
    curves = []
    for step in range(5 if METHODS[case][1] else 20):
        epoch, first = divmod(step, training.steps_per_epoch)
        output = training.update(next(iter(training.source.epoch(epoch, first))))
        gradients = [weight.grad for weight in training.model.parameters() if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        curves.append([output.loss.item(), relative_std(*training.views_of_batch(output)), norm.item()])
    return {"curves": torch.tensor(curves, dtype=torch.float64), "model": training.model.state_dict()}


def gather_gradient(ranks: Ranks) -> Tensor:
    """A loss in which every row meets every other; the gradient of the mean over ranks, of this rank's rows."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = nn.Parameter(ranks.own(x).clone())
    gradients = torch.arange(1.0, 7.0, dtype=torch.float64)  # weights of the rows' losses
    similar = (own @ ranks.gather(own).T).exp().sum(1)
    (similar * ranks.own(gradients)).mean().backward()
    assert own.grad is not None
    return ranks.gather(own.grad) / ranks.world_size  # the mean over ranks of a sum in which each row's is one rank's


def batch_norms(ranks: Ranks) -> dict[str, list[Tensor]]:
    """Output, gradients and running statistics of BN layers, whole again."""
    answers = {}
    for shape in ((12, 3), (12, 3, 5), (12, 3, 4, 4)):
        for groups in (1, 3, 4):
            for affine in (True, False):
                draws = torch.Generator().manual_seed(len(shape) + groups)
                make = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
                bn: nn.Module = make(3, affine=affine).double()
                for value in bn.state_dict().values():
                    if value.is_floating_point():
                        value.copy_(torch.rand(value.shape, generator=draws, dtype=torch.float64) + 0.5)
                bn = synchronise(convert(bn, groups), ranks, CPU)
                x = 50 + torch.randn(*shape, generator=draws, dtype=torch.float64)
                weights = torch.randn(*shape, generator=draws, dtype=torch.float64)
                own = ranks.own(x).clone().requires_grad_()
                first, second = bn(own), bn(own * own)  # two forwards before one backward, as of two views
                ((first + second.square()) * ranks.own(weights)).sum().backward()
                assert own.grad is not None
                of_weights = [ranks.sum(weight.grad) for weight in bn.parameters() if weight.grad is not None]
                whole = [ranks.gather(part.detach()) for part in (first, second, own.grad)]
                bn.eval()
                evaluated = ranks.gather(bn(ranks.own(x)).detach())
                key = f"{shape} {groups} {affine}"
                answers[key] = [*whole, *of_weights, *bn.state_dict().values(), evaluated]
    return answers


def images(ranks: Ranks) -> list[Tensor]:
    """The views of two batches, whole again: to the last bit those of one rank."""
    settings = settings_of("SimSiam")
    source = make_source(settings, dataset(settings.data), CPU, ranks)
    return views_of(source, ranks)


def views_of(source: Source, ranks: Ranks) -> list[Tensor]:
    batches = [next(iter(source.epoch(1, first))) for first in (0, 3)]
    return [
        ranks.gather(part)
        for batch in batches
        for part in (batch.places, *(view for pair in batch.pairs for view in pair))
    ]


def files(folder: Path, ranks: Ranks) -> list[Tensor]:
    """As ``images``, of pictures that each rank's loader processes decode; then what the kNN sees of them."""
    if ranks.rank == 0:
        pictures.write(folder, 64, 7)
    settings = validate({**flatten(settings_of("SimSiam")), **pictures.SETTINGS, "data.storage": "files"})
    if ranks.rank == 0:
        prepare(settings.data, folder)
    ranks.broadcast(None)  # the others wait for it
    found = load(settings.data, folder)
    source = make_source(settings, found, CPU, ranks)
    queries = zip(*source.plain("query"), strict=True)
    return views_of(source, ranks) + [ranks.gather(torch.cat(parts), len(found.test)) for parts in queries]


def evaluations(folder: Path, ranks: Ranks, precision: str = "float32") -> list[dict[str, Any]]:
    """A whole run: what it writes."""
    folder.mkdir(exist_ok=True)
    settings = validate({**SMALL, "precision": precision})
    train(settings, dataset(settings.data), folder, attempt=1, device=CPU, ranks=ranks)
    return merge(folder) if ranks.rank == 0 else []


def resumed(folder: Path, ranks: Ranks) -> None:
    """The run of ``evaluations`` again, stopped after 7 steps as only the last rank was asked to, and taken up."""
    folder.mkdir(exist_ok=True)
    settings, seen = validate(SMALL), 0

    def count(step: int) -> None:
        nonlocal seen
        seen = step

    hooks = Hooks(on_step=count, should_stop=lambda: seen >= 7 and ranks.rank == ranks.world_size - 1)
    assert train(settings, dataset(settings.data), folder, attempt=1, device=CPU, hooks=hooks, ranks=ranks) is None
    assert seen == 7
    assert train(settings, dataset(settings.data), folder, attempt=2, device=CPU, ranks=ranks) is not None


def linear(ranks: Ranks) -> list[dict[str, Any]]:
    """Linear evaluation of one network by each kind of protocol, in float32."""
    settings = settings_of("SimSiam")
    images = dataset(settings.data)
    backbone = Siamese(settings, images.num_channels, len(images.train)).backbone
    protocols = [
        LinearProtocol(name="crops", optimizer="lars", batch_size=48, epochs=2, lr=0.5),
        LogisticProtocol(name="plain"),
    ]
    return [evaluate_linear(backbone, settings, images, each, device=CPU, ranks=ranks) for each in protocols]


def diverges(folder: Path, ranks: Ranks) -> str | None:
    """NaN on the images of one rank alone: all agree that the run has diverged."""
    folder.mkdir(exist_ok=True)
    training = Training(validate(SMALL), dataset(validate(SMALL).data), folder, 1, CPU, Hooks(), ranks)
    original = training.source.epoch

    def spoilt(*place: int) -> Any:
        for batch in original(*place):
            if training.step == 4 and ranks.rank == ranks.world_size - 1:
                batch.pairs[0][0][-1] = torch.nan
            yield batch

    training.source.epoch = spoilt  # type: ignore[method-assign]
    return training.run()


def small_buckets(folder: Path, ranks: Ranks, limit: Callable[[int], None]) -> dict[str, Tensor]:
    """Gradients in many buckets are those in one."""
    limit(1000)
    return steps("SimSiam", folder, ranks)["model"]  # type: ignore[no-any-return]


def all_cases(folder: Path, ranks: Ranks) -> Answers:
    import simsiam.distributed.ranks

    def limit(size: int) -> None:
        simsiam.distributed.ranks.BUCKET_BYTES = size

    folder.mkdir(exist_ok=True)
    answers: Answers = {f"steps {case}": steps(case, folder, ranks) for case in METHODS}
    answers["gather"] = gather_gradient(ranks)
    answers["bn"] = batch_norms(ranks)
    answers["images"] = images(ranks)
    answers["files"] = files(folder / "pictures", ranks)
    answers["points"] = evaluations(folder / "whole", ranks)
    answers["bfloat16"] = evaluations(folder / "bfloat16", ranks, "bfloat16")
    resumed(folder / "parts", ranks)
    answers["linear"] = linear(ranks)
    answers["diverges"] = diverges(folder / "diverges", ranks)
    answers["buckets"] = small_buckets(folder, ranks, limit)
    answers["any"] = ranks.any(ranks.rank == 0, False, ranks.rank == ranks.world_size - 1)
    answers["broadcast"] = ranks.broadcast({"rank": ranks.rank, "x": torch.full((3,), ranks.rank)})
    rows = torch.arange(14.0).view(7, 2)
    answers["uneven"] = ranks.gather(ranks.own(rows), 7)
    return answers


def fault(
    name: str, happen: Callable[[], None], rank: int, world_size: int, folder: Path, timeout_seconds: float = 120
) -> Answers:
    """A cell in which something happens to the last rank after 12 steps, past a checkpoint at 10."""
    settings = validate(SMALL)
    original = Training.update

    def update(training: Training, batch: Batch) -> Any:
        if training.step == 12 and rank == world_size - 1:
            happen()
        return original(training, batch)

    Training.update = update  # type: ignore[method-assign]
    context = RunContext(folder / "faults", CPU, 1, should_stop=lambda: False, on_progress=lambda progress: None)
    rendezvous = Rendezvous(rank, world_size, folder / f"rendezvous.{name}.json")
    started = time.monotonic()
    result = run_cell_on_ranks(
        name, settings, dataset(settings.data), context, rendezvous, timeout_seconds=timeout_seconds
    )
    Training.update = original  # type: ignore[method-assign]
    status = RunFolder(context.runs, name).status().state
    return {"state": result.state, "reason": result.reason, "status": status, "seconds": time.monotonic() - started}


def fail() -> None:
    raise ArithmeticError("the twelfth step is too hard")


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(rank: int, world_size: int, folder: Path, only: list[str]) -> None:
    torch.set_num_threads(1)
    if only == ["falls silent"]:
        answer = fault("is-silent", lambda: time.sleep(SILENCE), rank, world_size, folder, SILENCE / 4)
        return torch.save(answer, folder / f"answers.{rank}.pt")
    rendezvous = Rendezvous(rank, world_size, folder / "rendezvous.json")
    with join(rendezvous, CPU, timeout_seconds=120) as group:
        if only:
            answers = {f"steps {case}": steps(case, folder, group.ranks) for case in only}
            return torch.save(answers, folder / f"answers.{rank}.pt")
        answers = all_cases(folder / "runs", group.ranks)
    for name, happen in (("fails", fail), ("is-killed", be_killed)):
        torch.save(answers, folder / f"answers.{rank}.pt")
        answers[name] = fault(name, happen, rank, world_size, folder)
    torch.save(answers, folder / f"answers.{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
