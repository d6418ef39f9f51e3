"""One step on generated images, to find what is wrong with a part of the user's own before anything runs."""

from __future__ import annotations

import torch

from simsiam.data.batches import num_pairs, own_views
from simsiam.model.siamese import PARTS, Siamese
from simsiam.settings.fields import Settings
from simsiam.settings.own import own_parts
from simsiam.settings.own_code import OwnPartError

MOST_IMAGES = 8


def try_own_parts(settings: Settings, num_channels: int) -> None:
    """Make the model, and the loss of a few random images with its gradient, on the CPU.

    Raises OwnPartError for a part that cannot be imported or made, raises an error, gives something of another shape
    than its place asks for, a loss that is not finite or has no gradient, or has weights that the loss does not reach:
    these would be missed by who averages gradients over ranks.
    """
    parts = own_parts(settings)
    num = max(2 * settings.batch_norm.groups, min(settings.batch_size, MOST_IMAGES))
    size, draws = settings.data.image_size, torch.Generator().manual_seed(settings.seed)
    images = torch.randint(256, (num, num_channels, size, size), dtype=torch.uint8, generator=draws)
    own = own_views(settings)
    if own is not None:
        views = own(list(images), range(num), 0)
    else:
        views = [torch.randn(num, num_channels, size, size, generator=draws) for _ in range(2)]
    if not parts.keys() & PARTS.keys():
        return
    model = Siamese(settings, num_channels, num)
    more = views[2 * num_pairs(settings) :]
    loss = model(views[0], views[1], more=more, index=torch.arange(num)).loss
    blame = "loss.name" if "loss.name" in parts else next(path for path in parts if path in PARTS)
    if not loss.isfinite():
        raise OwnPartError(f"{blame}: {parts[blame]}: the loss of random images is {loss.item()}, not a finite number")
    if not loss.requires_grad:
        raise OwnPartError(f"{blame}: {parts[blame]}: the loss has no gradient; was something detached?")
    loss.backward()
    for path in parts.keys() & PARTS.keys():
        for name, weight in getattr(model, PARTS[path]).named_parameters():
            if weight.requires_grad and weight.grad is None:
                raise OwnPartError(
                    f"{path}: {parts[path]}: the loss does not reach its weight {name}; leave it out, or set its"
                    " requires_grad to False"
                )
