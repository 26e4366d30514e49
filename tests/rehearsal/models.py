"""Small models with random weights in exactly the forms of the public ones: for tests and the rehearsal.

A Stable Diffusion and an SDXL pipeline (diffusers), LLaVA and a classifier of toxic text (transformers), Q16's prompts.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

CONTEXT = 77
VOCABULARY = 49408
START, END = "<|startoftext|>", "<|endoftext|>"
IMAGE = "<image>"
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TOXIC_LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
# As the schedulers of the published pipelines.
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def tokenizer(folder: Path) -> None:
    """CLIP's tokenizer as published with transformers, from the vocabulary that open_clip ships."""
    folder.mkdir(parents=True, exist_ok=True)
    source = SimpleTokenizer()
    renamed = {"<start_of_text>": START, "<end_of_text>": END}
    vocabulary = {renamed.get(token, token): number for token, number in source.encoder.items()}
    merges = sorted(source.bpe_ranks, key=source.bpe_ranks.__getitem__)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def text_config(width: int, **more: Any) -> CLIPTextConfig:
    """The configuration of a CLIP text encoder of one layer."""
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
        **{"projection_dim": width, **more},
    )


def stable_diffusion(folder: Path, text_width: int = 32, seed: int = 0) -> None:
    """A pipeline in the form of Stable Diffusion 1.x, for prompts of that width; images of any multiple of 8 pixels."""
    torch.manual_seed(seed)
    StableDiffusionPipeline(
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(text_config(text_width)),
        tokenizer=_clip_tokenizer(folder),
        unet=UNet2DConditionModel(**_denoiser(), cross_attention_dim=text_width),
        scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def stable_diffusion_xl(folder: Path, text_width: int = 32, seed: int = 0) -> None:
    """A pipeline in the form of SDXL, with its two text encoders of that width."""
    torch.manual_seed(seed)
    StableDiffusionXLPipeline(
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(text_config(text_width)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(text_width)),
        tokenizer=_clip_tokenizer(folder),
        tokenizer_2=_clip_tokenizer(folder),
        unet=UNet2DConditionModel(
            **_denoiser(),
            cross_attention_dim=2 * text_width,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=text_width + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(**NOISE),
    ).save_pretrained(folder)


def _clip_tokenizer(folder: Path) -> CLIPTokenizer:
    tokenizer(folder / "tokenizer")
    return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)


def _autoencoder() -> AutoencoderKL:
    """From images to latents of an eighth of their size, as the published ones."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )


def _denoiser() -> dict[str, Any]:
    return {
        "sample_size": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }


def llava(folder: Path, vision: Mapping[str, Any], width: int = 32, seed: int = 0) -> None:
    """LLaVA in the form of llava-1.5-hf, around a vision tower of the given ``vision_config``."""
    torch.manual_seed(seed)
    words = _bytewise_tokenizer()
    tower = CLIPVisionConfig(**{name: value for name, value in vision.items() if name != "model_type"})
    language = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=language,
        image_token_index=words.convert_tokens_to_ids(IMAGE),
        image_seq_length=(tower.image_size // tower.patch_size) ** 2,
        vision_feature_layer=-2,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    square = {"height": tower.image_size, "width": tower.image_size}
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": tower.image_size}, crop_size=square),
        tokenizer=words,
        patch_size=tower.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def _bytewise_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes: it needs no vocabulary, and reads any text."""
    special = ["<s>", "</s>", "<pad>", IMAGE]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(tokenizer_models.BPE({token: row for row, token in enumerate([*special, *alphabet])}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": IMAGE},
    )


def toxicity(folder: Path, seed: int = 0) -> None:
    """A classifier of text in the form of toxic-bert: several labels that do not exclude each other."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(number) for number in range(33, 127) if not chr(number).isupper()]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        id2label=dict(enumerate(TOXIC_LABELS)),
        label2id={label: row for row, label in enumerate(TOXIC_LABELS)},
        problem_type="multi_label_classification",
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizer({word: row for row, word in enumerate(words)}, model_max_length=128).save_pretrained(folder)


def q16_prompts(path: Path, width: int, seed: int = 0) -> None:
    """Q16's file: a pickle of two prompts for a CLIP that embeds in that many values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prompts = np.random.default_rng(seed).normal(size=(2, width)).astype(np.float32)
    path.write_bytes(pickle.dumps(prompts, protocol=4))
