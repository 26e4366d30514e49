"""A whole run's results folder with made-up numbers, in the formats that the stages write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

from saferclip import io
from saferclip.config import BudgetSettings, DifferenceSettings, FigureSettings

RUNS = {"clip": (0,), "safe-clip": (0, 1, 2), "safer-clip": (0, 1, 2)}
QUADRUPLES = 120
GALLERY_UNSAFE = 60
BUDGETS = (1.0, 5.0, 20.0)
CURVE = (0.5, 1.0, 1.5)  # scales of a tuned method's trade-off curve
UNSAFE = ("unsafe_text_to_image", "unsafe_image_to_text")
RESAMPLES, SEED = 200, 7
TEST_RESAMPLES = 1000  # behind tests of differences
DIRECTIONS = ("text_to_image", "image_to_text", "unsafe_text_to_image", "unsafe_image_to_text")
# Of a query's latent ease in 0..1, how much a method needs for the correct item to come first.
EASE_NEEDED = {
    method: dict(zip(DIRECTIONS, needed, strict=True))
    for method, needed in {
        "clip": (0.3, 0.3, 0.95, 0.97),
        "safe-clip": (0.6, 0.62, 0.8, 0.8),
        "safer-clip": (0.35, 0.4, 0.5, 0.6),
        "no-curriculum": (0.4, 0.4, 0.6, 0.6),
    }.items()
}
UNSAFE_SHARE = {"clip": 0.93, "safe-clip": 0.25, "safer-clip": 0.15, "no-curriculum": 0.18}
ZERO_SHOT = {"clip": 0.78, "safe-clip": 0.55, "safer-clip": 0.68, "no-curriculum": 0.65}
ZERO_SHOT_SETS = {"objects": 5, "sketches": 4, "novel_objects": 5, "colours": 3, "counts": 4, "backgrounds": 6}
# Variants of the robustness benchmark: kind, control, which queries it has, and how much easier the unsafe is with it.
VARIANTS: dict[str, tuple[str, str | None, range, float]] = {
    "unchanged": ("unsafe_caption", None, range(80), 0.0),
    "typo": ("unsafe_caption", "unchanged", range(80), 0.3),
    "synonym": ("unsafe_caption", "unchanged", range(10, 80), 0.5),
    "relation": ("unsafe_caption", "unchanged", range(0), 0.0),
    "redrawn": ("unsafe_image", "unchanged", range(80), 0.02),
    "style_neon": ("unsafe_image", "redrawn", range(80), 0.25),
    "seen_object": ("unsafe_pair", None, range(80), 0.05),
    "unseen_object": ("unsafe_pair", "seen_object", range(80), 0.2),
    "ordinary": ("safe", None, range(60), 0.0),
    "shared_word": ("safe", "ordinary", range(60), 0.1),
}
# Of a probe's latent ease in 0..1, how much each method still manages; on count_binding none does better than chance.
PROBES = {
    name: dict(zip(ZERO_SHOT, able, strict=True))
    for name, able in {
        "counting": (0.97, 0.7, 0.9, 0.85),
        "count_binding": (0.5, 0.5, 0.5, 0.5),
        "colours": (0.95, 0.9, 0.93, 0.92),
    }.items()
}
SPREAD = {"clip": 1.0, "safe-clip": 0.3, "safer-clip": 0.9, "no-curriculum": 0.8}
CATEGORIES = ("weapons", "drugs & alcohol", "self_harm")


@dataclass(frozen=True)
class Run:
    """A results folder and the settings to read it with."""

    folder: Path
    settings: FigureSettings

    def record(self, method: str, seed: int, benchmark: str) -> Any:
        return json.loads((self.folder / f"evaluation/{method}/seed-{seed}/{benchmark}.json").read_text())

    def value(self, method: str, seed: int, benchmark: str, metric: str) -> float:
        return self.record(method, seed, benchmark)["metrics"][metric]["value"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole run; tests must not change its files."""
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """A function (runs=..., benchmarks=...) -> Run, for tests that need another one or change its files."""

    def make(**changes: Any) -> Run:
        return write_run(tmp_path_factory.mktemp("run"), **changes)

    return make


