"""NT-Xent, and SwAV with Sinkhorn's codes, forward and backward, batch 512, 128-d: ``python -m benchmarks.losses``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Bench, Contender, Reach
from simsiam.model.losses import nt_xent, swapped_prediction
from simsiam.model.targets import Prototypes, sinkhorn

BATCH, DIM = 512, 128


def main() -> None:
    from lightly.loss import NTXentLoss, SwaVLoss
    from lightly.models.modules import SwaVPrototypes

    bench = Bench("losses", "NT-Xent and SwAV, forward and backward.")
    draws = torch.Generator().manual_seed(0)
    z1 = torch.randn(BATCH, DIM, generator=draws).requires_grad_()
    z2 = (z1.detach() + torch.randn(BATCH, DIM, generator=draws)).requires_grad_()
    num = 5 if bench.quick else 20
    values: dict[str, float] = {}

    def steps(name: str, loss: Callable[[], Tensor], weight: Tensor | None = None) -> Contender:
        leaves = [leaf for leaf in (z1, z2, weight) if leaf is not None]

        def run() -> None:
            for _ in range(num):
                value = loss()
                torch.autograd.grad(value, leaves)
            values[name] = value.item()

        return Contender(name, run, num)

    theirs = NTXentLoss(temperature=0.1)
    bench.compare(
        f"NT-Xent, forward and backward, batch {BATCH}, {DIM}-d",
        "steps/s per core",
        steps("ours", lambda: nt_xent(z1, z2, z1, z2, 0.1)),
        [(steps("lightly", lambda: theirs(z1, z2)), Reach(1))],
        repeats=bench.repeats(25),
    )
    torch.testing.assert_close(values["ours"], values["lightly"], rtol=1e-4, atol=1e-4)

    for num_prototypes in (256, 3000):
        prototypes = Prototypes(DIM, num_prototypes)
        lightly_prototypes = SwaVPrototypes(DIM, num_prototypes)
        # lightly normalises the weight itself, and expects z that is normalised.
        lightly_prototypes.heads[0].bias.data.zero_()
        lightly_prototypes.heads[0].weight.data.copy_(F.normalize(prototypes.weight.data, dim=1))
        criterion = SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)

        def ours(prototypes: Prototypes = prototypes) -> Tensor:
            scores1, scores2 = prototypes(z1), prototypes(z2)
            code1, code2 = (sinkhorn(scores.detach(), 0.05, 3) for scores in (scores1, scores2))
            return (swapped_prediction(scores1, code2, 0.1) + swapped_prediction(scores2, code1, 0.1)) / 2

        def lightly(prototypes: SwaVPrototypes = lightly_prototypes, criterion: SwaVLoss = criterion) -> Tensor:
            prototypes.normalize()
            scores = [prototypes(F.normalize(z, dim=1)) for z in (z1, z2)]
            loss: Tensor = criterion(scores, [])
            return loss

        bench.compare(
            f"SwAV with Sinkhorn, forward and backward, batch {BATCH}, {DIM}-d, {num_prototypes} prototypes",
            "steps/s per core",
            steps("ours", ours, prototypes.weight),
            [(steps("lightly", lightly, lightly_prototypes.heads[0].weight), Reach(1))],
            repeats=bench.repeats(25),
        )
        torch.testing.assert_close(values["ours"], values["lightly"], rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    main()
