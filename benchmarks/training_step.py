"""Optimizer steps of fine-tuning, against the plain loop of transformers and PEFT.

    python benchmarks/training_step.py [quadruples in a batch ...] [--full]      ViT-B/32; about 5 min on one core

Random weights, adapters that are not zero, random pixels, captions as long as real ones.  All ways start from the same
weights and take the same steps with Safe-CLIP's loss, so their losses have to agree; for fp32 within 1e-4.

plain             what Safe-CLIP's released loop does, in our own code: fp32, captions padded to the context, four
                  forward passes that are tuned and two that are frozen for every batch
cached            the frozen model's embeddings are looked up
trimmed           besides, captions are cut to the longest of the batch
autocast          besides, products in bf16
training fp32     what the step does, in fp32
training bf16     what the step does

The floor is the time of the forward and input-gradient products of the frozen layers, at the rate of a large product
in bf16 in the same round.  Seconds are processor time of one thread; memory is the peak of a process of its own.
"""

from __future__ import annotations

import logging
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import common
import open_clip
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel

from saferclip import adapters, conversion, models
from saferclip.config import LossWeights, TrainingSettings
from saferclip.models import Clip
from saferclip.training import losses
from saferclip.training.inputs import Images, Split
from saferclip.training.losses import Embeddings, References
from saferclip.training.tuner import Tuner

STEPS = 2  # of a measurement
HALF = ("autocast", "training bf16")
TOLERANCE = 1e-4  # of the first loss, in fp32
LEARNING_RATE = 1e-4
LORA = {
    "rank": 16,
    "alpha": 16.0,
    "dropout": 0.0,
    "target_modules": r"(visual\.)?transformer\.resblocks\.\d+\.(attn|mlp\.c_fc|mlp\.c_proj)",  # config/paper.yaml
}
THEIR_MODULES = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
# Tokens of a caption, mean and standard deviation, with start and end: COCO's captions have about 10 words, the edited
# ones are assumed to be half as long again.
SAFE_TOKENS, UNSAFE_TOKENS = (13.0, 2.5), (18.0, 4.0)
SIDE = 2048  # of the large product
PRODUCTS = 5


@dataclass(frozen=True)
class Material:
    """The same for every way: a model without adapters, adapters' weights, and quadruples."""

    clip: Clip
    size: int

    @classmethod
    def make(cls, name: str, size: int) -> Material:
        """Random, the same each time: a model of open_clip's, and batches of ``size`` quadruples."""
        torch.manual_seed(0)
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        architecture = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
        clip = Clip(
            model.eval().to(memory_format=torch.channels_last),
            preprocess,
            open_clip.get_tokenizer(name),
            architecture,
        )
        return cls(clip, size)

    @property
    def rows(self) -> int:
        return self.size * STEPS

    @cached_property
    def split(self) -> Split:
        """Quadruples with all their images."""
        generator = torch.Generator().manual_seed(1)
        there = torch.ones(self.rows, dtype=torch.bool)
        edge = self.clip.model.visual.image_size[0]
        pixels = torch.randint(0, 256, (2, self.rows, 3, edge, edge), dtype=torch.uint8, generator=generator)
        safe, unsafe = (self._tokens(*length, generator) for length in (SAFE_TOKENS, UNSAFE_TOKENS))
        return Split(safe, unsafe, Pixels(*pixels), Images(there, there))

    def _tokens(self, mean: float, deviation: float, generator: torch.Generator) -> Tensor:
        """Random words between a start and an end, (rows, context)."""
        context, end = self.clip.model.context_length, self.clip.model.vocab_size - 1
        lengths = (mean + deviation * torch.randn(self.rows, generator=generator)).round().clamp(4, context).int()
        tokens = torch.randint(1, end - 1, (self.rows, context), generator=generator)
        places = torch.arange(context).expand(self.rows, -1)
        tokens[:, 0] = end - 1
        tokens[places == lengths[:, None] - 1] = end
        tokens[places >= lengths[:, None]] = 0
        return tokens

    @cached_property
    def frozen(self) -> References:
        """What the embedding step hands to training; the targets are the pairs."""
        with torch.no_grad():
            safe_text, unsafe_text = (
                models.text_features(self.clip.model, tokens)
                for tokens in (self.split.safe_tokens, self.split.unsafe_tokens)
            )
            images = self.normalise(next(self.split.pictures.batches([torch.arange(self.rows)])))
            safe_image, unsafe_image = models.image_features(self.clip.model, images).chunk(2)
        return References(safe_text, unsafe_text, safe_image, unsafe_image, safe_text, safe_image)

    def normalise(self, pixels: Tensor) -> Tensor:
        return self.clip.preprocess.transforms[-1](pixels.float() / 255)

    def settings(self, precision: str) -> TrainingSettings:
        """Safe-CLIP's."""
        return TrainingSettings.model_validate(
            {
                "optimisation": {
                    "epochs": 1,
                    "batch_size": self.size,
                    "accumulation": 1,
                    "max_gradient_norm": 1.0,
                    "precision": precision,
                    "logit_scale": 100.0,
                    "lora": LORA,
                },
                "method": {
                    "targets": "paired",
                    "cross_modal": "infonce",
                    "curriculum": "none",
                    "learning_rate": LEARNING_RATE,
                    "weights": WEIGHTS,
                },
            }
        )


