"""Views: every operation against torchvision's on the same parameters, and the parameters against its distributions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy import stats
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from simsiam.data import views as augment
from simsiam.data.views import ViewParameters, draw, views
from simsiam.randomness import derive
from simsiam.settings.fields import AugmentSettings

TOLERANCE = 1e-5  # on [0, 1]: float32 rounding of a few operations in another order
SIGNIFICANCE = 1e-4  # seeds are fixed: a statistical test below passes always or never
SETTINGS = AugmentSettings()
IDENTITY = AugmentSettings(
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    flip_probability=0.0,
    jitter_probability=0.0,
    grey_probability=0.0,
    blur_probability=0.0,
)
OPERATIONS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
examples = hypothesis_settings(max_examples=60, deadline=None, derandomize=True, database=None)


def make_images(kind: str, num: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """(num, channels, height, width) uint8."""
    generator = torch.Generator().manual_seed(num * height + width)
    noise = torch.randint(0, 256, (num, channels, height, width), generator=generator)
    match kind:
        case "noise":
            images = noise
        case "smooth":  # a few blobs of colour, like a photograph
            blobs = torch.rand(num, channels, 4, 4, generator=generator)
            images = torch.nn.functional.interpolate(blobs, (height, width), mode="bicubic") * 255
        case "nearly grey":  # hue and saturation hang on single grey levels
            images = noise[:, :1] + noise % 2
        case "grey":
            images = noise[:, :1].expand(-1, channels, -1, -1)
        case "constant":
            images = noise[:, :, :1, :1].expand(-1, -1, height, width)
        case "primary":  # every channel is 0 or 255: chroma 0 or 1, and ties for the highest channel
            images = noise % 2 * 255
    return images.clamp(0, 255).to(torch.uint8)


KINDS = ("noise", "smooth", "nearly grey", "grey", "constant", "primary")


def draw_for(images: Tensor, settings: AugmentSettings = SETTINGS, key: int = 1) -> ViewParameters:
    height, width = images.shape[2:]
    return draw(settings, height, width, torch.arange(len(images)), key=key)


def torchvision_view(image: Tensor, parameters: ViewParameters, k: int, size: int) -> Tensor:
    """The k-th image's view by torchvision, in the order of the authors' release."""
    box = (int(side[k]) for side in (parameters.top, parameters.left, parameters.height, parameters.width))
    x = F.resized_crop(F.to_dtype(image, torch.float32, scale=True), *box, size=[size, size], antialias=True)
    if parameters.jitter[k]:
        factors = (parameters.brightness, parameters.contrast, parameters.saturation, parameters.hue)
        for number in parameters.order[k].tolist():
            x = OPERATIONS[number](x, factors[number][k].item())
    if parameters.grey[k]:
        x = F.rgb_to_grayscale(x, num_output_channels=len(x))
    if parameters.blur_sigma[k] > 0:
        x = F.gaussian_blur(x, [2 * size - 1, 2 * size - 1], [parameters.blur_sigma[k].item()])
    return F.horizontal_flip(x) if parameters.flip[k] else x


def assert_near(measured: Tensor, expected: Tensor) -> None:
    assert measured.dtype == torch.float32
    torch.testing.assert_close(measured, expected, rtol=0, atol=TOLERANCE)


# --- operations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (28, 28, 28), (48, 64, 24), (20, 50, 33), (7, 5, 16), (64, 64, 9)]
)
@pytest.mark.parametrize("kind", ["noise", "smooth"])
def test_crop_agrees_with_torchvision(height: int, width: int, size: int, kind: str) -> None:
    boxes = [(0, 0, height, width), (0, 0, 1, 1), (height - 1, width - 1, 1, 1), (0, width - 1, height, 1)]
    rng = np.random.default_rng(0)
    for _ in range(40):
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        boxes.append((int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w))
    images = make_images(kind, len(boxes), 3, height, width)
    flip = torch.arange(len(boxes)) % 2 == 1
    expected = torch.stack(
        [
            F.resized_crop(image, *box, size=[size, size], antialias=True)
            for image, box in zip(images / 255, boxes, strict=True)
        ]
    )
    expected = torch.where(flip[:, None, None, None], expected.flip(3), expected)
    columns = torch.tensor(boxes).unbind(1)
    assert_near(augment.resized_crop(images, *columns, flip, size=size), expected)
    assert_near(augment.resized_crop(images / 255, *columns, flip, size=size), expected)


def test_a_crop_does_not_see_what_is_outside_its_box() -> None:
    images = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    images[:, :, 5:15, 8:20] = 51
    box = (torch.tensor([side]) for side in (5, 8, 10, 12))
    assert_near(augment.resized_crop(images, *box, torch.tensor([False]), size=4), torch.full((1, 3, 4, 4), 0.2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (augment.adjust_brightness, F.adjust_brightness, (0.0, 0.6, 1.0, 1.4, 3.0)),
        (augment.adjust_contrast, F.adjust_contrast, (0.0, 0.6, 1.0, 1.4, 3.0)),
        (augment.adjust_saturation, F.adjust_saturation, (0.0, 0.6, 1.0, 1.4, 3.0)),
        (augment.adjust_hue, F.adjust_hue, (-0.5, -0.1, -0.001, 0.0, 0.1, 0.3, 0.5)),
    ],
)
def test_colours_agree_with_torchvision(
    ours: Callable[[Tensor, Tensor], Tensor],
    theirs: Callable[[Tensor, float], Tensor],
    factors: tuple[float, ...],
    kind: str,
) -> None:
    x = make_images(kind, 6 * len(factors)) / 255
    before = x.clone()
    factor = torch.tensor(factors).repeat(6)
    assert_near(ours(x, factor), torch.stack([theirs(image, f) for image, f in zip(x, factor.tolist(), strict=True)]))
    assert torch.equal(x, before)


pixels = st_numpy.arrays(np.float32, (3, 3, 3), elements=st.floats(0, 1, width=32))


@examples
@given(pixels, st.floats(0, 4, width=32), st.floats(-0.5, 0.5, width=32))
def test_colours_agree_with_torchvision_on_any_image(image: np.ndarray, factor: float, shift: float) -> None:
    x = torch.from_numpy(image)
    for ours, theirs in (
        (augment.adjust_brightness, F.adjust_brightness),
        (augment.adjust_contrast, F.adjust_contrast),
        (augment.adjust_saturation, F.adjust_saturation),
    ):
        assert_near(ours(x[None], torch.tensor([factor]))[0], theirs(x, factor))
    assert_near(augment.adjust_hue(x[None], torch.tensor([shift]))[0], F.adjust_hue(x, shift))
    assert_near(augment.greyscale(x[None])[0], F.rgb_to_grayscale(x))


@examples
@given(pixels, st.floats(-0.5, 0.5, width=32))
def test_hue_keeps_the_highest_and_lowest_channel_and_can_be_undone(image: np.ndarray, shift: float) -> None:
    x = torch.from_numpy(image)[None]
    turned = augment.adjust_hue(x, torch.tensor([shift]))
    assert_near(turned.amax(1), x.amax(1))
    assert_near(turned.amin(1), x.amin(1))
    assert_near(augment.adjust_hue(turned, torch.tensor([-shift])), x)


@pytest.mark.parametrize("size", [2, 5, 28, 32, 40])
@pytest.mark.parametrize("kind", ["noise", "smooth", "constant"])
def test_blur_agrees_with_torchvision(size: int, kind: str) -> None:
    sigma = torch.linspace(0.1, 2.0, 20)
    x = make_images(kind, len(sigma), 3, size, size) / 255
    kernel_size = [2 * size - 1, 2 * size - 1]
    expected = [F.gaussian_blur(image, kernel_size, [s]) for image, s in zip(x, sigma.tolist(), strict=True)]
    assert_near(augment.gaussian_blur(x, sigma), torch.stack(expected))


@pytest.mark.parametrize(("size", "widest"), [(33, 0.5), (96, 2.0), (160, 2.0), (100, 9.0)])
def test_a_large_image_is_blurred_the_same_without_what_no_kernel_weighs(size: int, widest: float) -> None:
    sigma = torch.linspace(0.1, widest, 5)
    x = make_images("noise", len(sigma), 3, size, size) / 255
    kernel_size = [2 * size - 1, 2 * size - 1]
    expected = [F.gaussian_blur(image, kernel_size, [s]) for image, s in zip(x, sigma.tolist(), strict=True)]
    assert_near(augment.gaussian_blur(x, sigma, widest), torch.stack(expected))
    assert torch.equal(augment.gaussian_blur(x[1:2], sigma[1:2], widest), augment.gaussian_blur(x, sigma, widest)[1:2])


def test_jitter_that_changes_nothing_leaves_every_bit() -> None:
    x = make_images("noise", 30) / 255
    parameters = draw_for(x)
    neutral = replace(
        parameters,
        brightness=torch.ones(30),
        contrast=torch.ones(30),
        saturation=torch.ones(30),
        hue=torch.zeros(30),
    )
    assert torch.equal(augment.color_jitter(x, neutral), x)
    assert torch.equal(augment.color_jitter(x, replace(parameters, jitter=torch.zeros(30, dtype=torch.bool))), x)


def test_order_of_the_jitter_is_the_images_own() -> None:
    orders = torch.tensor(list(itertools.permutations(range(4))))
    x = make_images("smooth", 1).expand(24, -1, -1, -1) / 255
    parameters = replace(
        draw_for(x),
        order=orders,
        jitter=torch.ones(24, dtype=torch.bool),
        brightness=torch.full((24,), 1.4),
        contrast=torch.full((24,), 1.3),
        saturation=torch.full((24,), 1.4),
        hue=torch.full((24,), 0.1),
    )
    jittered = augment.color_jitter(x, parameters)
    factors = (1.4, 1.3, 1.4, 0.1)
    for k, order in enumerate(orders.tolist()):
        expected = x[k]
        for number in order:
            expected = OPERATIONS[number](expected, factors[number])
        assert_near(jittered[k], expected)
    # Clamping makes the orders differ, so that a wrong one would have been seen.
    assert len(torch.unique((jittered * 1000).round(), dim=0)) == 24


# --- the whole view ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "height", "width", "size"), [(3, 32, 32, 32), (1, 28, 28, 28), (3, 40, 56, 24), (1, 20, 33, 33)]
)
@pytest.mark.parametrize("kind", ["noise", "smooth"])
def test_view_agrees_with_torchvision(channels: int, height: int, width: int, size: int, kind: str) -> None:
    images = make_images(kind, 150, channels, height, width)
    before = images.clone()
    parameters = draw_for(images)
    expected = torch.stack([torchvision_view(image, parameters, k, size) for k, image in enumerate(images)])
    x = augment.apply(images, parameters, size)
    assert_near(x, expected)
    assert_near(augment.apply(images / 255, parameters, size), expected)
    assert torch.equal(images, before)
    assert x.min() >= -TOLERANCE
    assert x.max() <= 1 + TOLERANCE


def test_views_are_normalised_and_keyed_by_view_and_epoch() -> None:
    images, index = make_images("smooth", 20), torch.arange(100, 120)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    both = views(images, index, SETTINGS, seed=3, epoch=7, size=32, mean=mean, std=std)
    for number, x in enumerate(both, start=1):
        parameters = draw(SETTINGS, 32, 32, index, key=derive(3, "view", number, 7))
        expected = [torchvision_view(image, parameters, k, 32) for k, image in enumerate(images)]
        normalised = F.normalize(torch.stack(expected), mean, std)
        torch.testing.assert_close(x, normalised, rtol=0, atol=TOLERANCE / min(std))


def test_two_views_epochs_and_seeds_differ_and_each_can_be_made_again() -> None:
    images, index = make_images("smooth", 40), torch.arange(40)

    def make(seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        return views(images, index, SETTINGS, seed=seed, epoch=epoch, size=32, mean=(0.5,) * 3, std=(0.5,) * 3)

    made = [x for seed, epoch in ((0, 0), (0, 1), (1, 0)) for x in make(seed, epoch)]
    for x, y in itertools.combinations(made, 2):
        assert (x - y).abs().flatten(1).amax(1).min() > 0.01  # every image differs
    assert all(torch.equal(x, y) for x, y in zip(made[:2], make(0, 0), strict=True))


def test_autocast_does_not_touch_the_views() -> None:
    images = make_images("smooth", 20)
    expected = augment.apply(images, draw_for(images), 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment.apply(images, draw_for(images), 32), expected)


def test_all_switched_off_is_the_image_itself() -> None:
    images = make_images("noise", 20)
    assert_near(augment.apply(images, draw_for(images, IDENTITY), 32), images / 255)


def test_probability_one_reaches_every_image() -> None:
    images = make_images("noise", 200)
    always = {f"{name}_probability": 1.0 for name in ("flip", "jitter", "grey", "blur")}
    parameters = draw_for(images, AugmentSettings(**always))
    assert parameters.flip.all()
    assert parameters.jitter.all()
    assert parameters.grey.all()
    assert (parameters.blur_sigma >= 0.1).all()
    flipped = augment.apply(images, draw_for(images, IDENTITY.model_copy(update={"flip_probability": 1.0})), 32)
    assert_near(flipped, images.flip(3) / 255)
    grey = augment.apply(images, draw_for(images, IDENTITY.model_copy(update={"grey_probability": 1.0})), 32)
    assert_near(grey, F.rgb_to_grayscale(images / 255, num_output_channels=3))


# --- pairing -------------------------------------------------------------------------------------------------------


def test_parameters_belong_to_the_image() -> None:
    index = torch.randperm(500, generator=torch.Generator().manual_seed(0)) * 100 + 7
    whole = draw(SETTINGS, 30, 40, index, key=5)
    part = draw(SETTINGS, torch.full((50,), 30), torch.full((50,), 40), index[100:150], key=5)
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[100:150], b)


@pytest.mark.parametrize(("channels", "height", "size"), [(3, 32, 32), (1, 28, 28), (3, 33, 17), (3, 60, 60)])
def test_a_view_does_not_depend_on_the_batch(
    channels: int, height: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU every bit is the same, whatever the other images are, their number, order and block."""
    num = 150
    images = make_images("smooth", num, channels, height, height)

    def view(chosen: Tensor) -> Tensor:
        parameters = draw(SETTINGS, height, height, chosen, key=2)
        return augment.apply(images[chosen], parameters, size, widest_blur=SETTINGS.blur_sigma[1])

    together = view(torch.arange(num))
    shuffled = torch.randperm(num, generator=torch.Generator().manual_seed(1))
    assert torch.equal(view(shuffled), together[shuffled])
    for few in (1, 2, 7, 31):
        for chosen in torch.split(shuffled[:62], few):
            assert torch.equal(view(chosen), together[chosen])
    monkeypatch.setattr(augment, "BLOCK", 10 * channels * size * size)
    assert torch.equal(view(shuffled), together[shuffled])


