"""PEFT's LoRA layers with the same weights under the same names, computed faster or, for attention, correctly.

PEFT computes each adapter beside its frozen layer: products, sum and casts are passes over activations of their own,
and each is kept for the backward pass.  Here the low-rank product is added where the frozen one already is, and only
the layer's input is kept; frozen weights get no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as peft_layers
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from torch.nn import functional

from saferclip.config import ConfigError

KEY = "optimisation.lora.target_modules"


class AdaptedLinear(torch.autograd.Function):
    """``x W^T + b + s (x A^T) B^T`` for x of shape (rows, in), A (rank, in) and B (out, rank); W and b are frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        """Add both products in one tensor; its type is that of all arguments."""
        low = x @ down.T
        y = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
        ctx.save_for_backward(x, low, weight, down, up)
        ctx.scaling = scaling
        return y.addmm_(low, up.T, alpha=scaling)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A and B."""
        (gradient,) = gradients
        x, low, weight, down, up = ctx.saved_tensors
        low_gradient = (gradient @ up) * ctx.scaling
        of_x = (gradient @ weight).addmm_(low_gradient, down) if ctx.needs_input_grad[0] else None
        of_up = (gradient.T @ low) * ctx.scaling
        return of_x, None, None, low_gradient.T @ x, of_up, None


def adapted_linear(layer: LoraLayer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A frozen linear layer with the active adapters of ``layer``: (..., in) to (..., out)."""
    names = layer.active_adapters
    if len(names) > 1 or isinstance(layer.lora_dropout[names[0]], nn.Dropout):
        return _apart(layer, x, weight, bias)
    kind = x.device.type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    weight, bias = _frozen(layer, weight, bias, precision)
    (name,) = names
    rows, down, up = (
        tensor.to(precision) for tensor in (x.flatten(0, -2), layer.lora_A[name].weight, layer.lora_B[name].weight)
    )
    y: Tensor = AdaptedLinear.apply(rows, weight, bias, down, up, layer.scaling[name])
    return y.view(*x.shape[:-1], -1)


def _apart(layer: LoraLayer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same for several adapters, and with dropout, which acts on the input of the low-rank product alone."""
    y = functional.linear(x, weight, bias)
    for name in layer.active_adapters:
        low = layer.lora_A[name](layer.lora_dropout[name](x))
        y = y + layer.lora_B[name](low) * layer.scaling[name]
    return y


def _frozen(
    layer: LoraLayer, weight: Tensor, bias: Tensor | None, precision: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """The frozen weights in a precision; what autocast would convert in every step is converted once.

    Merging changes them through ``.data``, which no version counts: whatever merges has to ``_forget``.
    """
    if weight.dtype == precision:
        return weight, bias
    key = (weight.data_ptr(), weight._version, precision)
    held = layer.__dict__.get("held")
    if held is None or held[0] != key:
        held = (key, weight.detach().to(precision), None if bias is None else bias.detach().to(precision))
        layer.__dict__["held"] = held
    return held[1], held[2]


def _forget(layer: LoraLayer) -> None:
    layer.__dict__.pop("held", None)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention for tensors of shape (batch, heads, length, width); ``mask``, (length, length), is added inside."""
    if query.device.type != "cpu" or query.dtype == torch.float32:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # In half precision on a CPU torch's fused attention takes ten times as long backwards, and its plain one provides
    # for rows that may look at nothing, which costs two more passes over all weights.
    (batch, heads), scale = query.shape[:2], query.shape[-1] ** -0.5
    query, key, value = (tensor.flatten(0, 1) for tensor in (query, key, value))
    keys = key.transpose(1, 2)
    products = torch.bmm(query * scale, keys) if mask is None else torch.baddbmm(mask, query, keys, alpha=scale)
    return torch.bmm(products.softmax(dim=-1), value).view(batch, heads, *query.shape[1:])


class Linear(peft_layers.Linear):
    """PEFT's layer for ``nn.Linear``."""

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Map ``x`` of shape (..., in) to (..., out)."""
        if self.disable_adapters or self.merged or args or options:
            return super().forward(x, *args, **options)
        return linear(self, x)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the frozen weight."""
        _forget(self)
        super().merge(safe_merge, adapter_names)


def linear(layer: Any, x: Tensor) -> Tensor:
    """A layer for ``nn.Linear``, PEFT's or ours, whose adapters are neither merged nor off."""
    base = layer.get_base_layer()
    return adapted_linear(layer, x, base.weight, base.bias)


class MultiheadAttention(peft_layers.MultiheadAttention):
    """PEFT's layer for packed self-attention: the same weights under the same names, computed as LoRA defines.

    PEFT (0.21) adds the output projection's adapter twice (its pull request 3774).  It also merges
    into the frozen weights before each forward pass and takes the adapter out again afterwards, so
    that rounding moves the frozen weights a little in every step, and it leaves out dropout.  Here
    the low-rank path runs beside the frozen one, as in PEFT's layer for ``nn.Linear``.
    """

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within ``query`` of shape (batch, length, width), or (length, batch, width) if not batch-first."""
        base: Any = self.get_base_layer()
        if self.disable_adapters or self.merged:
            return base(query, key, value, need_weights=need_weights, attn_mask=attn_mask, **options)
        if key is not query or value is not query or need_weights or options:
            raise ConfigError(f"{KEY}: attention between two inputs, or with more than a mask, cannot be adapted")
        packed = adapted_linear(self, query, base.in_proj_weight, base.in_proj_bias)
        if not base.batch_first:
            packed = packed.transpose(0, 1)
        batch, length, _ = packed.shape
        heads = packed.reshape(batch, length, 3, base.num_heads, base.head_dim).permute(2, 0, 3, 1, 4)
        mixed = attend(heads[0], heads[1], heads[2], None if attn_mask is None else attn_mask.to(heads.dtype))
        mixed = mixed.transpose(1, 2).flatten(2)
        return linear(base.out_proj, mixed if base.batch_first else mixed.transpose(0, 1)), None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the frozen weights, each once."""
        base: Any = self.get_base_layer()
        for layer in (self, base.out_proj):
            _forget(layer)
        adapter_names = check_adapters_to_merge(self, adapter_names)
        for adapter in adapter_names:
            base.in_proj_weight.data += self.get_delta_weight(adapter)
            self.merged_adapters.append(adapter)
        base.out_proj.merge(safe_merge, adapter_names)

    def unmerge(self) -> None:
        """Take the merged adapters out of the weights again."""
        base: Any = self.get_base_layer()
        while self.merged_adapters:
            base.in_proj_weight.data -= self.get_delta_weight(self.merged_adapters.pop())
        base.out_proj.unmerge()


class Conv2d(peft_layers.Conv2d):
    """PEFT's layer for convolutions, computed as one convolution with the sum of both weights.

    In a small network, whose layers are hardly wider than the rank, this saves a quarter of a step.
    Dropout acts on the low-rank path's input, so with dropout the paths are apart, as in PEFT.
    """

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Convolve ``x`` of shape (batch, channels, height, width)."""
        dropout = any(isinstance(self.lora_dropout[adapter], nn.Dropout) for adapter in self.active_adapters)
        if self.disable_adapters or self.merged or dropout:
            return super().forward(x, *args, **options)
        base: Any = self.get_base_layer()
        weight = base.weight + sum(self.get_delta_weight(adapter) for adapter in self.active_adapters)
        return base._conv_forward(x, weight, base.bias)
