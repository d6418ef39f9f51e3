"""Two augmented views of a batch of images, each image with random parameters of its own.

The distribution is that of torchvision's transforms in the order of the authors' release: RandomResizedCrop,
ColorJitter, RandomGrayscale, GaussianBlur, RandomHorizontalFlip; BYOL's solarisation comes after the blur. The work is
done on whole batches, on the device the images are on. Cropping, resizing and flipping together are one linear map
along each axis, and so is blurring: both are two batched matrix products.

Parameters are drawn on the device of the image indices. Which images an operation applies to is decided there too, so
that with indices on the CPU a GPU is never waited for.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from simsiam.randomness import derive, uniform
from simsiam.settings.fields import AugmentSettings

NUM_TRIES = 10  # RandomResizedCrop's, before it falls back to a central crop
LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue
TABLE = 2**21  # numbers in a table of resizing weights, at most: enough for images of 32x32
BAND = 16  # pixels of a blurred axis that are made at a time
NEGLIGIBLE = 7.0  # standard deviations; a Gaussian has 3e-12 of its weight beyond
BLOCK = 2**20  # numbers in the part of a batch that a CPU works on at a time: few calls, and still in the cache


@dataclass(frozen=True)
class ViewParameters:
    """The random numbers of one view of N images; every field has length N."""

    top: Tensor  # crop box in pixels of the source image, int64
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor  # bool
    order: Tensor  # (N, 4) int64: which of brightness, contrast, saturation, hue (0 to 3) comes first, second ...
    jitter: Tensor  # bool: whether the four are applied at all
    brightness: Tensor  # factors, at least 0; 1 changes nothing
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # shift in turns, within -+ 0.5; 0 changes nothing
    grey: Tensor  # bool
    blur_sigma: Tensor  # standard deviation in pixels of the view; 0: no blur
    solarise: Tensor  # bool: values from the middle of the range up are inverted

    def __iter__(self) -> Iterator[Tensor]:
        """The fields, in the order of declaration."""
        return (getattr(self, field.name) for field in fields(self))


# --- drawing -----------------------------------------------------------------------------------------------------


def draw(
    settings: AugmentSettings, height: int | Tensor, width: int | Tensor, index: Tensor, *, key: int
) -> ViewParameters:
    """The parameters of one view of N images, each a function of ``key`` and the image's index alone.

    height, width: size of the source images in pixels, one for all or (N,). index: (N,) int64. The parameters are on
    the index's device and are distributed as torchvision's.
    """
    # float64: a whole number below n is floor(n * u), and the n itself must not come up by rounding.
    u = uniform(key, index, 2 * NUM_TRIES + 13).double()  # (N, 33)
    area_draws, ratio_draws, rest = torch.split(u, [NUM_TRIES, NUM_TRIES, 13], dim=1)
    top, left, flip, order, jitter, brightness, contrast, saturation, hue, grey, blur, sigma, inverted = rest.unbind(1)
    box = _draw_box(settings, height, width, area_draws, ratio_draws, top, left)
    orders = torch.tensor(list(itertools.permutations(range(4))), device=index.device)  # (24, 4)
    return ViewParameters(
        *box,
        flip=flip < settings.flip_probability,
        order=orders[(order * len(orders)).long()],
        jitter=jitter < settings.jitter_probability,
        brightness=_factor(brightness, settings.brightness),
        contrast=_factor(contrast, settings.contrast),
        saturation=_factor(saturation, settings.saturation),
        hue=_within(hue, -settings.hue, settings.hue).float(),
        grey=grey < settings.grey_probability,
        blur_sigma=torch.where(blur < settings.blur_probability, _within(sigma, *settings.blur_sigma).float(), 0.0),
        solarise=inverted < settings.solarise_probability,
    )


def _within(u: Tensor, low: float, high: float) -> Tensor:
    return u * (high - low) + low


def _factor(u: Tensor, strength: float) -> Tensor:
    return _within(u, max(0.0, 1 - strength), 1 + strength).float()


def _draw_box(
    settings: AugmentSettings,
    height: int | Tensor,
    width: int | Tensor,
    area_draws: Tensor,
    ratio_draws: Tensor,
    top_draw: Tensor,
    left_draw: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """RandomResizedCrop.get_params for N images at once, from (N, tries) and (N,) uniform numbers."""
    full_height = torch.as_tensor(height, device=top_draw.device).expand(len(top_draw))
    full_width = torch.as_tensor(width, device=top_draw.device).expand(len(top_draw))

    area = (full_height * full_width)[:, None] * _within(area_draws, *settings.crop_scale)
    ratio = _within(ratio_draws, *(math.log(bound) for bound in settings.crop_ratio)).exp()
    widths = (area * ratio).sqrt().round().long()
    heights = (area / ratio).sqrt().round().long()
    fits = (widths > 0) & (widths <= full_width[:, None]) & (heights > 0) & (heights <= full_height[:, None])
    first = fits.int().argmax(dim=1, keepdim=True)  # of equal maxima, the first

    # Fallback: the largest central crop whose ratio is allowed.
    low, high = settings.crop_ratio
    central_height = torch.minimum(full_height, (full_width / low).round().long())
    central_width = torch.minimum(full_width, (full_height * high).round().long())

    found = fits.any(dim=1)
    crop_height = torch.where(found, heights.gather(1, first).squeeze(1), central_height)
    crop_width = torch.where(found, widths.gather(1, first).squeeze(1), central_width)
    free_height, free_width = full_height - crop_height, full_width - crop_width
    top = torch.where(found, (top_draw * (free_height + 1)).long(), free_height // 2)
    left = torch.where(found, (left_draw * (free_width + 1)).long(), free_width // 2)
    return top, left, crop_height, crop_width


# --- applying ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def views(
    images: Tensor,
    index: Tensor,
    settings: AugmentSettings,
    *,
    seed: int,
    epoch: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    second: AugmentSettings | None = None,
    pair: int = 0,
) -> tuple[Tensor, Tensor]:
    """The two views x1, x2 of a batch, normalised by ``mean`` and ``std`` of each channel: (N, C, size, size) float32.

    images: (N, C, H, W), uint8 or float in [0, 1]. index: (N,) int64, the images' places in the data set. ``second``:
    the distribution of x2, if it is another. Each ``pair`` is another draw.
    """
    height, width = images.shape[2:]
    both = draw_pair((settings, second or settings), height, width, index, seed=seed, epoch=epoch, pair=pair)
    together = ViewParameters(*(torch.cat(parts) for parts in zip(*both, strict=True)))
    x = apply(images.repeat(2, 1, 1, 1), together, size, widest_blur=widest_blur(settings, second))
    return _normalised(x, mean, std)


def draw_pair(
    settings: tuple[AugmentSettings, AugmentSettings],
    height: int | Tensor,
    width: int | Tensor,
    index: Tensor,
    *,
    seed: int,
    epoch: int,
    pair: int = 0,
) -> tuple[ViewParameters, ViewParameters]:
    """The parameters of x1 and x2, see :func:`draw`."""
    x1, x2 = (
        draw(own, height, width, index, key=derive(seed, "view", 2 * pair + view, epoch))
        for view, own in enumerate(settings, start=1)
    )
    return x1, x2


@torch.no_grad()
def views_of_crops(
    crops: Tensor,
    drawn: tuple[ViewParameters, ViewParameters],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    widest_blur: float,
) -> tuple[Tensor, Tensor]:
    """As :func:`views`, of crops (2N, C, S, S) uint8 that a loader has made: N of view 1, then N of view 2.

    The loader has cut, resized and mirrored them by the parameters ``drawn``; what follows is done here.
    """
    together = ViewParameters(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))
    x = apply(crops, together, crops.shape[3], crop=False, widest_blur=widest_blur)
    return _normalised(x, mean, std)


def widest_blur(*settings: AugmentSettings | None) -> float:
    """The largest standard deviation that may be drawn, in pixels."""
    return max(each.blur_sigma[1] for each in settings if each is not None)


def _normalised(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    x.sub_(torch.tensor(mean)[:, None, None].to(x.device, non_blocking=True))
    x.div_(torch.tensor(std)[:, None, None].to(x.device, non_blocking=True))
    return x[: len(x) // 2], x[len(x) // 2 :]


def apply(
    images: Tensor, parameters: ViewParameters, size: int, *, crop: bool = True, widest_blur: float | None = None
) -> Tensor:
    """One view of each image: (N, C, size, size) float32 in [0, 1].

    images: (N, C, H, W) with C of 1 or 3, uint8 or float in [0, 1]. The parameters may be on another device. Without
    ``crop`` the images are taken to be the crops already, resized and mirrored. ``widest_blur``: no ``blur_sigma`` is
    larger, see :func:`gaussian_blur`.
    """
    view = torch.empty(len(images), images.shape[1], size, size, device=images.device)
    num = max(1, BLOCK // (images.shape[1] * size * size)) if images.device.type == "cpu" else len(images)
    blocks = zip(*(torch.split(part, num) for part in (view, images, *parameters)), strict=True)
    for view_block, images_block, *parameters_block in blocks:
        _apply(images_block, ViewParameters(*parameters_block), size, crop, widest_blur, view_block)
    return view


def _apply(
    images: Tensor, parameters: ViewParameters, size: int, crop: bool, widest_blur: float | None, view: Tensor
) -> None:
    device = images.device
    if crop:
        box = (parameters.top, parameters.left, parameters.height, parameters.width, parameters.flip)
        x = resized_crop(images, *(part.to(device, non_blocking=True) for part in box), size=size)
    else:
        x = images.float().div_(255) if images.dtype == torch.uint8 else images
    x = color_jitter(x, parameters, out=view)
    if x.shape[1] == 3 and len(chosen := parameters.grey.nonzero().squeeze(1)):
        chosen = chosen.to(device, non_blocking=True)
        grey = greyscale(x.index_select(0, chosen))
        x.index_copy_(0, chosen, grey.expand(-1, 3, -1, -1))
    if len(chosen := parameters.blur_sigma.nonzero().squeeze(1)):
        sigma = parameters.blur_sigma[chosen].to(device, non_blocking=True)
        chosen = chosen.to(device, non_blocking=True)
        x.index_copy_(0, chosen, gaussian_blur(x.index_select(0, chosen), sigma, widest_blur))
    if len(chosen := parameters.solarise.nonzero().squeeze(1)):
        chosen = chosen.to(device, non_blocking=True)
        x.index_copy_(0, chosen, solarise(x.index_select(0, chosen)))


def color_jitter(x: Tensor, parameters: ViewParameters, out: Tensor | None = None) -> Tensor:
    """ColorJitter, each image with its own order of the four operations. x: (N, C, H, W) in [0, 1], C of 1 or 3.

    The result is in ``out``, if it is given, which must not be x.
    """
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    factors = torch.stack((parameters.brightness, parameters.contrast, parameters.saturation, parameters.hue), dim=1)
    changes = parameters.jitter[:, None] & (factors != torch.tensor((1.0, 1.0, 1.0, 0.0), device=factors.device))
    if x.shape[1] == 1:
        changes[:, 2:] = False  # as torchvision: saturation and hue leave grey-scale data as it is
    never = len(operations)
    turn, operation = torch.where(changes, parameters.order.argsort(dim=1), never).sort(dim=1)  # (N, 4)
    due = operation.masked_fill(turn == never, never)  # (N, 4): what each image gets in each turn

    # For every two turns the images are sorted by what is due in the first and then in the second, so that each
    # operation of the first is done on one slice, and each of the second on one slice of each of these.
    place = torch.arange(len(x), device=due.device)  # (N,): where each image is in x
    for turns in torch.split(due, 2, dim=1):
        kind = turns[:, 0] * (never + 1) + turns[:, 1]
        sizes = kind.bincount(minlength=(never + 1) ** 2).view(never + 1, never + 1)
        if int(sizes[never, never]) == len(x):
            break
        image = kind.argsort()  # (N,): the image that comes to each place
        x = x.index_select(0, place[image].to(x.device, non_blocking=True))
        slice_factors = factors[image].to(x.device, non_blocking=True)
        for counts in (sizes.sum(1).tolist(), sizes.flatten().tolist()):
            for number, (part, factor) in enumerate(
                zip(torch.split(x, counts), torch.split(slice_factors, counts), strict=True)
            ):
                chosen = number % (never + 1)
                if len(part) > 0 and chosen != never:
                    operations[chosen](part, factor[:, chosen], out=part)
        place = image.argsort()
    return torch.index_select(x, 0, place.to(x.device, non_blocking=True), out=out)


# --- operations --------------------------------------------------------------------------------------------------


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, flip: Tensor, *, size: int
) -> Tensor:
    """Crop each image to its box, resize it (bilinear, antialiased where it shrinks), mirror it where ``flip``.

    images: (N, C, H, W), uint8 or float in [0, 1]; box and flip: (N,). Returns (N, C, size, size) float32 in [0, 1].
    """
    rows = _looked_up(top, height, torch.zeros_like(flip), images.shape[2], size)
    columns = _looked_up(left, width, flip, images.shape[3], size)
    if not images.is_floating_point():
        columns.div_(torch.iinfo(images.dtype).max)
    return _separable(images.float(), rows, columns)


def _looked_up(start: Tensor, length: Tensor, flip: Tensor, full: int, size: int) -> Tensor:
    """As :func:`_resizing`; of small images, from a table of all boxes."""
    if full**3 * size > TABLE:
        return _resizing(start, length, flip, full, size)
    shorter = (length - 1) * (2 * full + 2 - length) // 2  # how many boxes there are that are shorter
    return _all_resizings(full, size, start.device).index_select(0, 2 * (shorter + start) + flip)


@functools.cache
def _all_resizings(full: int, size: int, device: torch.device) -> Tensor:
    """:func:`_resizing` of each box of an axis, by length and then by start, as it is and then mirrored."""
    boxes = [(start, length) for length in range(1, full + 1) for start in range(full - length + 1)]
    start, length = torch.tensor(boxes, device=device).repeat_interleave(2, dim=0).unbind(1)
    flip = torch.arange(len(start), device=device) % 2 == 1
    return _resizing(start, length, flip, full, size)


def _resizing(start: Tensor, length: Tensor, flip: Tensor, full: int, size: int) -> Tensor:
    """The weights (N, size, full) that resize [start, start + length) of an axis of ``full`` pixels to ``size``."""
    start, length = start[:, None], length[:, None]
    scale = length / size  # (N, 1): source pixels in a pixel of the view
    support = scale.clamp(min=1)  # half the width of the triangle that pixels are weighted by
    target = torch.arange(size, device=start.device)
    target = torch.where(flip[:, None], size - 1 - target, target)  # (N, size)
    centre = ((target + 0.5) * scale + start - 0.5) / support  # (N, size)
    pixel = torch.arange(full, device=start.device)
    inside = (pixel >= start) & (pixel < start + length)
    pixel = torch.where(inside, pixel / support, math.inf)  # (N, full): what is outside the box is out of reach
    # Minus the triangle, which saves a pass: the sign cancels.
    weights = (pixel[:, None] - centre[:, :, None]).abs_().sub_(1).clamp_(max=0)
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Map the two axes of images (N, C, H, W) by matrices (N, S, H) and (N, S, W): (N, C, S, S)."""
    num, channels, height, width = x.shape
    with torch.autocast(x.device.type, enabled=False):
        x = torch.bmm(x.reshape(num, channels * height, width), columns.transpose(1, 2))
        return torch.matmul(rows[:, None], x.view(num, channels, height, -1))


