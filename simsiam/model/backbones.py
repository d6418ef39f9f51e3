"""Backbones: torchvision's ResNets with an ImageNet or a CIFAR stem, and a small ResNet for a CPU.

A backbone maps images (N, C, S, S) to globally pooled features (N, num_features); these are what kNN and the linear
classifier see.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from simsiam.settings.fields import BackboneSettings

LANES = 8  # float32 numbers in a vector of AVX2; with AVX-512 oneDNN has another kernel, which is right


class KeptPixels1x1(nn.Conv2d):
    """A strided 1x1 convolution, as one of stride 1 over the pixels that it keeps: the same but for rounding.

    Where a vector of AVX2 has more lanes than there are channels, oneDNN's strided kernel writes the weights' gradient
    past its workspace (oneDNN #6035). Seen with 4 channels: wrong gradients, aborts, endless loops.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input[:, :, :: self.stride[0], :: self.stride[1]], self.weight)


class SmallResNet(nn.Module):
    """A ResNet of four stages of basic blocks (He et al. 2016) whose width, depth and stem stride are free.

    The stem is a 3x3 convolution; stage i has ``width * 2**i`` channels and, but for the first, halves the map.
    """

    def __init__(self, num_channels: int, width: int, depth: int, stem_stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_channels, width, 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        in_dim, stages = width, []
        for stage in range(4):
            out_dim, blocks = width * 2**stage, []
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                shortcut = None
                if stride != 1 or in_dim != out_dim:
                    conv = nn.Conv2d if in_dim >= LANES else KeptPixels1x1
                    shortcut = nn.Sequential(
                        conv(in_dim, out_dim, 1, stride=stride, bias=False), nn.BatchNorm2d(out_dim)
                    )
                blocks.append(BasicBlock(in_dim, out_dim, stride, shortcut))
                in_dim = out_dim
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.num_features = in_dim

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, S, S) -> (N, num_features)."""
        x = self.relu(self.bn1(self.conv1(x)))
        pooled: Tensor = self.stages(x).mean((2, 3))
        return pooled


def make_backbone(settings: BackboneSettings, num_channels: int) -> tuple[nn.Module, int]:
    """The backbone and the width of its features."""
    if settings.name == "small":
        small = SmallResNet(num_channels, settings.width, settings.depth, settings.stem_stride)
        return small, small.num_features
    resnet = getattr(torchvision.models, settings.name)()
    num_features = int(resnet.fc.in_features)
    resnet.fc = nn.Identity()
    if settings.stem == "cifar":  # App. D: the 3x3 stride-1 stem of He et al. 2016 for CIFAR, without max-pool
        resnet.conv1 = nn.Conv2d(num_channels, 64, 3, padding=1, bias=False)
        resnet.maxpool = nn.Identity()
    elif num_channels != 3:
        resnet.conv1 = nn.Conv2d(num_channels, 64, 7, stride=2, padding=3, bias=False)
    return resnet, num_features


@torch.no_grad()
def zero_last_bn(backbone: nn.Module) -> None:
    """The last BN scale of each residual block starts at 0 (App. A), so that each block starts as the identity."""
    for module in backbone.modules():
        if isinstance(module, Bottleneck):
            module.bn3.weight.zero_()
        elif isinstance(module, BasicBlock):
            module.bn2.weight.zero_()
