"""The layers that adapters are computed by: against autograd, torch's attention, and weights merged by hand."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional

from saferclip import lora, models

ROWS, WIDTH, OUT, RANK = 5, 6, 7, 2
SCALING = 1.5


def arguments(dtype: torch.dtype, bias: bool) -> tuple[Tensor | None, ...]:
    torch.manual_seed(0)
    weight, offset = torch.randn(OUT, WIDTH, dtype=dtype), torch.randn(OUT, dtype=dtype) if bias else None
    x, down, up = (
        torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((ROWS, WIDTH), (RANK, WIDTH), (OUT, RANK))
    )
    return x, weight, offset, down, up


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_finite_differences(bias: bool) -> None:
    assert torch.autograd.gradcheck(lora.AdaptedLinear.apply, (*arguments(torch.float64, bias), SCALING))


@pytest.mark.parametrize("bias", [True, False])
def test_values_are_those_of_the_merged_weight(bias: bool) -> None:
    x, weight, offset, down, up = arguments(torch.float64, bias)
    found = lora.AdaptedLinear.apply(x, weight, offset, down, up, SCALING)
    torch.testing.assert_close(found, functional.linear(x, weight + SCALING * up @ down, offset))


def test_no_gradient_is_computed_for_an_input_that_needs_none() -> None:
    x, weight, offset, down, up = arguments(torch.float64, True)
    lora.AdaptedLinear.apply(x.detach(), weight, offset, down, up, SCALING).sum().backward()
    assert x.grad is None and down.grad is not None and up.grad is not None


def adapted(precision_free: nn.Module) -> nn.Module:
    config = LoraConfig(r=RANK, lora_alpha=RANK * SCALING, target_modules="layer")
    config._register_custom_module({nn.Linear: lora.Linear})
    model = inject_adapter_in_model(config, nn.ModuleDict({"layer": precision_free}))
    nn.init.normal_(model["layer"].lora_B["default"].weight)
    return model["layer"].eval()


def test_the_frozen_weight_in_half_precision_follows_the_weight_itself() -> None:
    torch.manual_seed(0)
    layer = adapted(nn.Linear(WIDTH, OUT))
    x = torch.randn(3, ROWS, WIDTH)

    def half() -> Tensor:
        with torch.no_grad(), models.autocast("cpu", "bf16"):
            return layer(x)

    before = half()
    layer.merge()
    layer.unmerge()
    layer.base_layer.weight.data += 1  # as unmerging leaves another rounding: no version of the tensor tells
    layer.merge()
    layer.unmerge()
    assert not torch.allclose(half(), before)
    with torch.no_grad():
        torch.testing.assert_close(half().float(), layer(x), atol=0.2, rtol=0.02)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_in_half_precision_is_as_close_to_exact_as_torchs(masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 9, 8, dtype=torch.float64)
    mask = torch.full((9, 9), -torch.inf, dtype=torch.float64).triu(1) if masked else None
    exact = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    halves = [tensor.bfloat16() for tensor in (query, key, value)]
    half_mask = None if mask is None else mask.bfloat16()
    torchs = functional.scaled_dot_product_attention(*halves, attn_mask=half_mask)
    found = lora.attend(*halves, half_mask)
    assert (found - exact).abs().max() <= 2 * (torchs - exact).abs().max()