WEIGHTS = LossWeights(**dict.fromkeys(losses.TERMS, 1.0))


@dataclass(frozen=True)
class Pixels:
    """Pictures in memory: uint8, (rows, 3, height, width)."""

    safe: Tensor
    unsafe: Tensor

    def batches(self, plan: Sequence[Tensor]) -> Iterator[Tensor]:
        """See ``saferclip.training.inputs.Pictures``."""
        for rows in plan:
            yield torch.cat([self.safe[rows], self.unsafe[rows]])


def low_rank(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """For every adapted layer of an open_clip model its name, A and B: not zero, and the same each time."""
    generator = torch.Generator().manual_seed(2)
    for name, weight in state.items():
        layer = name.removesuffix("_weight").removesuffix(".weight")
        if ".resblocks." in name and layer.endswith((".attn.in_proj", ".attn.out_proj", ".mlp.c_fc", ".mlp.c_proj")):
            out, inner = weight.shape
            down, up = (
                torch.randn(LORA["rank"], inner, generator=generator),
                torch.randn(out, LORA["rank"], generator=generator),
            )
            yield layer, 0.02 * down, 0.02 * up


def theirs(layer: str, down: Tensor, up: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The same in transformers, whose attention has three layers instead of one."""
    tower, _, rest = layer.partition(".resblocks.")
    number, _, kind = rest.partition(".")
    place = f"{conversion.TOWERS[f'{tower}.resblocks']}.{number}"
    if kind == "attn.in_proj":
        for name, part in zip("qkv", up.chunk(3), strict=True):
            yield f"{place}.self_attn.{name}_proj", down, part
    else:
        yield f"{place}.{conversion.BLOCK_LAYERS[kind]}", down, up


def fill(model: nn.Module, layers: Iterator[tuple[str, Tensor, Tensor]]) -> None:
    """Write adapters into a model of PEFT's; every adapter must be among the layers."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for layer, down, up in layers:
            for kind, value in (("lora_A", down), ("lora_B", up)):
                weights.pop(f"base_model.model.{layer}.{kind}.default.weight").copy_(value)
    if weights:
        raise RuntimeError(f"adapters without values: {', '.join(weights)}")


def _renamed(layer: str, names: dict[str, str]) -> str:
    for ending, name in names.items():
        if layer.endswith(ending):
            return layer.removesuffix(ending) + name
    return layer


class Training:
    """The step as training takes it."""

    def __init__(self, material: Material, precision: str) -> None:
        _ = material.frozen  # before there are adapters
        self.material = material
        layers = list(low_rank(material.clip.model.state_dict()))
        tuned = adapters.attach(material.clip, material.settings(precision).optimisation.lora)
        self.tuner = Tuner(material.clip, tuned, material.settings(precision))
        names = {".attn.in_proj": ".attn", ".attn.out_proj": ".attn.base_layer.out_proj"}  # PEFT's
        fill(tuned, ((_renamed(layer, names), down, up) for layer, down, up in layers))

    def run(self) -> list[float]:
        """Take the steps; their losses."""
        rows = torch.arange(self.material.rows)
        return [step["loss"] for step in self.tuner.steps(rows, self.material.split, self.material.frozen, "")]


class Plain:
    """The loop of transformers and PEFT."""

    def __init__(self, material: Material, cached: bool, trimmed: bool, autocast: bool) -> None:
        self.material, self.cached, self.trimmed, self.autocast = material, cached, trimmed, autocast
        if cached:
            _ = material.frozen
        self.model = get_peft_model(self._model(), LoraConfig(r=16, lora_alpha=16, target_modules=THEIR_MODULES))
        layers = low_rank(material.clip.model.state_dict())
        fill(self.model, (part for layer in layers for part in theirs(*layer)))
        self.model.eval()
        self.tuned = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimiser = torch.optim.Adam(self.tuned, lr=LEARNING_RATE)

    def _model(self) -> nn.Module:
        architecture = self.material.clip.architecture["model_cfg"]
        model = CLIPModel(CLIPConfig(**conversion.transformers_config(architecture)))
        model.load_state_dict(conversion.to_transformers(self.material.clip.model.state_dict(), architecture))
        return model

    def _embed(self, tokens: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if self.trimmed:
            tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
        with torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext():
            text = self.model.get_text_features(input_ids=tokens)
            image = self.model.get_image_features(pixel_values=pixels)
        return tuple(functional.normalize(features.pooler_output.float(), dim=-1) for features in (text, image))

    def run(self) -> list[float]:
        """Take the steps; their losses."""
        split = self.material.split
        return [self._step(split, rows) for rows in torch.arange(self.material.rows).split(self.material.size)]

    def _step(self, split: Split, rows: Tensor) -> float:
        safe_pixels, unsafe_pixels = self.material.normalise(next(split.pictures.batches([rows]))).chunk(2)
        if self.cached:
            frozen = self.material.frozen.select(rows, "cpu")
        else:
            with torch.no_grad(), self.model.disable_adapter():
                text, image = self._embed(split.safe_tokens[rows], safe_pixels)
            frozen = References(text, text, image, image, text, image)
        safe_text, safe_image = self._embed(split.safe_tokens[rows], safe_pixels)
        unsafe_text, unsafe_image = self._embed(split.unsafe_tokens[rows], unsafe_pixels)
        embedded = Embeddings(safe_text, unsafe_text, safe_image, unsafe_image)
        loss = losses.total(losses.terms(embedded, frozen, "infonce", 100.0), WEIGHTS)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.tuned, 1.0)
        self.optimiser.step()
        return loss.item()


def ways() -> dict[str, Callable[[Material], Any]]:
    """Every way by its name, the plain one first."""
    return {
        "plain": lambda material: Plain(material, cached=False, trimmed=False, autocast=False),
        "cached": lambda material: Plain(material, cached=True, trimmed=False, autocast=False),
        "trimmed": lambda material: Plain(material, cached=True, trimmed=True, autocast=False),
        "autocast": lambda material: Plain(material, cached=True, trimmed=True, autocast=True),
        "training fp32": lambda material: Training(material, "fp32"),
        "training bf16": lambda material: Training(material, "bf16"),
    }


def operations(material: Material) -> int:
    """Of the forward and input-gradient products of the frozen layers, for all steps; captions are trimmed."""
    split = material.split
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for rows in torch.arange(material.rows).split(material.size):
            models.text_features(material.clip.model, torch.cat([split.safe_tokens[rows], split.unsafe_tokens[rows]]))
            models.image_features(material.clip.model, material.normalise(next(split.pictures.batches([rows]))))
    return 2 * counter.get_total_flops()


def rate() -> float:
    """Operations a second of a large product in bf16."""
    left, right = torch.randn(2, SIDE, SIDE).bfloat16()
    return 2 * SIDE**3 / min(common.timed(lambda: left @ right)[0] for _ in range(PRODUCTS))


def compare(model: str, size: int, rounds: int) -> Iterator[common.Row]:
    """Time all ways in turn, several times, from the same start; their first losses have to agree."""
    needed = operations(Material.make(model, size))
    seconds: dict[str, list[float]] = {name: [] for name in ways()}
    floor: list[float] = []
    first: dict[str, float] = {}
    for _ in range(rounds):
        for name, make in ways().items():
            way = make(Material.make(model, size))
            first[name] = way.run()[0]  # and what is only done once
            seconds[name].append(common.timed(way.run)[0])
            del way
        floor.append(needed / rate())
    for name, spent in seconds.items():
        if name not in HALF and abs(first[name] - first["plain"]) > TOLERANCE:
            raise RuntimeError(f"{name}: the first loss is {first[name]}, that of the plain way {first['plain']}")
        yield {
            "model": model,
            "quadruples": size,
            "way": name,
            **common.spread(spent),
            "quadruples_per_second": round(STEPS * size / statistics.median(spent), 3),
            "times_plain": common.median_ratio(seconds["plain"], spent),
            "of_floor": common.median_ratio(floor, spent),
            "first_loss": round(first[name], 6),
            "peak_mb": common.costs([sys.executable, __file__, "--memory", name, model, str(size)])["peak_mb"],
        }


def main() -> None:
    """Print one line for each batch and way, then write them."""
    common.one_thread()
    if sys.argv[1:2] == ["--memory"]:
        ways()[sys.argv[2]](Material.make(sys.argv[3], int(sys.argv[4]))).run()
        return
    chosen = common.arguments(__doc__, sizes=(16,), full=(16, 64), rounds=3)
    rows: list[common.Row] = []
    for size in chosen.sizes:
        for row in compare(chosen.model or "ViT-B-32", size, chosen.rounds):
            common.show(row)
            rows.append(row)
    common.save(rows, chosen.output)


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # open_clip says that the weights are random
    warnings.filterwarnings("ignore", category=FutureWarning)  # of PEFT's use of transformers
    main()
