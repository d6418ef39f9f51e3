"""Algorithm 1 and its switches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from simsiam.model.backbones import make_backbone
from simsiam.model.siamese import Siamese
from simsiam.settings.checks import validate
from simsiam.settings.fields import BackboneSettings, Settings
from tests.conftest import SMALL

Small = Callable[..., Settings]


def views(seed: int = 0, n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, 3, 16, 16, generator=draws, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def model(settings: Settings) -> Siamese:
    return Siamese(settings, 3).double()


def gradients(settings: Settings, x1: torch.Tensor, x2: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    network = model(settings)
    loss = network(x1, x2).loss
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


def test_loss_is_algorithm_1(small: Small) -> None:
    """The paper's pseudo-code, written out beside the module."""
    network = model(small())
    x1, x2 = views()
    f = nn.Sequential(network.backbone, network.projector)
    h = network.predictor

    def D(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:  # noqa: N802
        z = z.detach()
        p = p / p.norm(dim=1, keepdim=True)
        z = z / z.norm(dim=1, keepdim=True)
        return -(p * z).sum(dim=1).mean()

    z1, z2 = f(x1), f(x2)
    p1, p2 = h(z1), h(z2)
    expected = D(p1, z2) / 2 + D(p2, z1) / 2
    assert network(x1, x2).loss.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("loss", ["cosine", "squared-distance"])
def test_without_predictor_stop_gradient_halves_the_gradient(small: Small, loss: str) -> None:
    """Sec. 4.2: without h, the symmetric loss has the same gradient direction with and without stop-gradient."""
    x1, x2 = views()
    _, with_stop = gradients(small(predictor__kind="none", loss__name=loss), x1, x2)
    _, without = gradients(small(predictor__kind="none", loss__name=loss, target__stop_gradient=False), x1, x2)
    assert with_stop.keys() == without.keys()
    assert len(with_stop) > 10
    for name, gradient in with_stop.items():
        torch.testing.assert_close(2 * gradient, without[name], rtol=1e-9, atol=1e-12)


def test_stop_gradient_matters_with_a_predictor(small: Small) -> None:
    x1, x2 = views()
    _, with_stop = gradients(small(), x1, x2)
    _, without = gradients(small(target__stop_gradient=False), x1, x2)
    name = "projector.0.weight"
    ratio = torch.nn.functional.cosine_similarity(with_stop[name].flatten(), without[name].flatten(), dim=0)
    assert ratio < 0.999


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("kind", ["mlp", "none", "fixed"])
def test_swapping_the_views_changes_neither_loss_nor_gradients(small: Small, kind: str, stop_gradient: bool) -> None:
    settings = small(predictor__kind=kind, target__stop_gradient=stop_gradient)
    x1, x2 = views()
    loss, forwards = gradients(settings, x1, x2)
    swapped_loss, backwards = gradients(settings, x2, x1)
    assert loss == pytest.approx(swapped_loss, abs=1e-12)
    for name in forwards:
        torch.testing.assert_close(forwards[name], backwards[name], rtol=1e-9, atol=1e-12)


def test_each_view_has_its_own_batch_statistics(small: Small) -> None:
    """Each view is a forward of its own: z1 does not depend on x2, and running statistics move with both."""
    network = model(small())
    x1, x2 = views()
    alone = network.f(x1)
    torch.testing.assert_close(network(x1, x2).z1, alone)
    assert network.projector[1].num_batches_tracked.item() == 3


# --- switches change what they name, and nothing else --------------------------------------------------------------


def bn_layers(settings: Settings) -> dict[str, bool]:
    """Where the heads have BN, and whether it is affine."""
    network = Siamese(settings, 3)
    found = {}
    for head in ("projector", "predictor"):
        for name, module in getattr(network, head).named_modules():
            if isinstance(module, nn.BatchNorm1d):
                found[f"{head}.{name}"] = module.affine
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [  # Table 3: (c) is the default; each switch adds or removes exactly its own layers
        ({}, {"projector.1": True, "projector.4": True, "projector.7": True, "predictor.1": True}),
        ({"projector__bn_hidden": False}, {"projector.5": True, "predictor.1": True}),
        ({"projector__bn_output": False}, {"projector.1": True, "projector.4": True, "predictor.1": True}),
        ({"predictor__bn_hidden": False}, {"projector.1": True, "projector.4": True, "projector.7": True}),
        (
            {"predictor__bn_output": True},
            {"projector.1": True, "projector.4": True, "projector.7": True, "predictor.1": True, "predictor.4": True},
        ),
        (
            {"projector__bn_output_affine": False},
            {"projector.1": True, "projector.4": True, "projector.7": False, "predictor.1": True},
        ),
        ({"predictor__kind": "none"}, {"projector.1": True, "projector.4": True, "projector.7": True}),
    ],
)
def test_bn_switches(small: Small, changes: dict[str, Any], expected: dict[str, bool]) -> None:
    found = bn_layers(small(projector__num_layers=3, **changes))
    assert sorted(found.values()) == sorted(expected.values())
    assert {name.split(".")[0] for name in found} == {name.split(".")[0] for name in expected}
    assert found == expected


def test_fixed_predictor_has_no_gradient(small: Small) -> None:
    _, found = gradients(small(predictor__kind="fixed"), *views())
    assert not [name for name in found if name.startswith("predictor")]
    assert [name for name in found if name.startswith("projector")]


