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
in the way's precision in the same round.  On a CPU, seconds are processor time of one thread, and memory is the peak of
a process of its own; --fp32 leaves bf16 out, which takes hours on a processor without products in it.  Where there is a
GPU it is measured instead: seconds pass on the wall until it has finished, and memory is the most that torch allocated.

    python benchmarks/training_step.py 48 128 --model ViT-L-14      on a GPU
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

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
SIDES = {"cpu": 2048, "cuda": 8192}  # of the large product
PRODUCTS = 5

Result = TypeVar("Result")


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
            model.eval().to(models.default_device(), memory_format=torch.channels_last),
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
                models.text_features(self.clip.model, tokens.to(models.default_device()))
                for tokens in (self.split.safe_tokens, self.split.unsafe_tokens)
            )
            images = self.normalise(next(self.split.pictures.batches([torch.arange(self.rows)])))
            safe_image, unsafe_image = models.image_features(self.clip.model, images).chunk(2)
        columns = (safe_text, unsafe_text, safe_image, unsafe_image, safe_text, safe_image)
        return References(*(column.cpu() for column in columns))

    def normalise(self, pixels: Tensor) -> Tensor:
        return self.clip.preprocess.transforms[-1](pixels.to(models.default_device()).float() / 255)

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
        return model.to(models.default_device())

    def _embed(self, tokens: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if self.trimmed:
            tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
        tokens = tokens.to(pixels.device)
        with torch.autocast(pixels.device.type, torch.bfloat16) if self.autocast else nullcontext():
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
            frozen = self.material.frozen.select(rows, models.default_device())
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


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Processor seconds of one call, or those until the GPU has finished, and what it returned."""
    if models.default_device().type == "cpu":
        return common.timed(work)
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return time.perf_counter() - start, result


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
            tokens = torch.cat([split.safe_tokens[rows], split.unsafe_tokens[rows]])
            models.text_features(material.clip.model, tokens.to(models.default_device()))
            models.image_features(material.clip.model, material.normalise(next(split.pictures.batches([rows]))))
    return 2 * counter.get_total_flops()


def rate(precision: torch.dtype) -> float:
    """Operations a second of a large product."""
    device = models.default_device()
    side = SIDES[device.type]
    left, right = torch.randn(2, side, side, device=device).to(precision)
    return 2 * side**3 / min(timed(lambda: left @ right)[0] for _ in range(PRODUCTS))


def peak(name: str, model: str, size: int) -> int:
    """Peak memory of one way in MB."""
    if models.default_device().type == "cpu":
        command = [sys.executable, __file__, "--memory", name, model, str(size)]
        return int(common.costs(command)["peak_mb"])
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    ways()[name](Material.make(model, size)).run()
    return round(torch.cuda.max_memory_allocated() / 1e6)


def compare(model: str, size: int, rounds: int, fp32: bool) -> Iterator[common.Row]:
    """Time all ways in turn, several times, from the same start; their first losses have to agree."""
    needed = operations(Material.make(model, size))
    chosen = {name: make for name, make in ways().items() if not (fp32 and name in HALF)}
    precisions = {name: torch.bfloat16 if name in HALF else torch.float32 for name in chosen}
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    floors: dict[torch.dtype, list[float]] = {precision: [] for precision in precisions.values()}
    first: dict[str, float] = {}
    for _ in range(rounds):
        for name, make in chosen.items():
            way = make(Material.make(model, size))
            first[name] = way.run()[0]  # and what is only done once
            seconds[name].append(timed(way.run)[0])
            del way
        for precision, floor in floors.items():
            floor.append(needed / rate(precision))
    for name, spent in seconds.items():
        if name not in HALF and abs(first[name] - first["plain"]) > TOLERANCE:
            raise RuntimeError(f"{name}: the first loss is {first[name]}, that of the plain way {first['plain']}")
        yield {
            "model": model,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "quadruples": size,
            "way": name,
            **common.spread(spent),
            "quadruples_per_second": round(STEPS * size / statistics.median(spent), 3),
            "times_plain": common.median_ratio(seconds["plain"], spent),
            "of_floor": common.median_ratio(floors[precisions[name]], spent),
            "first_loss": round(first[name], 6),
            "peak_mb": peak(name, model, size),
        }


def main() -> None:
    """Print one line for each batch and way, then write them."""
    common.one_thread()
    if sys.argv[1:2] == ["--memory"]:
        ways()[sys.argv[2]](Material.make(sys.argv[3], int(sys.argv[4]))).run()
        return
    chosen = common.arguments(__doc__, sizes=(16,), full=(16, 64), rounds=3)
    model = chosen.model or "ViT-B-32"
    common.report(chosen.sizes, lambda size: compare(model, size, chosen.rounds, chosen.fp32), chosen.output)


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # open_clip says that the weights are random
    warnings.filterwarnings("ignore", category=FutureWarning)  # of PEFT's use of transformers
    main()