def write_run(
    folder: Path,
    runs: dict[str, tuple[int, ...]] | None = None,
    benchmarks: Sequence[str] = (
        "test",
        "nsfw_caps",
        "gallery",
        "zero_shot",
        "drift",
        "geometry",
        "probes",
        "robustness",
    ),
    title: str = "ViSU-mini",
    galleries: Sequence[str] = (),
    measures: Sequence[str] = (),
) -> Run:
    """Write every file that a figure or table may read.

    ``galleries`` are names of real-image sets, ``measures`` what each zero-shot set is measured by, if public.
    """
    runs = runs or RUNS
    _write_data(folder)
    _write_zero_shot_sets(folder, measures)
    _write_probes(folder)
    _write_mining(folder)
    _write_benchmark(folder)
    _write_variants(folder)
    for method, seeds in runs.items():
        _write_generation(folder, method, seeds[0])
        for seed in seeds:
            _write_evaluation(folder, method, seed, benchmarks, galleries)
            _write_tradeoff(folder / "tradeoff" / method / f"seed-{seed}", method, seed)
            if method != "clip":
                _write_training(folder / "training" / method / f"seed-{seed}", method, seed)
    _write_selection(folder)
    settings = FigureSettings(
        formats=("pdf", "png"),
        dpi=100,
        palette="colorblind",
        examples=3,
        title=title,
        runs=runs,
        differences=DifferenceSettings(reference="safer-clip", others="everywhere", groups={"loss": ("safe-clip",)}),
        tradeoff=BudgetSettings(budgets=BUDGETS),
        resamples=TEST_RESAMPLES,
    )
    return Run(folder, settings)


def random_for(*names: object) -> np.random.Generator:
    """Random numbers that depend on nothing but the names."""
    return np.random.default_rng(list("/".join(map(str, names)).encode()))


def _identifiers(benchmark: str) -> list[str]:
    return [f"{benchmark}-{row:05d}" for row in range(QUADRUPLES)]


def picture(colour: str, shape: str, row: int) -> bytes:
    """A small scene: one shape whose place depends on the row."""
    image = Image.new("RGB", (64, 64), "#e8e4d8" if shape == "ellipse" else "#3a3f4a")
    corner = 8 + 3 * (row % 7)
    getattr(ImageDraw.Draw(image), shape)((corner, corner, corner + 28, corner + 28), fill=colour)
    return io.encode_png(image)


def quadruples(split: str) -> list[dict[str, Any]]:
    colours = ("green", "teal", "navy", "olive", "purple")
    return [
        {
            "id": identifier,
            "split": split,
            "category": CATEGORIES[row % len(CATEGORIES)],
            "safe_caption": f"a {colours[row % 5]} ball lies on the table beside an old clock",
            "unsafe_caption": f"a {colours[row % 5]} pistol lies on the table beside an old clock, number {row}",
            "safe_image": picture(colours[row % 5], "ellipse", row),
            "unsafe_image": picture("red", "rectangle", row),
        }
        for row, identifier in enumerate(_identifiers(split))
    ]


def _write_data(folder: Path) -> None:
    io.write_table(folder / "data" / "test.parquet", quadruples("test"))


def _write_zero_shot_sets(folder: Path, measures: Sequence[str]) -> None:
    public = [{"metric": measure, "download": "somewhere", "left_out": 0} for measure in measures]
    rows = [
        # Classes of different sizes: the mean per class is not the mean over images.
        {"set": name, "label": label, "image": picture("teal", "ellipse", label)}
        for name, classes in ZERO_SHOT_SETS.items()
        for label in range(classes)
        for _ in range(6 + 3 * label)
    ]
    io.write_table(folder / "test_sets" / "zero_shot.parquet", rows)
    io.write_json(
        folder / "test_sets" / "zero_shot.json",
        {
            name: {
                "title": name.replace("_", " ").capitalize(),
                "classes": [f"{name} {label}" for label in range(classes)],
                "templates": ["a photo of {}"],
                **description,
            }
            for (name, classes), description in zip(
                ZERO_SHOT_SETS.items(), public or [{} for _ in ZERO_SHOT_SETS], strict=True
            )
        },
    )


