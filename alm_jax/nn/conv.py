"""Convolutions over one or two axes, channels last, with explicit padding; and the transposed one over time."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alm_jax.nn.layout import apply_by_rows, constrain
from alm_jax.nn.parameter import declare, ones, truncated_normal, zeros

WeightNorm = Literal["none", "last", "window"]
"""Weight norm of a kernel, w = gain v / |v| (Salimans and Kingma 2016, arXiv 1602.07868, equation 2): the axis with
its own gains. "last": PyTorch's ``dim=0``; "window": ``dim=2`` of its `Conv1d`."""

_WINDOW_AXES = {1: ("window",), 2: ("window_rows", "window_columns")}


class Conv(nn.Module):
    """y = x * W + b, correlation as in `torch.nn.Conv1d` and `Conv2d`; parameters float32, products in ``dtype``.

    Parameters: ``kernel`` [*window inputs/groups features], ``bias`` [features], and ``gain`` with weight norm.
    """

    features: int
    """Number of output channels."""
    window: tuple[int, ...]
    """Kernel size along each of the one or two axes."""
    axes: tuple[str, str]
    """Axis names of the input and output channels."""
    dtype: jnp.dtype
    strides: tuple[int, ...] | None = None
    """Stride along each axis; None: 1."""
    padding: tuple[tuple[int, int], ...] | None = None
    """Zeros added before and after along each axis; None: no padding."""
    dilation: tuple[int, ...] | None = None
    """Dilation along each axis; None: 1."""
    groups: int = 1
    """Number of groups of channels, each convolved separately."""
    use_bias: bool = True
    weight_norm: WeightNorm = "none"
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(self, x: Float[Array, "B *space inputs"]) -> Float[Array, "B *out features"]:
        num_axes = len(self.window)
        spatial = "WXYZ"[:num_axes]
        shape = (*self.window, x.shape[-1] // self.groups, self.features)
        kernel = _kernel(self, shape, self.axes, self.weight_norm, self.kernel_init)

        def convolve(x: Array, kernel: Array) -> Array:
            return lax.conv_general_dilated(
                x,
                kernel,
                self.strides or (1,) * num_axes,
                self.padding or ((0, 0),) * num_axes,
                rhs_dilation=self.dilation,
                dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
                feature_group_count=self.groups,
            )

        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        # A convolution in groups is cut by its channels or not at all: the rows of all devices would be gathered.
        y = apply_by_rows(convolve, x, kernel) if self.groups > 1 else convolve(x, kernel)
        return _lay_out(self, _add_bias(self, y) if self.use_bias else y)


class ConvTranspose1d(nn.Module):
    """The transpose of a `Conv` over time, as `torch.nn.ConvTranspose1d` without padding: T -> (T - 1) stride + window.

    Parameters: ``kernel`` [window features inputs], that of the convolution whose transpose this is; ``bias``
    [features]; and with weight norm ``gain`` [inputs], which PyTorch has along the axis of the inputs too.
    """

    features: int
    """Number of output channels."""
    window: int
    """Kernel size, frames."""
    stride: int
    """Stride: output frames for one input frame."""
    axes: tuple[str, str]
    """Axis names of the input and output channels."""
    dtype: jnp.dtype
    weight_norm: Literal["none", "last"] = "none"
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(self, x: Float[Array, "B T inputs"]) -> Float[Array, "B frames features"]:
        shape = (self.window, self.features, x.shape[-1])
        kernel = _kernel(self, shape, (self.axes[1], self.axes[0]), self.weight_norm, self.kernel_init)
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            jnp.flip(kernel.astype(self.dtype), 0),
            (1,),
            ((self.window - 1, self.window - 1),),
            lhs_dilation=(self.stride,),
            dimension_numbers=("NWC", "WOI", "NWC"),
        )
        return _lay_out(self, _add_bias(self, y))


def _kernel(
    module: nn.Module,
    shape: tuple[int, ...],
    channels: tuple[str, str],
    weight_norm: WeightNorm,
    init: nn.initializers.Initializer,
) -> Array:
    """Returns the kernel of ``module``: its parameter, or with weight norm its direction times its gain."""
    axes = (*_WINDOW_AXES[len(shape) - 2], *channels)
    kernel = declare(module, "kernel", init, shape, axes)
    if weight_norm == "none":
        return kernel
    kept = 0 if weight_norm == "window" else len(shape) - 1
    gain = declare(module, "gain", ones, (shape[kept],), (axes[kept],))
    others = tuple(axis for axis in range(len(shape)) if axis != kept)
    norm = jnp.sqrt(jnp.sum(jnp.square(kernel), axis=others, keepdims=True))
    return kernel * (jnp.expand_dims(gain, others) / norm)


def _add_bias(module: "Conv | ConvTranspose1d", y: Array) -> Array:
    bias = declare(module, "bias", zeros, (module.features,), (module.axes[1],))
    return y + jnp.expand_dims(bias.astype(y.dtype), tuple(range(y.ndim - 1)))


def _lay_out(module: "Conv | ConvTranspose1d", y: Array) -> Array:
    return constrain(y, "batch", *[None] * (y.ndim - 2), module.axes[1])


def conv_length(length: int, window: int, stride: int, padding: int = 0) -> int:
    """Number of positions of a window over ``length`` frames with ``padding`` zeros in all; incomplete windows do not
    count."""
    return (length + padding - window) // stride + 1