def test_biases(small: Small) -> None:
    """auto: no bias where a BN follows. The predictor's output, which none follows, has one."""
    network = Siamese(small(), 3)
    assert network.projector[0].bias is None
    assert network.projector[3].bias is None
    assert network.predictor[0].bias is None
    assert network.predictor[3].bias is not None
    network = Siamese(small(projector__bias="always", projector__bn_output=False), 3)
    assert network.projector[0].bias is not None


# --- weights at the start ----------------------------------------------------------------------------------------


def test_removing_the_predictor_leaves_the_encoder_start_unchanged(small: Small) -> None:
    """Weights are drawn by (seed, path), so variants with one seed are paired."""
    whole, without = Siamese(small(), 3).state_dict(), Siamese(small(predictor__kind="none"), 3).state_dict()
    assert set(without) == {name for name in whole if not name.startswith("predictor")}
    for name, value in without.items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0)


def test_seeds_give_other_weights_and_modules_differ(small: Small) -> None:
    first, second = Siamese(small(), 3), Siamese(small(seed=1), 3)
    assert not torch.equal(first.projector[0].weight, second.projector[0].weight)
    assert not torch.equal(first.backbone.stages[0][0].conv1.weight, first.backbone.stages[0][0].conv2.weight)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_initial_weights_have_torchvision_s_distribution(name: str) -> None:
    settings = validate({**SMALL, "backbone.name": name, "backbone.width": 16})
    ours = Siamese(settings, 3).backbone
    theirs = getattr(torchvision.models, name)(zero_init_residual=True)
    for (path, weight), reference in zip(ours.named_parameters(), theirs.parameters(), strict=False):
        if weight.numel() > 20000:
            assert weight.std().item() == pytest.approx(reference.std().item(), rel=0.05), path
        elif path.endswith(("bn3.weight", "bn2.weight", "bn1.weight")):
            torch.testing.assert_close(weight, reference, msg=path)


# --- backbones ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "num_features"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_resnets_are_torchvision_s(name: str, num_features: int) -> None:
    backbone, width = make_backbone(BackboneSettings(name=name), 3)
    reference = getattr(torchvision.models, name)()
    reference.load_state_dict(backbone.state_dict(), strict=False)
    reference.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    assert width == num_features
    torch.testing.assert_close(backbone.eval()(x), reference.eval()(x))


def test_cifar_stem_keeps_the_resolution() -> None:
    backbone, _ = make_backbone(BackboneSettings(name="resnet18", stem="cifar"), 3)
    shapes = []
    backbone.layer1.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    backbone.layer4.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    backbone(torch.randn(2, 3, 32, 32))
    assert [shape[-1] for shape in shapes] == [32, 4]


@pytest.mark.parametrize(("width", "depth", "stride"), [(4, 1, 1), (8, 2, 2)])
def test_small_resnet(width: int, depth: int, stride: int) -> None:
    settings = BackboneSettings(name="small", width=width, depth=depth, stem_stride=stride)
    backbone, num_features = make_backbone(settings, 1)
    assert num_features == 8 * width
    assert backbone(torch.randn(2, 1, 32, 32)).shape == (2, num_features)
    kernels = [module.kernel_size for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    assert kernels.count((3, 3)) == 1 + 8 * depth


@pytest.mark.parametrize("width", [2, 4, 5, 8, 12, 16])
def test_a_narrow_small_resnet_has_the_gradients_of_double_precision(width: int) -> None:
    """As it is trained: float32, channels last. oneDNN's own strided 1x1 kernel writes wrong ones for few channels."""
    backbone, _ = make_backbone(BackboneSettings(name="small", width=width, depth=1, stem_stride=2), 3)
    backbone.eval()  # the running statistics: a batch's own make small differences large
    exact = copy.deepcopy(backbone).double()
    x = torch.randn(32, 3, 32, 32)
    backbone.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)).sum().backward()
    exact(x.double()).sum().backward()
    for (name, found), right in zip(backbone.named_parameters(), exact.parameters(), strict=True):
        assert found.grad is not None
        assert right.grad is not None
        assert (found.grad - right.grad).norm() <= 1e-4 * right.grad.norm(), name


@pytest.mark.parametrize("name", ["small", "resnet18", "resnet50"])
def test_residual_blocks_start_as_the_identity(name: str) -> None:
    network = Siamese(validate({**SMALL, "backbone.name": name, "backbone.width": 16}), 3)
    suffix = "bn3.weight" if name == "resnet50" else "bn2.weight"
    last = [weight for path, weight in network.backbone.named_parameters() if path.endswith(suffix)]
    assert last
    assert all((weight == 0).all() for weight in last)


def test_residual_blocks_that_start_as_in_moco_and_swav() -> None:
    """torchvision's default: every BN scale is 1. All other weights are drawn as before."""
    flat = {**SMALL, "backbone.name": "resnet18", "backbone.width": 16}
    zero, one = (Siamese(validate({**flat, "initialisation.zero_last_bn": on}), 3).state_dict() for on in (True, False))
    theirs = torchvision.models.resnet18(zero_init_residual=False)
    for name, weight in theirs.named_parameters():
        if "bn" in name:
            assert torch.equal(one[f"backbone.{name}"], weight), name
    assert all(torch.equal(one[name], zero[name]) for name in zero if not name.endswith("bn2.weight"))
