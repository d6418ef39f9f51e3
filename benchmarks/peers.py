"""The peers with the paper's distribution of views (App. A), set up as their documentation says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.images import MEAN, STD
from simsiam.data.dataset import Dataset, Split
from simsiam.model.backbones import make_backbone
from simsiam.settings.fields import Settings


def lightly_transform(size: int, blur: float) -> Callable[[Any], list[Tensor]]:
    """lightly's SimSiamTransform: a Pillow image -> two views."""
    from lightly.transforms import SimSiamTransform

    transform: Callable[[Any], list[Tensor]] = SimSiamTransform(
        input_size=size, gaussian_blur=blur, normalize={"mean": list(MEAN), "std": list(STD)}
    )
    return transform


def torchvision_transform(size: int, blur: float) -> Callable[[Any], list[Tensor]]:
    """The pipeline of the authors' release on Pillow images, its blur with Pillow's filter."""
    import random

    from PIL import ImageFilter
    from torchvision import transforms

    def gaussian_blur(image: Any) -> Any:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))

    steps = [
        transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        *([transforms.RandomApply([gaussian_blur], p=blur)] if blur else []),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    one = transforms.Compose(steps)
    return lambda image: [one(image), one(image)]


def kornia_views(images: Tensor, blur: float) -> Callable[[], tuple[Tensor, Tensor]]:
    """kornia's batched augmentations of (N, 3, S, S) uint8 images."""
    import kornia.augmentation as K

    size = images.shape[-1]
    steps = [
        K.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        *([K.RandomGaussianBlur((5, 5), (0.1, 2.0), p=blur)] if blur else []),
        K.RandomHorizontalFlip(),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    ]
    one = torch.nn.Sequential(*steps).to(images.device)

    def run() -> tuple[Tensor, Tensor]:
        x = images.float() / 255
        return one(x), one(x)

    return run


def lightly_loader(dataset: Dataset, batch_size: int, workers: int) -> Any:
    """Images in memory through lightly's transform in a DataLoader, as in its tutorial: batches of (views, labels)."""
    from PIL import Image
    from torch.utils.data import DataLoader
    from torch.utils.data import Dataset as TorchDataset

    assert isinstance(dataset.train, Split)
    split, transform = dataset.train, lightly_transform(32, 0.0)

    class Images(TorchDataset[Any]):
        def __len__(self) -> int:
            return len(split)

        def __getitem__(self, place: int) -> tuple[list[Tensor], int]:
            return transform(Image.fromarray(split.images[place].transpose(1, 2, 0))), int(split.labels[place])

    return DataLoader(
        Images(), batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )


class LightlySimSiam:
    """lightly's heads, loss and training step around our backbone, with the same layers and the same recipe.

    Its own SimSiamProjectionHead has three layers and an output BN without scale: the heads here are built from the
    blocks that it is built from. As in Sec. 4.2 the predictor's rate does not decay.
    """

    def __init__(self, settings: Settings, device: torch.device | None = None) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import ProjectionHead
        from torch.nn import BatchNorm1d, ReLU

        projector, predictor = settings.projector, settings.predictor
        hidden, dim = projector.hidden_dim, projector.output_dim
        self.backbone, num_features = make_backbone(settings.backbone, 3)
        widths = [num_features, *[hidden] * (projector.num_layers - 1)]
        blocks = [(into, out, BatchNorm1d(out), ReLU()) for into, out in itertools.pairwise(widths)]
        self.projection = ProjectionHead([*blocks, (widths[-1], dim, BatchNorm1d(dim), None)])
        narrow = predictor.hidden_dim
        self.prediction = ProjectionHead([(dim, narrow, BatchNorm1d(narrow), ReLU()), (narrow, dim, None, None)])
        for part in (self.backbone, self.projection, self.prediction):
            part.to(device)
        self.criterion = NegativeCosineSimilarity()
        self.rate = settings.optimizer.lr * settings.batch_size / 256
        encoder = [*self.backbone.parameters(), *self.projection.parameters()]
        self.optimizer = torch.optim.SGD(
            [{"params": encoder}, {"params": list(self.prediction.parameters())}],
            self.rate,
            settings.optimizer.momentum,
            weight_decay=settings.optimizer.weight_decay,
        )

    def decay(self, share: float) -> None:
        """The encoder's rate after ``share`` of all steps: a half-period cosine."""
        self.optimizer.param_groups[0]["lr"] = self.rate * (1 + math.cos(math.pi * share)) / 2

    def step(self, x1: Tensor, x2: Tensor) -> Tensor:
        """One update."""
        z1, z2 = (self.projection(self.backbone(x)) for x in (x1, x2))
        p1, p2 = self.prediction(z1), self.prediction(z2)
        loss: Tensor = 0.5 * (self.criterion(z1.detach(), p2) + self.criterion(z2.detach(), p1))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss
