"""Layers that are chosen by name, and what enters them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from saferclip.config import ConfigError

IMAGE_ENCODER = "visual."


def choose(model: nn.Module, expression: str, key: str, encoder: str) -> dict[str, nn.Linear | nn.Conv2d]:
    """The linear layers and convolutions whose open_clip names an expression matches in full, all of one encoder.

    Raises ConfigError, naming the setting ``key``, if there is none, or one of another kind or encoder.
    """
    try:
        found = {name: module for name, module in model.named_modules() if re.fullmatch(expression, name)}
    except re.error as error:
        raise ConfigError(f"{key}: not a regular expression: {error}") from error
    inside = {name for name, _ in model.named_modules() if name.startswith(IMAGE_ENCODER) == (encoder == "image")}
    if not found:
        names = ", ".join(sorted({re.sub(r"\d+", "N", name) for name in inside if name}))
        raise ConfigError(f"{key}: {expression!r} selects no module; there are (N is a number): {names}")
    for name, module in found.items():
        if name not in inside:
            raise ConfigError(f"{key}: selects {name}, which is not in the {encoder} encoder; leave it out")
        if not isinstance(module, nn.Linear | nn.Conv2d) or getattr(module, "groups", 1) > 1:
            kind = type(module).__name__
            raise ConfigError(f"{key}: selects {name} ({kind}), not a linear layer or plain convolution; leave it out")
    return found


@contextmanager
def inputs_of(model: nn.Module, chosen: Mapping[str, nn.Linear | nn.Conv2d]) -> Iterator[dict[str, Tensor]]:
    """While open, each forward pass leaves what enters each layer here: (batch, positions, features) by name.

    Features are those that a row of the layer's weight is multiplied by; for a convolution, those of a patch.
    The model's output is what it always is.
    """
    seen: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, layer in chosen.items():
            parent = model.get_submodule(name.rpartition(".")[0])
            if isinstance(parent, nn.MultiheadAttention):
                hooks.enter_context(_input_of_projection(parent, seen, name))
            else:
                handle = layer.register_forward_pre_hook(_keeper(seen, name))
                hooks.callback(handle.remove)
        yield seen


def _keeper(seen: dict[str, Tensor], name: str) -> Any:
    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[name] = _patches(layer, inputs[0]) if isinstance(layer, nn.Conv2d) else inputs[0]

    return keep


def _patches(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """What a convolution multiplies its weight by: (batch, channels, height, width) to (batch, patches, features)."""
    if isinstance(layer.padding, str):
        raise ConfigError(f"a convolution with padding '{layer.padding}' cannot be scored; leave it out")
    columns = functional.unfold(images, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.transpose(1, 2)


@contextmanager
def _input_of_projection(attention: nn.MultiheadAttention, seen: dict[str, Tensor], name: str) -> Iterator[None]:
    """The input of attention's output projection, whose weight torch reads without calling the layer.

    Meanwhile the projection is the identity, so that attention returns that input; a hook then projects it.
    """
    layer = attention.out_proj
    weight, bias = layer.weight.data, layer.bias.data

    def project(_module: nn.Module, _inputs: Any, outputs: tuple[Tensor, Tensor | None]) -> Any:
        seen[name] = outputs[0] if attention.batch_first else outputs[0].transpose(0, 1)
        return functional.linear(outputs[0], weight, bias), outputs[1]

    handle = attention.register_forward_hook(project)
    try:
        layer.weight.data, layer.bias.data = torch.eye(len(weight)).to(weight), torch.zeros_like(bias)
        yield
    finally:
        layer.weight.data, layer.bias.data = weight, bias
        handle.remove()