# --- distributions -------------------------------------------------------------------------------------------------

NUM_DRAWS = 20_000


def assert_same_distribution(ours: Tensor, theirs: Tensor) -> None:
    """Two samples of whole numbers: chi-square on values frequent enough, and Kolmogorov-Smirnov."""
    values = torch.cat((ours, theirs)).unique()
    counts = torch.stack([(sample[:, None] == values).sum(0) for sample in (ours, theirs)])  # (2, values)
    frequent = counts.sum(0) >= 20
    counts = torch.cat((counts[:, frequent], counts[:, ~frequent].sum(1, keepdim=True)), dim=1)
    counts = counts[:, counts.sum(0) > 0]
    if counts.shape[1] > 1:
        assert stats.chi2_contingency(counts.numpy()).pvalue > SIGNIFICANCE
    assert stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > SIGNIFICANCE


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (32, 32, (0.2, 1.0), (3 / 4, 4 / 3)),
        (28, 28, (0.2, 1.0), (3 / 4, 4 / 3)),
        (40, 25, (0.08, 1.0), (3 / 4, 4 / 3)),
        (24, 32, (0.93, 1.0), (0.7, 1.6)),  # now and then all ten tries fail
        (32, 32, (0.4, 0.4), (1.0, 1.0)),
    ],
)
def test_crop_boxes_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    blank = torch.empty(1, height, width)
    boxes = [RandomResizedCrop.get_params(blank, list(scale), list(ratio)) for _ in range(NUM_DRAWS)]
    theirs = dict(zip(("top", "left", "height", "width"), torch.tensor(boxes).unbind(1), strict=True))
    settings = AugmentSettings(crop_scale=scale, crop_ratio=ratio)
    parameters = draw(settings, height, width, torch.arange(NUM_DRAWS), key=11)
    ours = {name: getattr(parameters, name) for name in theirs}
    for name in theirs:
        assert ours[name].dtype == torch.int64
        assert_same_distribution(ours[name], theirs[name])
    for box in (ours, theirs):  # how the four hang together
        box["area"] = box["height"] * box["width"]
        box["shape"] = box["height"] - box["width"]
        box["bottom"] = box["top"] + box["height"]
        box["diagonal"] = box["top"] - box["left"]
        box["lower right"] = box["left"] + box["width"] + box["top"] + box["height"]
    for name in ("area", "shape", "bottom", "diagonal", "lower right"):
        assert_same_distribution(ours[name], theirs[name])


