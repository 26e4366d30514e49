"""Gradient dropout regularity of R-AMT (ICCV 2023): a step contradicts general knowledge only by chance.

General knowledge is what the frozen model says of safe pairs.  Let g be the gradient of the method's loss for one
trained number, and b that of the divergence from general knowledge.  g is kept with probability

    P = (1 + sign(g) (g + b) / (|g| + |b|)) / 2,

which is 1 where both have one sign and at most 1/2 where b is opposed and larger; otherwise it is multiplied by
1 - ``gradient_dropout``.  b itself moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from saferclip.config import MaskSettings
from saferclip.training.losses import Embeddings, References
from saferclip.training.processes import Processes

SMALLEST = 1e-8  # as in the released code


def divergence(tuned: Embeddings, frozen: References, logit_scale: float) -> Tensor:
    """How far the tuned model is from the frozen one on safe pairs: a scalar.

    KL divergence between the frozen and the tuned model's distributions, of each safe caption over the batch's safe
    images and of each safe image over its safe captions, which are those of the frozen model; the mean of both.
    The source has labelled images and class names instead, and tunes the image encoder only.  Rows without a safe
    image are left out.
    """
    rows = slice(None) if frozen.present is None else frozen.present.safe_image.nonzero()[:, 0]
    text, image = frozen.safe_text[rows], frozen.safe_image[rows]
    sides = ((tuned.safe_text[rows], text, image), (tuned.safe_image[rows], image, text))
    return torch.stack([_divergence(mine, before, others, logit_scale) for mine, before, others in sides]).mean()


def _divergence(tuned: Tensor, frozen: Tensor, others: Tensor, logit_scale: float) -> Tensor:
    if not len(tuned):
        return tuned.sum()  # 0, with a gradient of 0
    expected, found = (functional.log_softmax(logit_scale * queries @ others.T, dim=-1) for queries in (frozen, tuned))
    return functional.kl_div(found, expected, reduction="batchmean", log_target=True)


def kept(gradient: Tensor, general: Tensor, draws: Tensor) -> Tensor:
    """Which of a gradient's numbers are kept, for draws from [0, 1): bool; all three have one shape."""
    agreement = gradient.sign() * (gradient + general) / (gradient.abs() + general.abs() + SMALLEST)
    return (1 + agreement) / 2 > draws


class GradientDropout:
    """Collects b over the micro-batches of a step, and drops what contradicts it from the gradients."""

    def __init__(self, weights: Iterable[Tensor], settings: MaskSettings) -> None:
        self.weights = list(weights)
        self.general = [weight.detach() for weight in self.weights]  # for the gradients beside them
        self.settings = settings

    def start(self) -> None:
        """A new step."""
        for holder in self.general:
            holder.grad = None

    def add(self, divergence: Tensor) -> None:
        """Add the gradient of one micro-batch's share of the divergence; the graph is kept for the loss."""
        if not divergence.requires_grad:
            return  # where fewer rows than processes leave none for this one
        found = torch.autograd.grad(divergence, self.weights, retain_graph=True, allow_unused=True)
        for holder, gradient in zip(self.general, found, strict=True):
            if gradient is not None:
                holder.grad = gradient if holder.grad is None else holder.grad + gradient

    @torch.no_grad()
    def apply(self, processes: Processes) -> None:
        """Change the weights' gradients, which are those of all processes already."""
        processes.sum_gradients(self.general)
        # The same draws in all processes, whose own random numbers differ.
        seed = processes.from_first(lambda: int(torch.randint(2**62, ()).item()))
        generator = torch.Generator(self.weights[0].device).manual_seed(seed)
        for weight, holder in zip(self.weights, self.general, strict=True):
            if weight.grad is None:
                continue
            weight.grad += self.settings.penalty * weight / weight.norm().clamp(min=SMALLEST)
            draws = torch.rand(weight.shape, generator=generator, device=weight.device)
            general = torch.zeros_like(weight) if holder.grad is None else holder.grad
            dropped = ~kept(weight.grad, general, draws)
            weight.grad -= self.settings.gradient_dropout * dropped * weight.grad
