"""Grouped BN against nn.BatchNorm on each group by itself."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from simsiam.model.backbones import SmallResNet
from simsiam.model.batch_norm import GroupedBatchNorm, GroupedBatchNorm1d, GroupedBatchNorm2d, convert, permutation

SHAPES = [(12, 3), (12, 3, 5), (12, 3, 4, 4)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 1


def batch_norm(shape: tuple[int, ...], seed: int = 7, **options: object) -> nn.BatchNorm1d | nn.BatchNorm2d:
    """A BN that has seen something: no parameter or buffer at its start."""
    bn = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[1], **options).double()  # type: ignore[arg-type]
    for i, (name, value) in enumerate([*bn.named_parameters(), *bn.named_buffers()]):
        if value.is_floating_point():
            draw = normal(*value.shape, seed=seed + i)
            value.data = draw.abs() + 0.1 if name == "running_var" else draw
    return bn


def converted(bn: nn.BatchNorm1d | nn.BatchNorm2d, groups: int) -> GroupedBatchNorm:
    grouped = convert(copy.deepcopy(bn), groups)
    assert isinstance(grouped, GroupedBatchNorm)
    return grouped


def by_hand(x: Tensor, bn: nn.BatchNorm1d | nn.BatchNorm2d, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the groups' means and unbiased variances, from the definition, channel by channel."""
    out, means, variances = torch.empty_like(x), [], []
    size = len(x) // groups
    for g in range(groups):
        rows = slice(g * size, (g + 1) * size)
        for c in range(x.shape[1]):
            values = x[rows, c]
            mean = values.sum() / values.numel()
            square = ((values - mean) ** 2).sum()
            scale, shift = (bn.weight[c], bn.bias[c]) if bn.affine else (1.0, 0.0)
            out[rows, c] = (values - mean) / (square / values.numel() + bn.eps) ** 0.5 * scale + shift
            means.append(mean)
            variances.append(square / (values.numel() - 1))
    return out, torch.stack(means).view(groups, -1), torch.stack(variances).view(groups, -1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize("affine", [True, False])
def test_each_group_is_normalised_by_itself(shape: tuple[int, ...], groups: int, affine: bool) -> None:
    bn, x = batch_norm(shape, affine=affine), normal(*shape)
    grouped = converted(bn, groups)
    expected, means, variances = by_hand(x, bn, groups)
    torch.testing.assert_close(grouped(x), expected)
    torch.testing.assert_close(grouped.running_mean, 0.9 * bn.running_mean + 0.1 * means.mean(0))
    torch.testing.assert_close(grouped.running_var, 0.9 * bn.running_var + 0.1 * variances.mean(0))
    assert int(grouped.num_batches_tracked) == int(bn.num_batches_tracked) + 1


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_batch_norm_on_slices(shape: tuple[int, ...]) -> None:
    groups, weights = 3, normal(*shape, seed=1)
    bn, x = batch_norm(shape), normal(*shape).requires_grad_()
    grouped = converted(bn, groups)
    outputs = [bn(part) for part in x.chunk(groups)]
    expected = torch.autograd.grad((torch.cat(outputs) * weights).sum(), [x, *bn.parameters()])
    first, second = grouped(x), grouped(x)  # two forwards before a backward, as of two views
    ours = torch.autograd.grad((first * weights).sum(), [x, *grouped.parameters()])
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_agree_with_finite_differences(shape: tuple[int, ...]) -> None:
    grouped = converted(batch_norm(shape), 2)

    def output(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = torch.func.functional_call(grouped, {"weight": weight, "bias": bias}, (x,))
        assert isinstance(out, Tensor)
        return out

    arguments = [value.detach()[:].clone().requires_grad_() for value in (normal(4, *shape[1:]), *grouped.parameters())]
    assert torch.autograd.gradcheck(output, arguments)


@settings(deadline=None, max_examples=25)
@given(
    groups=st.integers(2, 5),
    size=st.integers(2, 4),
    channels=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_a_group_knows_nothing_of_the_others(
    groups: int, size: int, channels: int, seed: int, data: st.DataObject
) -> None:
    shape = (groups * size, channels)
    grouped, x = converted(batch_norm(shape), groups), normal(*shape, seed=seed)
    changed = data.draw(st.integers(0, groups - 1))
    y = x.clone()
    y[changed * size : (changed + 1) * size] = normal(size, channels, seed=seed + 1)
    before, after = grouped(x).view(groups, size, channels), grouped(y).view(groups, size, channels)
    for g in range(groups):
        assert torch.equal(before[g], after[g]) == (g != changed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_one_group_and_evaluation_are_batch_norm_exactly(shape: tuple[int, ...], options: dict[str, object]) -> None:
    bn, x = batch_norm(shape, **options), normal(*shape)
    assert convert(bn, 1) is bn
    one = converted(bn, 4)
    one.groups = 1
    evaluated, plain = converted(bn, 4).eval(), copy.deepcopy(bn).eval()
    # Batch statistics are used in evaluation where there are no running ones; then groups are not.
    assert torch.equal(evaluated(x), plain(x))
    for _ in range(2):
        assert torch.equal(one(x), bn(x))
    for name, value in bn.state_dict().items():
        assert torch.equal(one.state_dict()[name], value)


def test_running_statistics_may_be_cumulative_or_none() -> None:
    bn = batch_norm((12, 3), momentum=None)
    bn.reset_running_stats()
    grouped, batches = converted(bn, 3), [normal(12, 3, seed=seed) for seed in range(4)]
    for x in batches:
        grouped(x)
    means = torch.stack([by_hand(x, bn, 3)[1].mean(0) for x in batches])
    variances = torch.stack([by_hand(x, bn, 3)[2].mean(0) for x in batches])
    torch.testing.assert_close(grouped.running_mean, means.mean(0))
    torch.testing.assert_close(grouped.running_var, variances.mean(0))

    untracked = batch_norm((12, 3), track_running_stats=False)
    torch.testing.assert_close(converted(untracked, 3)(batches[0]), by_hand(batches[0], untracked, 3)[0])

    paused = converted(batch_norm((12, 3)), 3)  # as nn.BatchNorm does when tracking is switched off for a while
    before = copy.deepcopy(paused.state_dict())
    paused.track_running_stats = False
    paused(batches[0])
    assert all(torch.equal(value, before[name]) for name, value in paused.state_dict().items())


def test_equal_groups_share_the_mean_of_the_whole_batch() -> None:
    bn, x = batch_norm((12, 3)), normal(12, 3)
    grouped = converted(bn, 4)
    grouped(x), bn(x)
    torch.testing.assert_close(grouped.running_mean, bn.running_mean)


@pytest.mark.parametrize(("num", "groups"), [(12, 5), (3, 4)])
def test_a_batch_that_does_not_divide_is_refused(num: int, groups: int) -> None:
    grouped = converted(batch_norm((num, 3)), groups)
    before = copy.deepcopy(grouped.state_dict())
    with pytest.raises(ValueError, match=f"the {num} images of a BN's batch must be a multiple of its {groups} groups"):
        grouped(normal(num, 3))
    assert all(torch.equal(value, before[name]) for name, value in grouped.state_dict().items())
    assert grouped.eval()(normal(num, 3)).shape == (num, 3)


def test_wrong_shapes_are_refused_as_by_batch_norm() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        converted(batch_norm((12, 3, 4, 4)), 2)(normal(12, 3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        converted(batch_norm((12, 3)), 12)(normal(12, 3))


def test_memory_format_and_precision_are_kept() -> None:
    x = normal(12, 8, 4, 4, dtype=torch.float32).to(memory_format=torch.channels_last)
    grouped = converted(nn.BatchNorm2d(8), 4)
    assert grouped(x).is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = grouped(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), grouped(x), atol=0.05, rtol=0.02)
    assert grouped.running_mean is not None
    assert grouped.running_mean.dtype == torch.float32


def small_network() -> nn.Sequential:
    return nn.Sequential(SmallResNet(1, 4, 1, 1), nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8, affine=False)))


def test_convert_swaps_the_layers_and_nothing_else() -> None:
    plain = small_network()
    net = copy.deepcopy(plain)
    parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())
    net[1].eval()
    assert convert(net, 4) is net
    layers = [module for module in net.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert len(layers) == sum(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in plain.modules())
    assert all(isinstance(layer, (GroupedBatchNorm1d, GroupedBatchNorm2d)) for layer in layers)
    assert all(layer.groups == 4 and layer.training == (layer is not net[1][1]) for layer in layers)
    assert {name: id(value) for name, value in net.named_parameters()} == {k: id(v) for k, v in parameters.items()}
    assert {name: id(value) for name, value in net.named_buffers()} == {k: id(v) for k, v in buffers.items()}
    assert list(net.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(net.state_dict())
    assert "groups=4" in repr(net)

    x = normal(8, 1, 8, 8, dtype=torch.float32)
    out = net.train()(x)
    torch.testing.assert_close(out, torch.cat([plain(part) for part in x.chunk(4)]), atol=1e-4, rtol=1e-4)
    clone = copy.deepcopy(net)
    assert torch.equal(clone(x), net(x))
    assert clone[1][1].running_mean is not net[1][1].running_mean
    assert convert(net, 2)[0].bn1.groups == 2  # type: ignore[index]


def test_permutation_depends_on_its_arguments_alone() -> None:
    order, inverse = permutation(3, 17, 50)
    assert torch.equal(order, permutation(3, 17, 50)[0])
    assert sorted(order.tolist()) == list(range(50))
    x = torch.arange(50)
    assert torch.equal(x[order][inverse], x)
    assert torch.equal(x[inverse][order], x)
    for other in (permutation(4, 17, 50), permutation(3, 18, 50)):
        assert not torch.equal(other[0], order)
    torch.manual_seed(0)
    assert torch.equal(permutation(3, 17, 50)[0], order)


def test_permuted_images_come_back_in_order_with_the_statistics_of_other_groups() -> None:
    bn, x = batch_norm((12, 3)), normal(12, 3)
    grouped = converted(bn, 3)
    order, inverse = permutation(0, 0, 12)
    ours = grouped(x[order])[inverse]
    for g in range(3):
        members = order[4 * g : 4 * g + 4]
        expected, _, _ = by_hand(x[members], bn, 1)
        torch.testing.assert_close(ours[members], expected)
    assert not torch.allclose(ours, grouped(x))
