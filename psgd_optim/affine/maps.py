"""Affine twins of the linear and the convolution layers.

Shape legend: `M` outputs, `n` inputs, `O` and `I` output and input channels, `g` groups, `kh` and
`kw` the filter's height and width.
"""

from collections.abc import Callable, Sequence
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from psgd_optim.affine.base import Affine, give, join, split


@final
class AffineLinear(Affine):
    """A linear layer on one matrix `[W, b]`.

    Args:
        layer: The layer to take over; its values are copied.

    Attributes:
        weight: (M, n + 1), or (M, n) without a bias.

    Raises:
        ValueError: If weight and bias differ in dtype, device or `requires_grad`.

    Source: S0 section IV.A (15).

    >>> AffineLinear(nn.Linear(3, 2)).weight.shape
    torch.Size([2, 4])
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self.weight = join([layer.weight], _some(layer.bias))
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n) to (..., M)."""
        return F.linear(x, *split(self.weight, self.in_features))

    def plain(self) -> nn.Linear:
        """Return the `nn.Linear` with the same outputs, on parameters of its own."""
        weight, bias = split(self.weight, self.in_features)
        layer = nn.Linear(self.in_features, self.out_features, bias is not None, device="meta")
        give(layer, self.weight, weight=weight, bias=bias)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        return f"{self.in_features}, {self.out_features}"


class _Convolution(Affine):
    """What the two convolutions share.

    Args:
        layer: The layer to take over.
        arrange: Brings its filters into the shape (O, I/g, kh, kw).
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.ConvTranspose2d,
        arrange: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = layer.in_channels
        self.out_channels = layer.out_channels
        self.kernel_size = _pair(layer.kernel_size)
        self.stride = _pair(layer.stride)
        self.padding = layer.padding if isinstance(layer.padding, str) else _pair(layer.padding)
        self.dilation = _pair(layer.dilation)
        self.groups = layer.groups
        self.weight = join([layer.weight], _some(layer.bias), arrange)
        self.train(layer.training)

    def _filters(self) -> tuple[Tensor, Tensor | None]:
        """Return the filters (O, I/g, kh, kw) and the bias (O,) as views of the matrix."""
        shape = (self.in_channels // self.groups, *self.kernel_size)
        flat, bias = split(self.weight, shape[0] * shape[1] * shape[2])
        return flat.view(self.out_channels, *shape), bias

    def extra_repr(self) -> str:
        """Return the options, for `repr`."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}"
        )


@final
class AffineConv2d(_Convolution):
    """A 2-D convolution on one matrix: an affine map of every patch of the image.

    Row `o` of the matrix is the filter of output channel `o`, flattened in torch's order
    (I/g, kh, kw), and then its bias: `y = weight [patch; 1]`. With groups, the rows of one group
    share their input and those of another have another one, in the same columns.

    Args:
        layer: The layer to take over, with any options; its values are copied.

    Attributes:
        weight: (O, I/g kh kw + 1), or one column less without a bias.

    Raises:
        ValueError: If weight and bias differ in dtype, device or `requires_grad`.

    Source: S0 section IV.A.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        self.padding_mode = layer.padding_mode

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, height, width) to (B, O, ...), or the same without the batch."""
        padding: str | tuple[int, int] = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._border(), mode=self.padding_mode), (0, 0)
        return F.conv2d(x, *self._filters(), self.stride, padding, self.dilation, self.groups)

    def _border(self) -> list[int]:
        """Return how much to pad: left, right, top, bottom."""
        if not isinstance(self.padding, str):
            height, width = self.padding
            return [width, width, height, height]
        if self.padding == "valid":
            return [0, 0, 0, 0]
        total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        before = [n // 2 for n in total]  # the odd pixel goes to the right and the bottom
        return [before[1], total[1] - before[1], before[0], total[0] - before[0]]

    def plain(self) -> nn.Conv2d:
        """Return the `nn.Conv2d` with the same outputs, on parameters of its own."""
        weight, bias = self._filters()
        layer = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias is not None,
            self.padding_mode,
            device="meta",
        )
        give(layer, self.weight, weight=weight, bias=bias)
        return layer.train(self.training)


@final
class AffineConvTranspose2d(_Convolution):
    """A transposed 2-D convolution on one matrix with one row per output channel.

    Torch stores the filters with the input channel first, (I, O/g, kh, kw). Here the rows are
    outputs as everywhere else, so that the bias is a column: row `o` is, for each input channel of
    its group, the patch that the channel spreads into output `o`, and then the bias. Every output
    pixel is an affine map, with this matrix, of the inputs that reach it and of 1.

    Args:
        layer: The layer to take over, with any options; its values are copied.

    Attributes:
        weight: (O, I/g kh kw + 1), or one column less without a bias.

    Raises:
        ValueError: If weight and bias differ in dtype, device or `requires_grad`.

    Source: S0, the experiments' code. Deviation: S0 stores the
    transpose, as it does for every layer.
    """

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        super().__init__(layer, lambda weight: _exchange(weight, layer.groups))
        self.padding: tuple[int, int] = _pair([int(n) for n in layer.padding])
        self.output_padding = _pair(layer.output_padding)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Map (B, I, height, width) to (B, O, ...), or the same without the batch.

        Args:
            x: The input.
            output_size: Height and width of the output, where the stride leaves a choice;
                instead of the layer's `output_padding`.

        Returns:
            The output.
        """
        extra = self.output_padding
        if output_size is not None:
            places = (self.stride, self.padding, self.dilation, self.kernel_size)
            sizes = zip(output_size[-2:], x.shape[-2:], *places, strict=True)
            extra = _pair([
                wanted - ((n - 1) * stride - 2 * pad + dilation * (k - 1) + 1)
                for wanted, n, stride, pad, dilation, k in sizes
            ])
        filters, bias = self._filters()
        weight = _exchange(filters, self.groups)
        options = (self.stride, self.padding, extra, self.groups, self.dilation)
        return F.conv_transpose2d(x, weight, bias, *options)

    def plain(self) -> nn.ConvTranspose2d:
        """Return the `nn.ConvTranspose2d` with the same outputs, on parameters of its own."""
        filters, bias = self._filters()
        layer = nn.ConvTranspose2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            bias is not None,
            self.dilation,
            device="meta",
        )
        give(layer, self.weight, weight=_exchange(filters, self.groups), bias=bias)
        return layer.train(self.training)


def _some(bias: Tensor | None) -> list[Tensor]:
    """Return a bias that there may be as a list."""
    return [] if bias is None else [bias]


def _pair(values: Sequence[int]) -> tuple[int, int]:
    """Return the numbers of the height and of the width."""
    height, width = values
    return height, width


def _exchange(filters: Tensor, groups: int) -> Tensor:
    """Exchange the roles of input and output channels within every group.

    Args:
        filters: (g a, b, kh, kw).
        groups: g.

    Returns:
        (g b, a, kh, kw); applied twice, the input.
    """
    x = filters.reshape(groups, -1, *filters.shape[1:])  # (g, a, b, kh, kw)
    return x.transpose(1, 2).flatten(0, 1)