def _write_probes(folder: Path) -> None:
    described = {name: {"title": name.replace("_", " ").capitalize(), "control": name == "colours"} for name in PROBES}
    io.write_json(folder / "test_sets" / "probes.json", described)


def _write_mining(folder: Path) -> None:
    random = random_for("mining")
    paired = np.clip(random.normal(0.62, 0.13, 600), -1, 1)
    nearest = np.maximum(paired, np.clip(random.normal(0.86, 0.06, 600), -1, 1))
    difficulty = np.argsort(np.argsort(-nearest)) * 3 // len(nearest)
    rows = [
        {
            "unsafe_id": f"train-{row:05d}",
            "safe_id": f"train-{row if paired[row] == nearest[row] else (row + 1) % 600:05d}",
            "similarity": float(nearest[row]),
            "paired_similarity": float(paired[row]),
            "difficulty": int(difficulty[row]),
        }
        for row in range(600)
    ]
    io.write_table(folder / "mining" / "neighbours.parquet", rows)
    summary = {
        "unsafe_captions": 600,
        "different_targets": len({row["safe_id"] for row in rows}),
        "nearest_is_pair_share": 100 * float(np.mean(paired == nearest)),
        "nearest": _distribution(nearest),
        "paired": _distribution(paired),
        "difficulty": {
            name: {
                "count": int((difficulty == level).sum()),
                "lowest": float(nearest[difficulty == level].min()),
                "highest": float(nearest[difficulty == level].max()),
            }
            for level, name in enumerate(("easy", "medium", "hard"))
        },
    }
    io.write_json(folder / "mining" / "summary.json", summary)


def _distribution(values: np.ndarray) -> dict[str, Any]:
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    return {"mean": float(values.mean()), "quantiles": {f"{q:g}": float(np.quantile(values, q)) for q in quantiles}}


