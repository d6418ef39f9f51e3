"""The parts of a model that may be the user's own, in place of those of the core: see docs/own-parts.md."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from simsiam.distributed.ranks import Ranks
from simsiam.model import backbones, heads, losses
from simsiam.settings.fields import Settings
from simsiam.settings.own import arguments_of, is_own
from simsiam.settings.own_code import OwnPartError, blamed, load_own, make_part, value_of, wanted


def make_backbone(settings: Settings, num_channels: int) -> tuple[nn.Module, int]:
    """The backbone, images (N, C, S, S) -> features (N, F), and F."""
    if not is_own(settings.backbone.name):
        return backbones.make_backbone(settings.backbone, num_channels)
    size = settings.data.image_size
    own = make_network(settings, "backbone.name", num_channels=num_channels, image_size=size)
    made = _tried(settings, "backbone.name", own, torch.zeros(2, num_channels, size, size))
    if made.dim() != 2 or len(made) != 2:
        raise _wrong(settings, "backbone.name", f"features (2, F) of 2 images ({num_channels}, {size}, {size})", made)
    return own, made.shape[1]


def make_projector(settings: Settings, num_features: int) -> nn.Module:
    """The projection head: features (N, num_features) -> z (N, d)."""
    if not is_own(settings.projector.kind):
        return heads.make_projector(settings.projector, num_features)
    dim = settings.projector.output_dim
    return _head(settings, "projector.kind", num_features, dim, num_features=num_features, output_dim=dim)


def make_predictor(settings: Settings, dim: int) -> nn.Module:
    """The predictor h: (N, dim) -> (N, dim)."""
    if not is_own(settings.predictor.kind):
        return heads.make_predictor(settings.predictor, dim)
    return _head(settings, "predictor.kind", dim, dim, dim=dim)


def make_distance(settings: Settings, dim: int, ranks: Ranks) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """D(p, target, others), one direction of the loss; p and target have ``dim`` columns."""
    if is_own(settings.loss.name):
        return OwnLoss(settings, dim, ranks)
    return losses.make_distance(settings.loss, ranks)


def make_transform(settings: Settings, dim: int, ranks: Ranks) -> OwnTransform | None:
    """What stands in for the targets of both views, (N, dim) each, if the user says so."""
    return OwnTransform(settings, dim, ranks) if is_own(settings.target.transform) else None


def make_network(settings: Settings, path: str, **offered: Any) -> nn.Module:
    """As :func:`make_part`, of a network. Raises OwnPartError where it is none."""
    made = make_part(settings, path, **offered)
    if not isinstance(made, nn.Module):
        raise OwnPartError(f"{path}: {value_of(settings, path)} gives a {type(made).__name__}, not an nn.Module")
    return made


def _head(settings: Settings, path: str, into: int, out: int, **offered: Any) -> nn.Module:
    own = make_network(settings, path, **offered)
    made = _tried(settings, path, own, torch.zeros(2, into))
    if made.shape != (2, out):
        raise _wrong(settings, path, f"a tensor (2, {out}) for one of (2, {into})", made)
    return own


def _tried(settings: Settings, path: str, network: nn.Module, x: Tensor) -> Tensor:
    """What a network gives in evaluation mode, where it draws and keeps nothing."""
    with blamed(settings, path), torch.no_grad():
        made = network.eval()(x)
    network.train()
    if not isinstance(made, Tensor):
        raise _wrong(settings, path, "a tensor", made)
    return made


def make_called(settings: Settings, path: str, **offered: Any) -> nn.Module:
    """A loss or a transform of targets: a class that is made once, or a function that is called in each step."""
    part = load_own(value_of(settings, path))
    if inspect.isclass(part):
        return make_network(settings, path, **offered)
    return _Function(part, {**wanted(part, offered), **arguments_of(settings, path)})


class _Function(nn.Module):
    """A function of the user's, as a module without state."""

    def __init__(self, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.arguments = function, arguments

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors, **self.arguments)


class OwnLoss(nn.Module):
    """D(p, target), one direction of the loss: the user's function of the whole batch, in float32 at least.

    Each rank computes the same number from the gathered rows, so that a loss over the batch needs no care for ranks.
    What the user's module keeps in buffers is in the checkpoint; what it has in parameters is trained with f.
    """

    def __init__(self, settings: Settings, dim: int, ranks: Ranks) -> None:
        super().__init__()
        self.settings, self.ranks = settings, ranks
        self.own = make_called(settings, "loss.name", dim=dim)

    def forward(self, p: Tensor, target: Tensor, others: Tensor) -> Tensor:
        """p, target: this rank's rows, (n, d) -> scalar."""
        whole = [self.ranks.gather(_precise(x)) for x in (p, target)]
        with blamed(self.settings, "loss.name"), torch.autocast(p.device.type, enabled=False):
            loss = self.own(*whole)
        if not isinstance(loss, Tensor) or loss.dim():
            raise _wrong(self.settings, "loss.name", "one number (a tensor without dimensions)", loss)
        return loss


class OwnTransform(nn.Module):
    """What stands in for the targets of both views: the user's function of the whole batch, in float32 at least.

    A module may keep a state, such as DINO's centre, in buffers that it changes in its forward: they are in the
    checkpoint, and the same on every rank.
    """

    def __init__(self, settings: Settings, dim: int, ranks: Ranks) -> None:
        super().__init__()
        self.settings, self.ranks = settings, ranks
        self.own = make_called(settings, "target.transform", dim=dim)

    def forward(self, t1: Tensor, t2: Tensor) -> tuple[Tensor, Tensor]:
        """t1, t2: this rank's rows, (n, d) -> as many rows, of any length."""
        whole = [self.ranks.gather(_precise(t)) for t in (t1, t2)]
        with blamed(self.settings, "target.transform"), torch.autocast(t1.device.type, enabled=False):
            made = self.own(*whole)
        rows = len(whole[0])
        if not isinstance(made, tuple) or [len(x) for x in made if isinstance(x, Tensor) and x.dim()] != [rows, rows]:
            raise _wrong(
                self.settings, "target.transform", f"the targets of both views, a pair of {rows} rows each", made
            )
        return self.ranks.own(made[0]), self.ranks.own(made[1])


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _wrong(settings: Settings, path: str, asked: str, found: object) -> OwnPartError:
    shape = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    return OwnPartError(f"{path}: {value_of(settings, path)} must give {asked}; it gives {shape}")