def greyscale(x: Tensor) -> Tensor:
    """The luma of images (N, C, H, W): (N, 1, H, W)."""
    if x.shape[1] == 1:
        return x
    red, green, blue = torch.split(x, 1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def adjust_brightness(x: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Blend images (N, C, H, W) with black; ``factor`` (N,) is the image's share. ``out``: for the result, may be x."""
    return torch.mul(x, factor[:, None, None, None], out=out).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Blend images (N, C, H, W) with the mean of their luma; ``factor`` (N,) is the image's share."""
    return _blend(x, greyscale(x).mean(dim=(1, 2, 3), keepdim=True), factor, out)


def adjust_saturation(x: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Blend images (N, 3, H, W) with their luma; ``factor`` (N,) is the image's share."""
    return _blend(x, greyscale(x), factor, out)


def _blend(x: Tensor, other: Tensor, factor: Tensor, out: Tensor | None) -> Tensor:
    factor = factor[:, None, None, None]
    return torch.mul(x, factor, out=out).add_(other * (1 - factor)).clamp_(0, 1)


def adjust_hue(x: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """Turn the hue (HSV) of images (N, 3, H, W) by ``shift`` (N,), in turns within -+ 0.5."""
    red, green, blue = x.unbind(1)
    # Faster than amin and amax over the channels.
    low, high = torch.minimum(red, green).minimum(blue), torch.maximum(red, green).maximum(blue)
    chroma = high - low
    # With channels scaled so that the lowest is 0 and the highest 1, the hue is 1 + green + blue - red sixths of a turn
    # away from red: towards green if there is more of it than of blue, else towards blue. No case for each channel is
    # needed, and where the chroma is 0 the hue is of no consequence.
    away = (green + blue).sub_(red).add_(high).sub_(low, alpha=2).div_(chroma.clamp(min=1e-20))
    turns = away.copysign_(green - blue).div_(6).add_(shift[:, None, None])
    hue = turns.sub_(turns.floor()).mul_(6)  # in sixths, from 0 to 6
    # Lowest and highest channel keep their values. Between them each channel is a trapezoid of the hue's distance, on
    # the circle, from the channel's own place: 1 up to one sixth, 0 from two sixths on. For a difference d of at most a
    # turn that distance is 3 - | |d| - 3 |.
    place = torch.arange(0.0, 6.0, 2.0, device=x.device)[:, None, None]  # of red, green and blue
    share = (hue[:, None] - place).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)  # (N, 3, H, W)
    return torch.add(share.mul_(chroma[:, None]), low[:, None], out=out)


def solarise(x: Tensor) -> Tensor:
    """Values of at least one half are inverted. x: (N, C, H, W) in [0, 1]."""
    return torch.where(x >= 0.5, 1 - x, x)


def gaussian_blur(x: Tensor, sigma: Tensor, widest: float | None = None) -> Tensor:
    """Gaussian blur of square images (N, C, S, S) with standard deviations ``sigma`` (N,), in pixels, above 0.

    Borders are reflected. The kernel reaches S - 1 pixels to either side, as far as reflection can, whatever sigma is:
    so it does not depend on the other images, and what it cuts off is negligible. ``widest``: no sigma is larger, which
    saves large images the work on what no kernel weighs.
    """
    size = x.shape[-1]
    pixel = torch.arange(size, device=x.device)
    kernel = (pixel / sigma[:, None]).square_().mul_(-0.5).exp_()  # (N, S): from the centre to one side
    kernel.div_(2 * kernel.sum(dim=1, keepdim=True) - 1)
    # weights[:, i, j] collects what pixel i gets from pixel j at distance |i - j| and from its mirror images at i + j
    # (all but the first pixel have one) and 2 (S - 1) - i - j (all but the last).
    both_sides = torch.cat((kernel.flip(1), kernel[:, 1:]), dim=1)  # (N, 2 S - 1)
    mirrored = torch.nn.functional.pad(kernel, (0, size - 1)).unfold(1, size, 1) * (pixel > 0)  # (N, S, S)
    weights = both_sides.unfold(1, size, 1).flip(1).add_(mirrored).add_(mirrored.flip(1, 2))
    reach = size if widest is None else math.ceil(NEGLIGIBLE * widest)
    return _separable(x, weights, weights) if size <= 2 * BAND + reach else _banded(x, weights, reach)


def _banded(x: Tensor, weights: Tensor, reach: int) -> Tensor:
    """Map both axes of images (N, C, S, S) by matrices (N, S, S), of which only ``reach`` from the diagonal counts."""
    num, channels, size, _ = x.shape
    halfway, result = torch.empty_like(x), torch.empty_like(x)
    with torch.autocast(x.device.type, enabled=False):
        for start in range(0, size, BAND):
            made, used = slice(start, start + BAND), slice(max(0, start - reach), start + BAND + reach)
            some = weights[:, made, used].transpose(1, 2)
            halfway[..., made] = torch.bmm(x[..., used].flatten(1, 2), some).view(num, channels, size, -1)
        for start in range(0, size, BAND):
            made, used = slice(start, start + BAND), slice(max(0, start - reach), start + BAND + reach)
            result[:, :, made] = torch.matmul(weights[:, None, made, used], halfway[:, :, used])
    return result
