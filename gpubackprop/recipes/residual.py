"""The residual block of small pictures."""

from __future__ import annotations

from gpubackprop import nn
from gpubackprop.autograd import Tensor
from gpubackprop.errors import ConfigError
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation

SHORTCUTS = ("A", "B")


class ResidualBlock(nn.Module):
    """relu(x' + norm(conv(relu(norm(conv(x)))))), with 3x3 convolutions: (N, H, W, channels) to
    (N, ceil(H / stride), ceil(W / stride), filters).

    Parameters
    ----------
    channels, filters : channels of the input and of the result.
    stride : of the first convolution.
    shortcut : what x' is where the shapes differ; else x' is x. ``"A"``: every `stride`-th pixel
        of x, with channels of zeros behind its own, which learns nothing. ``"B"``: a 1x1
        convolution of that stride, with batch normalisation.

    Notes
    -----
    He, Zhang, Ren & Sun, "Deep residual learning for image recognition" (2015), section 3.2 and
    figure 2; the shortcuts are options A and B of section 3.3. Section 4.2 takes A for CIFAR-10.
    Convolutions have no bias, since normalisation would take it away, and normal initial values of
    variance 2 / fan_in (He et al., "Delving deep into rectifiers", 2015, section 2.2).
    """

    def __init__(self, channels: int, filters: int, stride: int = 1, shortcut: str = "A") -> None:
        if shortcut not in SHORTCUTS:
            raise ConfigError(f"ResidualBlock: shortcut must be 'A' or 'B', not {shortcut!r}")
        if shortcut == "A" and filters < channels:
            raise ConfigError(
                f"ResidualBlock: shortcut 'A' cannot go from {channels} channels to {filters}; "
                "take 'B'"
            )
        self.stride = stride
        self.added = filters - channels
        self.conv1 = _conv(channels, filters, 3, stride)
        self.norm1 = nn.BatchNorm2d(filters, channels_last=True)
        self.conv2 = _conv(filters, filters, 3, 1)
        self.norm2 = nn.BatchNorm2d(filters, channels_last=True)
        self.shortcut: nn.Module | None = None
        if shortcut == "B" and (stride != 1 or self.added):
            self.shortcut = nn.Sequential(
                _conv(channels, filters, 1, stride), nn.BatchNorm2d(filters, channels_last=True)
            )

    @staticmethod
    def count(channels: int, filters: int, stride: int, shortcut: str) -> int:
        """How many numbers a block learns, without making one."""
        learnt = 9 * filters * (channels + filters) + 4 * filters
        if shortcut == "B" and (stride != 1 or channels != filters):
            learnt += filters * channels + 2 * filters
        return learnt

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        x = self.norm1(self.conv1(input)).relu()
        return (self.norm2(self.conv2(x)) + self._passed(input)).relu()

    def _passed(self, x: Tensor) -> Tensor:
        """What is added to the result of the convolutions."""
        if self.shortcut is not None:
            return self.shortcut(x)
        if self.stride != 1:
            x = x[:, :: self.stride, :: self.stride]
        return F.pad(x, (0, self.added)) if self.added else x


def _conv(channels: int, filters: int, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, bias=False, channels_last=True)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv
