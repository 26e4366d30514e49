"""The model that is tuned, and how quadruples go through it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from tqdm import tqdm

from saferclip import models, tuners
from saferclip.config import HyperbolicMethod, MethodSettings, TrainingSettings
from saferclip.mining.embedding import spread
from saferclip.mining.pixels import split_preprocess
from saferclip.models import Clip
from saferclip.training import losses
from saferclip.training.gradient_dropout import GradientDropout, divergence
from saferclip.training.inputs import Split
from saferclip.training.losses import Embeddings, References
from saferclip.training.processes import Processes
from saferclip.training.space import LearntSpace

# Of a step's numbers those that the clock says; they differ from run to run.
CLOCK = ("quadruples_per_second", "waiting_for_pixels")


class Tuner:
    """The model being tuned and its optimiser, in one process or in each of several."""

    def __init__(
        self, clip: Clip, tuned: nn.Module, settings: TrainingSettings, processes: Processes | None = None
    ) -> None:
        self.clip = clip
        self.tuned = tuned
        self.settings = settings
        self.processes = processes or Processes()
        self.device = next(tuned.parameters()).device
        self.space: LearntSpace | None = None  # where embeddings are unit vectors
        if isinstance(settings.method, HyperbolicMethod):
            dim = clip.architecture["model_cfg"]["embed_dim"]
            self.space = LearntSpace(settings.method.geometry, dim, self.device)
        self.kind = tuners.kind_of(settings)
        self.weights = self.kind.weights(tuned) | (self.space.weights if self.space else {})
        scale = settings.optimisation.logit_scale
        self.logit_scale = scale if isinstance(scale, float) else clip.model.get_parameter("logit_scale").exp().item()
        self.optimiser = torch.optim.Adam(self.weights.values(), lr=settings.method.learning_rate, fused=True)
        _, self.normalise = split_preprocess(clip.preprocess)
        mask = settings.method.tuner
        self.regularity = GradientDropout(self.weights.values(), mask) if mask else None

    def steps(
        self, rows: Tensor, quadruples: Split, frozen: References, description: str
    ) -> Iterator[dict[str, float]]:
        """Take one optimiser step for each batch of rows, yielding the numbers that led to it.

        Gradients are those of the mean over the rows of the whole batch that take part in a term, however many
        micro-batches it is split into, for all terms but those that compare rows with each other (contrasts, spread,
        neighbourhoods, joint predictions): these are within a micro-batch.  Terms in which no row takes part have no
        number.  None of this depends on how many processes share the batch.  ``waiting_for_pixels`` is the share of
        the step's time in which there were none to work on.
        """
        if not len(rows):
            return  # an epoch whose steps were all taken before an interruption
        method, optimisation = self.settings.method, self.settings.optimisation
        micro_batch = math.ceil(optimisation.batch_size / optimisation.accumulation)
        batches = [torch.split(batch, micro_batch) for batch in torch.split(rows, optimisation.batch_size)]
        pixels = quadruples.pictures.batches([self.processes.share(part) for parts in batches for part in parts])
        names = losses.active(method.weights)
        taking_part = frozen.taking_part(method.cross_modal, names)
        self.kind.set_training_mode(self.tuned)
        # disable=None: tqdm is silent where the output is not a terminal.
        for parts in tqdm(batches, desc=description, disable=None if self.processes.first else True):
            start, waited = time.perf_counter(), 0.0
            count = sum(len(part) for part in parts)
            sums = torch.zeros(len(names) + 1, device=self.device)
            used = counts(taking_part, torch.cat(parts))
            self.optimiser.zero_grad()
            if self.regularity:
                self.regularity.start()
            for part in parts:
                asked = time.perf_counter()
                images = next(pixels)
                waited += time.perf_counter() - asked
                embedded = self.embed_together(quadruples, part, images)
                references, own = frozen.select(part, self.device), counts(taking_part, part)
                shares = {name: own[name] / used[name] if used[name] else 0.0 for name in own}
                sums += self._backward(embedded, references, shares)
            self.processes.sum_gradients(self.weights.values())
            if self.regularity:
                self.regularity.apply(self.processes)
            norm = nn.utils.clip_grad_norm_(self.weights.values(), optimisation.max_gradient_norm)
            numbers = dict(zip(("loss", *names), sums.tolist(), strict=True))
            numbers = {name: number for name, number in numbers.items() if used.get(name, count)}
            numbers["gradient_norm"] = norm.item()
            seconds = time.perf_counter() - start
            numbers |= dict(zip(CLOCK, (count / seconds, waited / seconds), strict=True))
            self.optimiser.step()
            if self.space:
                self.space.keep_in_range()
            yield numbers

    def _backward(self, embedded: Embeddings, frozen: References, shares: Mapping[str, float]) -> Tensor:
        """Add a micro-batch's gradients; its loss and terms, (1 + terms,), as what they add to those of the batch.

        ``shares`` says how many of the batch's rows that take part in a term are in this micro-batch.
        """
        method = self.settings.method
        space = self.space.for_losses(self.processes.count) if self.space else None
        plain = method if isinstance(method, MethodSettings) else None
        terms = losses.terms(embedded, frozen, method.cross_modal, self.logit_scale, tuple(shares), plain, space)
        loss = losses.contribution(terms, shares, method.weights)
        if self.regularity:
            # Of all safe pairs of the batch, those of this micro-batch.
            share = shares["preservation_cross_text"]
            self.regularity.add(share * divergence(embedded, frozen, self.logit_scale))
        if loss.requires_grad:  # not where fewer rows than processes leave none for this one
            loss.backward()  # type: ignore[no-untyped-call]
        return torch.stack([loss, *(shares[name] * term for name, term in terms.items())]).detach()

    def embed_together(self, quadruples: Split, rows: Tensor, pixels: Tensor) -> Embeddings:
        """Embed some rows, of which ``pixels`` are those of this process's share; gradient flows into that alone."""
        own = self.processes.share(rows)
        if len(own):
            embedded = self.embed(quadruples, own, pixels)
        else:
            embedded = Embeddings(
                *torch.zeros(4, 0, self.clip.architecture["model_cfg"]["embed_dim"], device=self.device)
            )
        return Embeddings(*self.processes.join(embedded, len(rows)))

    def embed(self, quadruples: Split, rows: Tensor, pixels: Tensor) -> Embeddings:
        """Embed some rows, whose pixels are given: safe and unsafe inputs in one pass for each modality.

        They are unit vectors, or points where the method has a space.  Where an image is withheld, its row is zero.
        """
        normalize = self.space is None
        tokens = torch.cat([quadruples.safe_tokens[rows], quadruples.unsafe_tokens[rows]]).to(self.device)
        images = self.normalise(pixels.to(self.device, non_blocking=True).float() / 255)
        there = quadruples.images.select(rows)
        with models.autocast(self.device, self.settings.optimisation.precision):
            texts = models.text_features(self.clip.model, tokens, normalize)
            dim = texts.shape[1]
            some = len(images) > 0
            features = models.image_features(self.clip.model, images, normalize) if some else texts.new_zeros(0, dim)
        if self.space:
            texts, features = self.space.lift(texts, "text"), self.space.lift(features, "image")
        safe_text, unsafe_text = texts.chunk(2)
        parts = torch.split(features, [int(column.sum()) for column in there])
        safe_image, unsafe_image = (spread(part, column, dim) for part, column in zip(parts, there, strict=True))
        return Embeddings(safe_text, unsafe_text, safe_image, unsafe_image)

    @torch.no_grad()
    def embed_all(self, quadruples: Split, between: Callable[[], None] = lambda: None) -> Embeddings:
        """Embed a whole split in evaluation mode: four tensors of shape (rows, dim) on the CPU.

        ``between`` is called after each batch; it may raise to end this.
        """
        self.tuned.eval()
        plan = torch.split(torch.arange(len(quadruples)), self.settings.optimisation.batch_size)
        pixels = quadruples.pictures.batches([self.processes.share(rows) for rows in plan])
        batches = []
        for rows, own in zip(plan, pixels, strict=True):
            batches.append(self.embed_together(quadruples, rows, own))
            between()
        return Embeddings(*(torch.cat(columns).cpu() for columns in zip(*batches, strict=True)))


def counts(taking_part: Mapping[str, Tensor], rows: Tensor) -> dict[str, int]:
    """How many of some rows take part in each term."""
    return {name: int(there[rows].sum()) for name, there in taking_part.items()}
