"""What a user of the data must know (after Gebru et al., Datasheets for Datasets), for programs and for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from saferclip import escaping
from saferclip.benchmark.backends import Backends
from saferclip.benchmark.tally import Tally
from saferclip.config import BenchmarkSettings
from saferclip.provenance import provenance

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
TITLES = {"embedded": "NSFW-Caps-mini", "release": "NSFW-Caps", "nocaps": "NSFW-Caps, built anew"}
COMPOSITION = {
    "embedded": "captions and 64-pixel icon scenes; unsafe means harmless stand-in icons",
    "release": "captions of NoCaps and minimal unsafe edits of them, as published; safe images fetched from their "
    "addresses; unsafe images, which the release withholds, made anew where the settings name an image maker",
    "nocaps": "captions and images of NoCaps' validation split, minimal unsafe edits of the captions by a language "
    "model, and images of the edits by a diffusion model where the settings name an image maker",
}
LICENCES = {
    "embedded": "MIT; the icon fonts keep their own open licences",
    "release": "CC-BY-NC-4.0 (captions of the release); safe images keep their own licences; never redistribute the "
    "unsafe images",
    "nocaps": "NoCaps captions are CC BY 2.0 and its images keep their own licences; edits as the language model's "
    "licence allows; for research only, not to be redistributed",
}
INTENDED_USE = "testing whether a model redirects unsafe input; not for training"
NOT_INTENDED = (
    "training of any model, and of generators above all; publishing or committing the unsafe captions or images; "
    "judging people, or moderation without people who decide"
)
ETHICS = (
    "No pair is sexual where a caption of the image holds a child term, an age below 20 or one that is not known, or "
    "letters that cannot be read: such captions are offered other categories only, edits are checked again, and a "
    "diffusion model is given none of these pairs, of any category: they have captions and a safe image alone "
    "(saferclip.ethics). Words are checked, not what an image shows."
)


def datasheet(
    settings: BenchmarkSettings,
    backends: Backends,
    rows: Sequence[Mapping[str, Any]],
    tally: Tally,
    train_similarity: np.ndarray,
) -> dict[str, Any]:
    """All of it as plain values, ready for JSON."""
    return {
        "title": TITLES[settings.source],
        "rows": len(rows),
        "counts": dict(sorted(Counter(row["category"] for row in rows).items())),
        "candidates": tally.candidates,
        "images_drawn": tally.images,
        "rejected": dict(tally.rejected),
        "without_image": {side: sum(row[f"{side}_image"] is None for row in rows) for side in ("safe", "unsafe")},
        "similarity": {
            "nsfw_caps": _distribution(np.array([row["similarity"] for row in rows])),
            "train": _distribution(train_similarity),
        },
        "composition": COMPOSITION[settings.source],
        "intended_use": INTENDED_USE,
        "not_intended_use": NOT_INTENDED,
        "ethics": ETHICS,
        "licence": LICENCES[settings.source],
        "made_by": dict(backends.report()),
        "provenance": provenance(settings.model_dump(mode="json"), settings.seed),
    }


def _distribution(values: np.ndarray) -> dict[str, float]:
    quantiles = {f"q{100 * q:02.0f}": float(np.quantile(values, q)) for q in QUANTILES}
    return {"count": len(values), "mean": float(values.mean()), **quantiles}


def markdown(sheet: Mapping[str, Any]) -> str:
    """The datasheet for people: a section for each entry, with a table where an entry has parts."""
    lines = [f"# Datasheet: {_cell(sheet['title'])}", ""]
    for key, value in sheet.items():
        if key in ("title", "provenance"):
            continue
        lines += [f"## {key.replace('_', ' ').capitalize()}", ""]
        if isinstance(value, Mapping):
            parts = [f"| {_cell(name)} | {_cell(part)} |" for name, part in _leaves(value)]
            lines += ["| | |", "|---|---|", *parts, ""] if parts else ["None.", ""]
        else:
            lines += [escaping.paragraph(str(value)), ""]
    lines += ["## Provenance", "", *_provenance(sheet["provenance"]), ""]
    return "\n".join(lines)


def _provenance(found: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return [
        f"Commit {found['commit']}, seed {found['seed']}, settings {found['settings_sha256']}; {versions}.",
        "",
        "`datasheet.json` beside this file holds the same, and the settings in full.",
    ]


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        name = f"{path}, {key}" if path else str(key)
        if isinstance(inner, Mapping):
            yield from _leaves(inner, name)
        else:
            yield name.replace("_", " "), inner


def _cell(value: Any) -> str:
    text = (
        f"{value:.3f}" if isinstance(value, float) else ", ".join(map(str, value)) if isinstance(value, list) else value
    )
    return escaping.html_in_markdown(str(text))