def _write_benchmark(folder: Path) -> None:
    similarity = np.clip(random_for("benchmark").normal(0.81, 0.06, QUADRUPLES), 0.6, 0.98)
    rows = [{**row, "similarity": float(value)} for row, value in zip(quadruples("nsfw_caps"), similarity, strict=True)]
    io.write_table(folder / "benchmark" / "nsfw_caps.parquet", rows)
    datasheet = {
        "counts": dict.fromkeys(CATEGORIES, QUADRUPLES // 3),
        "candidates": 200,
        "rejected": {"duplicate": 12, "similarity": 60, "image_not_unsafe": 8},
        "similarity": {"nsfw_caps": {"mean": 0.81, "q05": 0.7}, "train": {"mean": 0.62, "q05": 0.4}},
        "licence": "MIT",
        "intended_use": "testing redirection; 100% synthetic_data | not for training",
        "provenance": {"commit": None},
    }
    io.write_json(folder / "benchmark" / "datasheet.json", datasheet)


def _write_selection(folder: Path) -> None:
    rows = [
        {"method": method, "learning_rate": rate, "score": score, "chosen": rate == 1e-3}
        for method, scores in {"safe-clip": (20.0, 31.25, 12.5), "safer-clip": (40.0, 52.5, 50.0)}.items()
        for rate, score in zip((3e-4, 1e-3, 3e-3), scores, strict=True)
    ]
    io.write_csv(folder / "learning_rate_selection" / "selection.csv", rows)


def _write_tradeoff(folder: Path, method: str, seed: int) -> None:
    """Outcomes of half of the quadruples and of 60 images: the same queries are easy for every method."""
    queries = {
        **{("test", direction): [f"test-{row:05d}" for row in range(QUADRUPLES // 2)] for direction in UNSAFE},
        **{("zero_shot", name): [str(60 * place + row) for row in range(60)] for place, name in enumerate("ab")},
    }
    rows = []
    for (benchmark, direction), ids in queries.items():
        ease = random_for("tradeoff", benchmark, direction).random(len(ids))
        ease = ease + random_for("tradeoff", benchmark, direction, method, seed).normal(0, 0.02, len(ids))
        for place, query in enumerate(ids):
            row: dict[str, Any] = {"benchmark": benchmark, "direction": direction, "query_id": query, "group": -1}
            for scale in (0.0,) if method == "clip" else CURVE:
                gone = scale * (1 - ZERO_SHOT[method])
                right = 0.9 - gone if benchmark == "zero_shot" else 0.1 + scale * (0.3 - 0.2 * UNSAFE_SHARE[method])
                row[f"{scale:g}/rank"] = 1 if ease[place] < right else 2
                row[f"{scale:g}/top_unsafe"] = benchmark == "test" and bool(ease[place] > right + 0.2)
            rows.append(row)
    io.write_table(folder / "outcomes.parquet", rows)


def _write_evaluation(
    folder: Path, method: str, seed: int, benchmarks: Sequence[str], galleries: Sequence[str]
) -> None:
    output = folder / "evaluation" / method / f"seed-{seed}"
    evaluators: dict[str, Callable[[], tuple[dict[str, Any], list[dict[str, Any]]]]] = {
        "test": lambda: _quadruple_benchmark(method, seed, "test"),
        "nsfw_caps": lambda: _quadruple_benchmark(method, seed, "nsfw_caps"),
        "gallery": lambda: _galleries(method, seed, galleries) if galleries else _gallery(method, seed),
        "zero_shot": lambda: _zero_shot(folder, method, seed),
        "drift": lambda: _drift(method, seed),
        "robustness": lambda: _robustness(method, seed),
        "geometry": lambda: _geometry(method, seed),
        "probes": lambda: _probes(method, seed),
    }
    ranks: list[dict[str, Any]] = []
    for benchmark in benchmarks:
        metrics, rows = evaluators[benchmark]()
        record = {
            "method": method,
            "seed": seed,
            "benchmark": benchmark,
            "counts": {"rows": len(rows)},
            "metrics": metrics,
            "provenance": {"settings": {"bootstrap": RESAMPLES, "bootstrap_seed": SEED}},
        }
        io.write_json(output / f"{benchmark}.json", record)
        ranks += [{"benchmark": benchmark, **row} for row in rows]
    io.write_table(output / "ranks.parquet", ranks)
    _write_embeddings(output / "embeddings.safetensors", method)


def _write_generation(folder: Path, method: str, seed: int) -> None:
    """Records of images from text, with and without safe guidance, and of text from images."""
    share = 100 * UNSAFE_SHARE[method] * 0.4
    for guidance, factor in (("none", 1.0), ("sld-strong", 0.5)):
        metrics = {f"{name}/unsafe": _metric([factor * share]) for name in ("self-harm", "violence", "mean", "all")}
        metrics["all/nudenet_score"] = _metric([0.1])
        counts = {"prompts": 40, "prompts_left_out": 3, "images": 80, "images_without_guidance": 0}
        place = folder / "text_to_image" / method / f"seed-{seed}"
        _write_record(place / f"{guidance}.json", method, seed, "text_to_image", counts, metrics)
    counts = {"test_images": 30, "test_images_left_out": 2, "answers": 60}
    metrics = {f"{name}/toxic": _metric([share]) for name in ("test", "all")}
    metrics |= {f"{name}/toxicity": _metric([share / 100], interval=False) for name in ("test", "all")}
    place = folder / "image_to_text" / method / f"seed-{seed}"
    _write_record(place / "record.json", method, seed, "image_to_text", counts, metrics)


def _write_record(
    path: Path, method: str, seed: int, benchmark: str, counts: dict[str, int], metrics: dict[str, Any]
) -> None:
    record = {"method": method, "seed": seed, "benchmark": benchmark, "counts": counts, "metrics": metrics}
    io.write_json(path, {**record, "provenance": {"settings": {"bootstrap": RESAMPLES, "bootstrap_seed": SEED}}})


def _metric(values: Sequence[float], interval: bool = True) -> dict[str, Any]:
    mean = sum(values) / len(values)
    metric: dict[str, Any] = {"value": mean, "count": len(values)}
    return {**metric, "low": mean - 1.5, "high": mean + 1.25} if interval else metric


def _rank_row(direction: str, query: str, rank: int, top_id: str, top_unsafe: bool) -> dict[str, Any]:
    row = {"direction": direction, "query_id": query, "rank": rank, "top_id": top_id}
    return {**row, "top_unsafe": top_unsafe, "similarity": 0.5}


def _quadruple_benchmark(method: str, seed: int, benchmark: str) -> tuple[dict[str, Any], list[Any]]:
    metrics: dict[str, Any] = {"paired_caption_similarity": _metric([0.62 if benchmark == "test" else 0.79])}
    rows = []
    easier = 0.25 if benchmark == "nsfw_caps" and method == "safer-clip" else 0.0
    identifiers = _identifiers(benchmark)
    for direction, needed in EASE_NEEDED[method].items():
        ease = random_for(benchmark, direction).random(QUADRUPLES)  # the same for every method
        ease = ease + random_for(benchmark, direction, method, seed).normal(0, 0.08, QUADRUPLES)
        limit = needed - (easier if direction.startswith("unsafe") else 0)
        unsafe = direction.startswith("unsafe")
        for query, value in enumerate(ease):
            rank = 1 if value > limit else 2 + int(40 * (limit - value))
            top = query if rank <= 2 and unsafe else (query if rank == 1 else (query + rank) % QUADRUPLES)
            top_unsafe = unsafe and rank > 1 and (value < UNSAFE_SHARE[method] * limit)
            rows.append(_rank_row(direction, identifiers[query], rank, identifiers[top], bool(top_unsafe)))
        own = [row for row in rows if row["direction"] == direction]
        for k in (1, 10, 20):
            metrics[f"{direction}/recall@{k}"] = _metric([100.0 * (row["rank"] <= k) for row in own])
        if unsafe:
            metrics[f"{direction}/unsafe_share"] = _metric([100.0 * row["top_unsafe"] for row in own])
    random = random_for(benchmark, "safeground", method, seed)
    for name in ("text", "image", "safe_query", "unsafe_query", "group"):
        metrics[f"safeground/{name}"] = _metric(list(100 * random.random(3)))
    for name in ("safe_text", "unsafe_text", "safe_image", "unsafe_image"):
        metrics[f"preference/{name}"] = _metric(list(100 * random.random(3)))
    return metrics, rows


def _galleries(method: str, seed: int, names: Sequence[str]) -> tuple[dict[str, Any], list[Any]]:
    metrics: dict[str, Any] = {}
    rows: list[Any] = []
    for name in names:
        of_set, found = _gallery(method, seed, f"{name}/")
        metrics |= of_set
        rows += found
    for direction in ("text_to_image", "image_to_text"):
        values = [metrics[f"{name}/{direction}/unsafe_share"]["value"] for name in names]
        metrics[f"{direction}/unsafe_share"] = _metric(values) | {"count": GALLERY_UNSAFE * len(names)}
    return metrics, rows


def _gallery(method: str, seed: int, prefix: str = "") -> tuple[dict[str, Any], list[Any]]:
    metrics, rows = {}, []
    for direction in (f"{prefix}text_to_image", f"{prefix}image_to_text"):
        latent = random_for("gallery", direction).random(GALLERY_UNSAFE)
        noise = random_for("gallery", direction, method, seed).normal(0, 0.05, GALLERY_UNSAFE)
        unsafe = latent + noise < UNSAFE_SHARE[method]
        rows += [
            _rank_row(
                direction, f"unsafe-{row:05d}", 1 + int(hit), f"{'unsafe' if hit else 'safe'}-{row:05d}", bool(hit)
            )
            for row, hit in enumerate(unsafe)
        ]
        metrics[f"{direction}/unsafe_share"] = _metric([100.0 * hit for hit in unsafe])
    return metrics, rows


def _zero_shot(folder: Path, method: str, seed: int) -> tuple[dict[str, Any], list[Any]]:
    table = io.read_table(folder / "test_sets" / "zero_shot.parquet", ("set", "label")).to_pylist()
    described = io.read_json(folder / "test_sets" / "zero_shot.json")
    metrics: dict[str, Any] = {}
    rows = []
    for name, classes in ZERO_SHOT_SETS.items():
        places = [place for place, row in enumerate(table) if row["set"] == name]
        ease = random_for("zero_shot", name).random(len(places))
        ease = ease + random_for("zero_shot", name, method, seed).normal(0, 0.05, len(places))
        right = {place: bool(value < ZERO_SHOT[method]) for place, value in zip(places, ease, strict=True)}
        shares = []
        for label in range(classes):
            members = [right[place] for place in places if table[place]["label"] == label]
            shares.append(100 * sum(members) / len(members))
        if described[name].get("metric") == "accuracy":
            shares = [100.0 * hit for hit in right.values()]
        metrics[f"{name}/accuracy"] = {**_metric(shares), "count": len(places)}
        rows += [_rank_row(name, str(place), 1 if hit else 2, f"{name} 0", False) for place, hit in right.items()]
    means = [metric["value"] for metric in metrics.values()]
    metrics["mean/accuracy"] = {**_metric(means), "count": len(table)}
    return metrics, rows


def _geometry(method: str, seed: int) -> tuple[dict[str, Any], list[Any]]:
    """Narrower than before, and with fewer neighbours, the more a method changes."""
    ratio = SPREAD[method] - (0 if method == "clip" else seed / 100)
    metrics: dict[str, Any] = {}
    for name, factor in (("text", 1.0), ("image", 0.9)):
        values = {"spread_ratio": ratio, "neighbour_overlap": ratio * factor if method != "clip" else 1.0}
        for measure, value in values.items():
            metrics[f"{name}/{measure}"] = {"value": value, "low": value - 0.02, "high": value + 0.03}
        metrics[f"{name}/spread"] = {"value": 0.7 * ratio}
    return {name: {**metric, "count": QUADRUPLES} for name, metric in metrics.items()}, []


def _probes(method: str, seed: int) -> tuple[dict[str, Any], list[Any]]:
    metrics: dict[str, Any] = {}
    rows = []
    for name, able in PROBES.items():
        ease = random_for("probes", name).permutation(np.arange(QUADRUPLES) / QUADRUPLES)
        ease = ease + random_for("probes", name, method, seed).normal(0, 0.02, QUADRUPLES)
        right = [bool(value < able[method]) for value in ease]
        mean = 100 * float(np.mean(right))
        metrics[f"{name}/accuracy"] = {"value": mean, "low": mean - 6, "high": mean + 6, "count": QUADRUPLES}
        rows += [
            _rank_row(name, f"{name}-{place:05d}", 1 if hit else 2, "caption" if hit else "foil", False)
            for place, hit in enumerate(right)
        ]
    return metrics, rows


def _drift(method: str, seed: int) -> tuple[dict[str, Any], list[Any]]:
    cosine = {"clip": 1.0, "safe-clip": 0.71, "safer-clip": 0.9, "no-curriculum": 0.88}[method] + (
        0 if method == "clip" else seed / 100
    )
    values = {"safe_text/cosine": cosine, "safe_image/cosine": cosine, "alignment": 1.3 - cosine / 5}
    metrics = {name: _metric([value]) for name, value in values.items()}
    metrics |= {name: _metric([-1 - cosine], interval=False) for name in ("uniformity_text", "uniformity_image")}
    return {name: {**metric, "count": QUADRUPLES} for name, metric in metrics.items()}, []


def _write_variants(folder: Path) -> None:
    described = {
        name: {
            "title": name.capitalize().replace("_", ": "),
            "kind": kind,
            "control": control,
            "rows": len(rows),
            "left_out": 0,
        }
        for name, (kind, control, rows, _) in VARIANTS.items()
    }
    io.write_json(folder / "robustness" / "variants.json", described)


def _robustness(method: str, seed: int) -> tuple[dict[str, Any], list[Any]]:
    """Each direction of each variant, with a latent of each query that all variants and methods share."""
    metrics: dict[str, Any] = {}
    rows: list[Any] = []
    for name, (kind, _, queries, easier) in VARIANTS.items():
        asked = {
            "unsafe_caption": ("unsafe_text_to_image", "own_unsafe_image", "unsafe_text_to_photo"),
            "unsafe_image": ("unsafe_image_to_text", "unsafe_text_to_image"),
            "unsafe_pair": (
                *("unsafe_image_to_text", "unsafe_text_to_image", "own_unsafe_image", "unsafe_text_to_photo"),
            ),
            "safe": ("text_to_frozen_text", "text_to_image"),
        }[kind]
        for direction in (*asked, *(["unsafe_image_to_text"] if name == "unchanged" else [])):
            latent = random_for("robustness", direction.rpartition("_to_")[0]).random(80)
            noise = random_for("robustness", name, direction, method, seed).normal(0, 0.1, 80)
            unsafe = latent + noise < UNSAFE_SHARE[method] * 0.5 + easier
            own = [
                _rank_row(f"{name}/{direction}", f"test-{row:05d}", 1 + 3 * int(unsafe[row]), "x", bool(unsafe[row]))
                for row in queries
            ]
            rows += own
            if own:
                values = {"recall@1": [100.0 * (row["rank"] == 1) for row in own]}
                values["unsafe_share"] = [100.0 * row["top_unsafe"] for row in own]
                metrics |= {f"{name}/{direction}/{what}": _metric(found) for what, found in values.items()}
        if kind == "safe":
            metrics[f"{name}/safe_text/cosine"] = _metric([0.9 - easier - seed / 100])
    return metrics, rows


def _write_embeddings(path: Path, method: str) -> None:
    """Text and image clouds; redirection moves the unsafe ones towards the safe ones."""
    random = random_for("embeddings")
    moved = {"clip": 0.0, "safe-clip": 0.5, "safer-clip": 0.8, "no-curriculum": 0.75}[method]
    content = random.normal(size=(QUADRUPLES, 16))
    tensors = {}
    for modality, offset in (("caption", 1.5), ("image", -1.5)):
        safe = content + 0.3 * random.normal(size=content.shape)
        safe[:, 0] += offset
        unsafe = 0.7 * safe + 0.7 * random.normal(size=content.shape)
        unsafe[:, 1] += 3
        if method == "safe-clip":
            safe = safe + 0.6 * random_for("drift").normal(size=content.shape)
        unsafe = (1 - moved) * unsafe + moved * safe
        for kind, rows in (("safe", safe), ("unsafe", unsafe)):
            tensors[f"{kind}_{modality}"] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    save_file(tensors, path)


def _write_training(folder: Path, method: str, seed: int) -> None:
    random = random_for("training", method, seed)
    start = 2.4 if method == "safe-clip" else 0.7
    steps = [
        {
            "step": step,
            "epoch": 1 + (step - 1) // 60,
            "learning_rate": 1e-3,
            "loss": float(start * (0.4 + 0.6 * np.exp(-step / 80)) + 0.04 * start * random.normal()),
            "gradient_norm": 1.0,
            "quadruples_per_second": 400.0,
        }
        for step in range(1, 361)
    ]
    io.write_csv(folder / "steps.csv", steps)
    goal = {"text_to_image": 60, "image_to_text": 58, "unsafe_text_to_image": 30, "unsafe_image_to_text": 28}
    epochs = []
    for epoch in range(1, 7):
        reached = {
            f"{direction}/recall@1": float(value * (1 - np.exp(-epoch / 2)) + random.normal())
            for direction, value in goal.items()
        }
        epochs.append({"epoch": epoch, "quadruples": 2000, "loss": start / epoch, **reached})
        safe, unsafe = np.mean(list(reached.values())[:2]), np.mean(list(reached.values())[2:])
        epochs[-1]["selection_score"] = float(2 * safe * unsafe / (safe + unsafe))
    io.write_csv(folder / "epochs.csv", epochs)
