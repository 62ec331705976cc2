"""Small networks with the idioms of well-known ones: where convolutions and BatchNorms meet, and where they do not."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


def conv_bn(inputs, outputs, kernel=3, activation=nn.ReLU, **options):
    layers = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([activation(inplace=True)] if activation else []))


class Residual(nn.Module):
    """As in ResNet: a sum after the last BatchNorm, and a projection where sizes differ."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = conv_bn(inputs, outputs, 1, None, stride=stride) if stride > 1 else None

    def forward(self, x):
        identity = x
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.downsample is not None:
            identity = self.downsample(x)
        y += identity
        return self.relu(y)


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(self.pool(x)), inplace=True)))


class InvertedResidual(nn.Module):
    """As in MobileNetV3: expansion, a depthwise convolution, squeeze and excitation, projection."""

    def __init__(self, channels):
        super().__init__()
        self.block = nn.Sequential(
            conv_bn(channels, 2 * channels, 1, nn.Hardswish),
            conv_bn(2 * channels, 2 * channels, 3, nn.Hardswish, groups=2 * channels),
            SqueezeExcite(2 * channels),
            conv_bn(2 * channels, channels, 1, None),
        )

    def forward(self, x):
        return x + self.block(x)


class Shuffle(nn.Module):
    """As in ShuffleNetV2: half of the channels go through, and both halves are shuffled."""

    def __init__(self, channels):
        super().__init__()
        self.branch = conv_bn(channels // 2, channels // 2)

    def forward(self, x):
        kept, changed = x.chunk(2, dim=1)
        y = torch.cat((kept, self.branch(changed)), dim=1)
        batch, channels, height, width = y.size()
        return y.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


class Dense(nn.Module):
    """As in DenseNet: BatchNorm of all that came before, then convolutions, with or without recomputing."""

    def __init__(self, inputs, growth, recomputes):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(growth), nn.Conv2d(growth, growth, 3, padding=1, bias=False)
        self.recomputes = recomputes

    def first(self, *inputs):
        return self.conv1(F.relu(self.norm1(torch.cat(inputs, 1))))

    def forward(self, x):
        before = [x] if isinstance(x, torch.Tensor) else x
        y = checkpoint(self.first, *before, use_reentrant=False) if self.recomputes else self.first(*before)
        return self.conv2(F.relu(self.norm2(y)))


class DenseBlock(nn.Module):
    def __init__(self, channels, recomputes=False):
        super().__init__()
        self.layers = nn.ModuleList([Dense(channels, 4, recomputes), Dense(channels + 4, 4, recomputes)])

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class Branches(nn.Module):
    """Branches on data, on an argument and on the mode, around layers of its own and modules."""

    def __init__(self, channels):
        super().__init__()
        self.stem = conv_bn(channels, channels)
        self.conv, self.bn = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)
        self.side = conv_bn(channels, channels, 1)

    def forward(self, x, with_side=None):
        x = self.stem(x)
        if x.shape[1] < 1:
            raise ValueError("x has no channels")
        if x.mean() > 0:
            x = self.bn(self.conv(x))
        elif with_side is not None:
            x = x + self.side(x)
        return x


class Loops(nn.Module):
    """A loop on data, which torch.fx cannot follow, around modules that it can."""

    def __init__(self, channels):
        super().__init__()
        self.stem = conv_bn(channels, channels)
        self.blocks = nn.ModuleList([conv_bn(channels, channels, 1), Residual(channels, channels)])
        self.conv, self.bn = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x):
        x = self.stem(x)
        for _ in range((x.abs().sum() > 0).item()):
            for block in self.blocks:
                x = block(x)
        return self.bn(self.conv(x))


class AnyArguments(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.block = Residual(channels, channels)

    def forward(self, *inputs):
        return sum(self.block(x) for x in inputs)


class Scaled(nn.Module):
    """A factor after BatchNorm: a number, a parameter or a literal."""

    def __init__(self, channels, factor):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.factor = factor

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)) * self.factor)


class Literal(Scaled):
    def forward(self, x):
        return 0.5 * self.bn(self.conv(x))


# Each with the number of pairs that are fused.
NETWORKS = {
    "residual": (lambda: nn.Sequential(conv_bn(4, 4), Residual(4, 4), Residual(4, 6, 2)), 6),
    "inverted residual": (lambda: InvertedResidual(4), 3),
    "shuffle": (lambda: Shuffle(4), 1),
    "dense": (lambda: DenseBlock(4), 2),
    "checkpoint": (lambda: DenseBlock(4, recomputes=True), 0),
    "branches": (lambda: Branches(4), 3),
    "loops": (lambda: Loops(4), 4),
    "any arguments": (lambda: AnyArguments(4), 2),
    "number": (lambda: Scaled(4, 1.5), 1),
    "integer": (lambda: Scaled(4, -2), 1),
    "parameter": (lambda: Scaled(4, nn.Parameter(torch.tensor(1.5))), 1),
    "buffer": (lambda: Scaled(4, nn.Buffer(torch.tensor([1.5]))), 1),
    "literal": (lambda: Literal(4, None), 1),
    "traced": (lambda: torch.fx.symbolic_trace(nn.Sequential(conv_bn(4, 4), Residual(4, 6, 2))), 4),
    "frozen": (lambda: Residual(4, 6, 2).requires_grad_(False), 3),
    "double": (lambda: Residual(4, 6, 2).double(), 3),
}


def build(name):
    """Return a network of that name, from a seed, with statistics unlike a fresh BatchNorm's."""
    torch.manual_seed(0)
    return with_statistics(NETWORKS[name][0]())


def with_statistics(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.uniform_(module.bias)
    return model
