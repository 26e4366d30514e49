"""The model card: everything in it is read from the files of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml

from saferclip import conversion, escaping, heads, io
from saferclip.export import formats

TEMPLATE = "model_card.md.jinja"
RUN_RECORD = "record.json"  # of a training or an edit
LIBRARIES = {"open_clip": "open_clip", "transformers": "transformers", "diffusers": "diffusers"}
# What a card shows of an evaluation; its records hold everything.
HEADLINES = re.compile(r"(recall@1|unsafe_share|mean/accuracy|safe_\w+/cosine|cosine)$")
# Pipelines whose text encoder is known, by its numbers: width, layers, heads, positions, activation.
PIPELINES = {
    (768, 12, 12, 77, "quick_gelu"): "Stable Diffusion 1.x, and Stable Diffusion XL as its first text encoder",
}


class Row(NamedTuple):
    """One metric of the tuned model, beside the untuned one's."""

    benchmark: str
    metric: str
    tuned: str
    untuned: str
    queries: int


def facts(
    record: Mapping[str, Any],
    model: Path,
    evaluation: Path | None,
    baseline: Path | None,
    architecture: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the template speaks of; raises DataError for a record that cannot be read."""
    made = io.read_json(model / RUN_RECORD) if (model / RUN_RECORD).is_file() else None
    edit, training = (made, None) if made and "changed_weights" in made else (None, made)
    settings = record["provenance"]["settings"]
    identity = _identity(model, evaluation)
    can_convert = not conversion.obstacles(architecture["model_cfg"])
    encoder = conversion.transformers_config(architecture["model_cfg"])["text_config"] if can_convert else None
    return {
        "name": "-".join(["saferclip", *(str(part) for part in identity.values() if part is not None)]),
        "identity": identity,
        "settings": settings,
        "hub_id": _hub_id(settings["base_model"]),
        "made": made,
        "training": training,
        "edit": edit,
        "made_with": yaml.safe_dump(made["provenance"]["settings"], sort_keys=False).strip() if made else "",
        "results": list(_results(evaluation, baseline)) if evaluation else [],
        "compared": baseline is not None,
        "left_out": record["left_out"],
        "differences": record["differences"],
        "tolerance": record["tolerance"],
        "commit": record["provenance"]["commit"],
        "versions": record["provenance"]["versions"],
        "model_cfg": architecture["model_cfg"],
        "head": architecture.get(heads.SECTION),
        "encoder": encoder,
        "pipelines": _pipelines(encoder) if encoder else None,
    }


def write(path: Path, known: Mapping[str, Any], name: str) -> None:
    """Write the card of one format, with the front matter that the hub reads."""
    settings = known["settings"]
    front = {
        "license": escaping.visible(settings["licence"] or "unknown"),
        "library_name": LIBRARIES[name],
        "pipeline_tag": "zero-shot-image-classification" if name != "diffusers" else "text-to-image",
        "tags": ["clip", "safety", "saferclip"],
        "language": "en",
        **({"base_model": known["hub_id"]} if known["hub_id"] else {}),
    }
    text = files("saferclip.export").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"plain": _plain, "code": _code, "fence": escaping.fence}
    body = environment.from_string(text).render(**known, format=name, folders=formats.FOLDERS)
    path.write_text(f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{body}", encoding="utf-8")


def _plain(value: Any) -> str:
    """A value between words, whatever a record or setting calls it."""
    return escaping.html_in_markdown(str(value))


def _code(value: Any) -> str:
    return escaping.code(str(value))


def _identity(model: Path, evaluation: Path | None) -> dict[str, Any]:
    """Method and seed, as the evaluation says, or the names of the folders."""
    for path in _records(evaluation):
        found = io.read_evaluation(path)
        return {"method": found.method, "seed": found.seed}
    seed = re.fullmatch(r"seed-(\d+)", model.name)
    return {"method": model.resolve().parent.name if seed else None, "seed": int(seed[1]) if seed else None}


def _hub_id(source: str | None) -> str | None:
    """The repository of the hub that a base model came from, where its name says it."""
    kind, _, name = (source or "").partition(":")
    return name.partition("@")[0] if kind == "hf-hub" else None


def _records(folder: Path | None) -> list[Path]:
    return sorted(folder.glob("*.json")) if folder else []


def _results(evaluation: Path, baseline: Path | None) -> Iterator[Row]:
    """The headline metrics of every benchmark; raises DataError if there is no record."""
    paths = _records(evaluation)
    if not paths:
        raise io.DataError(f"{evaluation}: holds no records of an evaluation")
    for path in paths:
        tuned = io.read_evaluation(path)
        before = baseline / path.name if baseline else None
        untuned = io.read_evaluation(before).metrics if before and before.is_file() else {}
        for name, metric in tuned.metrics.items():
            if HEADLINES.search(name):
                known = _value(untuned[name]) if name in untuned else "–"
                yield Row(tuned.benchmark, name, _value(metric), known, metric.count)


def _value(metric: io.Metric) -> str:
    """A value with its 95% interval, where it has one."""
    if metric.low is None or metric.high is None:
        return f"{metric.value:.4g}"
    return f"{metric.value:.4g} [{metric.low:.4g}, {metric.high:.4g}]"


def _pipelines(encoder: Mapping[str, Any]) -> str | None:
    """The diffusion models that are known to read captions with such an encoder."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "hidden_act")
    return PIPELINES.get(tuple(encoder[name] for name in names))