@pytest.mark.parametrize(("height", "width"), [(16, 64), (64, 16), (17, 61), (61, 17)])
def test_a_box_that_never_fits_falls_back_to_torchvisions_central_crop(height: int, width: int) -> None:
    settings = AugmentSettings(crop_scale=(0.95, 1.0))
    parameters = draw(settings, height, width, torch.arange(5), key=0)
    expected = RandomResizedCrop.get_params(torch.empty(1, height, width), [0.95, 1.0], [3 / 4, 4 / 3])
    for k in range(5):
        assert tuple(int(side[k]) for side in list(parameters)[:4]) == expected


def test_source_sizes_can_differ_from_image_to_image() -> None:
    height, width = torch.tensor([32, 500, 16]), torch.tensor([32, 375, 64])
    together = draw(SETTINGS, height, width, torch.arange(3), key=4)
    for k in range(3):
        alone = draw(SETTINGS, int(height[k]), int(width[k]), torch.tensor([k]), key=4)
        assert all(torch.equal(a[k : k + 1], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.4, 0.1), (0.8, 1.5, 0.2, 0.5)])
def test_colour_factors_are_distributed_as_torchvisions(strengths: tuple[float, float, float, float]) -> None:
    torch.manual_seed(0)
    names = ("brightness", "contrast", "saturation", "hue")
    jitter = ColorJitter(*strengths)
    drawn = [jitter.get_params(*(getattr(jitter, name) for name in names)) for _ in range(NUM_DRAWS // 4)]
    settings = AugmentSettings(**dict(zip(names, strengths, strict=True)))
    parameters = draw(settings, 32, 32, torch.arange(NUM_DRAWS), key=12)
    for position, name in enumerate(names, start=1):
        theirs = np.array([each[position] for each in drawn])
        ours = getattr(parameters, name).numpy()
        assert ours.dtype == np.float32
        assert stats.ks_2samp(ours, theirs).pvalue > SIGNIFICANCE
        assert ours.min() >= getattr(jitter, name)[0] - 1e-6
        assert ours.max() <= getattr(jitter, name)[1] + 1e-6


def test_all_24_orders_are_equally_likely() -> None:
    order = draw(SETTINGS, 32, 32, torch.arange(NUM_DRAWS), key=13).order
    assert torch.equal(order.sort(dim=1).values, torch.arange(4).expand(NUM_DRAWS, 4))
    counts = order.unique(dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > SIGNIFICANCE


def test_probabilities_and_blur() -> None:
    parameters = draw(SETTINGS, 32, 32, torch.arange(NUM_DRAWS), key=14)
    blurred = parameters.blur_sigma > 0
    for happens, probability in (
        (parameters.flip, SETTINGS.flip_probability),
        (parameters.jitter, SETTINGS.jitter_probability),
        (parameters.grey, SETTINGS.grey_probability),
        (blurred, SETTINGS.blur_probability),
    ):
        assert stats.binomtest(int(happens.sum()), NUM_DRAWS, probability).pvalue > SIGNIFICANCE
    assert stats.kstest(parameters.blur_sigma[blurred].numpy(), stats.uniform(0.1, 1.9).cdf).pvalue > SIGNIFICANCE
    never = draw(IDENTITY, 32, 32, torch.arange(NUM_DRAWS), key=14)
    assert not never.flip.any()
    assert not never.jitter.any()
    assert not never.grey.any()
    assert not never.blur_sigma.any()


def independent_numbers(parameters: ViewParameters) -> Iterator[tuple[str, Tensor]]:
    """What must be independent in the parameters of square images, as (name, (N,) numbers)."""
    box = {name: getattr(parameters, name).double() for name in ("top", "left", "height", "width")}
    yield "area", box["height"] * box["width"]
    yield "ratio", (box["width"] / box["height"]).log()
    yield "top", (box["top"] + 0.5) / (32 - box["height"] + 1)  # position within the room there is
    yield "left", (box["left"] + 0.5) / (32 - box["width"] + 1)
    rank = parameters.order.argsort(dim=1)
    for number in range(3):  # the fourth follows from these
        yield f"rank {number}", rank[:, number]
    yield "blurred", parameters.blur_sigma > 0
    for field in fields(parameters):
        if field.name not in {*box, "order", "blur_sigma"}:
            yield field.name, getattr(parameters, field.name)


def test_draws_are_not_coupled() -> None:
    index = torch.arange(NUM_DRAWS)
    settings = SETTINGS.model_copy(update={"solarise_probability": 0.5})  # 0 by default, which is no number to compare
    columns = {
        f"{name} of view {view} in epoch {epoch}": numbers.double()
        for view, epoch in ((1, 0), (2, 0), (1, 1))
        for name, numbers in independent_numbers(draw(settings, 32, 32, index, key=derive(0, "view", view, epoch)))
    }
    names = list(columns)
    next_image = {f"{name}, next image": columns[name].roll(1) for name in names[: len(names) // 3]}
    columns |= next_image
    names = list(columns)
    correlation = torch.corrcoef(torch.stack(list(columns.values())))
    limit = stats.norm.isf(0.01 / len(names) ** 2) / NUM_DRAWS**0.5
    for i, j in itertools.combinations(range(len(names)), 2):
        ranks = ("rank" in names[i], "rank" in names[j])
        if all(ranks) and names[i].partition(" ")[2][2:] == names[j].partition(" ")[2][2:]:
            continue  # the ranks of one permutation exclude each other
        assert abs(correlation[i, j]) < limit, (names[i], names[j])


def test_solarise_is_torchvision_s() -> None:
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(augment.solarise(images), F.solarize(images, threshold=0.5))
    settings = SETTINGS.model_copy(update={"solarise_probability": 0.2})
    drawn = draw(settings, 32, 32, torch.arange(20_000), key=3).solarise.float().mean().item()
    assert drawn == pytest.approx(0.2, abs=0.01)
