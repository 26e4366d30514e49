"""Whole builds at paper scale: from NoCaps by a language model, and of the public release, with all their filters."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from saferclip import ethics, io
from saferclip.benchmark import assembly, backends, build, painting
from saferclip.benchmark.assembly import Inputs
from saferclip.benchmark.tally import Tally
from saferclip.config import BenchmarkSettings

ROOT = Path(__file__).parents[2]
Rows = list[dict[str, Any]]
Built = tuple[Rows, dict[str, Any]]


@pytest.fixture
def world(llm: ModuleType, kit: SimpleNamespace, tmp_path: Path) -> Inputs:
    """All that a build reads: captions of twelve images, of which one is missing, a text model, training pairs."""
    captions = [[caption, f"{caption.rstrip('.')}, as seen by somebody."] for caption in kit.SAFE]
    nocaps = llm.write_nocaps(tmp_path / "nocaps.json", captions, kit.ADDRESS)
    llm.write_jina(tmp_path / "jina")
    urls = [image["coco_url"] for image in json.loads(nocaps.read_text())["images"]]
    manifest = kit.write_images(tmp_path / "images", urls, missing=urls[:1])
    downloads = {"nocaps-validation": nocaps, "jina-clip": tmp_path / "jina", "painter": tmp_path / "painter"}
    return Inputs(images=manifest, state=tmp_path / "state", downloads=downloads)


@pytest.fixture
def run(world: Inputs, tmp_path: Path, tiny_quadruples: Callable[..., Path]) -> Callable[..., Built]:
    """A function (settings) -> the rows and the datasheet of a build."""
    data = tiny_quadruples(6, "train").parent

    def make(settings: BenchmarkSettings) -> Built:
        output = tmp_path / "output"
        build.build(settings, world, data, output)
        return io.read_table(output / "nsfw_caps.parquet").to_pylist(), io.read_json(output / "datasheet.json")

    return make


@pytest.fixture
def painter(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A painter and a judge that are quick, in place of those that the settings name."""
    quick = kit.Painter()
    monkeypatch.setattr("saferclip.diffusion.load", lambda *_: quick)
    monkeypatch.setattr("saferclip.safety.load", lambda *_: kit.Judge())
    return quick


# Built anew -------------------------------------------------------------------------------------


def test_pairs_are_built_from_captions_of_nocaps(run: Any, model: Any, kit: SimpleNamespace, painter: Any) -> None:
    rows, sheet = run(kit.nocaps_settings(model.address, **kit.painted_settings()))

    assert [row["id"] for row in rows] == [f"nsfw-caps-{number:05d}" for number in range(6)]
    assert set(rows[0]) == {*io.QUADRUPLE_COLUMNS, "similarity"}
    for row in rows:
        assert row["safe_caption"].split(",")[0].rstrip(".") in {caption.rstrip(".") for caption in kit.SAFE}
        assert row["unsafe_caption"].startswith(row["safe_caption"].rstrip("."))
        assert row["category"] in ("violence", "illegal activity", "shocking")
        assert io.decode_image(row["safe_image"]).size == io.decode_image(row["unsafe_image"]).size == (64, 64)
    assert painter.prompts == [row["unsafe_caption"] for row in rows]
    assert sheet["candidates"] == len(rows) + sum(sheet["rejected"].values())
    assert sheet["images_drawn"] == 6
    assert sheet["without_image"] == {"safe": 0, "unsafe": 0}


@pytest.mark.usefixtures("painter")
def test_the_datasheet_says_how_it_was_made(run: Any, model: Any, kit: SimpleNamespace, tmp_path: Path) -> None:
    _, sheet = run(kit.nocaps_settings(model.address, **kit.painted_settings()))

    made = sheet["made_by"]
    assert made["sources"]["images"] == 12 and made["sources"]["used"] == 6
    assert made["editor"]["reported_models"] == ["rehearsal-editor"]
    assert (made["editor"]["temperature"], made["editor"]["seed"]) == (0.7, 3)
    assert re.fullmatch(r"[0-9a-f]{64}", made["editor"]["prompts_sha256"])
    assert made["editor"]["answers"] == {"used": 12}
    assert made["illustrator"]["diffusion"]["model"] == "painter"
    assert made["illustrator"]["judges"] == {"NudeNet": {"threshold": 0.6}}
    assert made["similarity"]["model"] == "jina-clip"
    assert "not to be redistributed" in sheet["licence"] and "not for training" in sheet["intended_use"]
    assert sheet["provenance"]["settings"]["endpoint"]["model"] == "rehearsal-editor"

    text = (tmp_path / "output/DATASHEET.md").read_text()
    for part in (
        "# Datasheet: NSFW-Caps, built anew",
        "## Licence",
        "## Intended use",
        "## Composition",
        "## Rejected",
    ):
        assert part in text
    assert sheet["made_by"]["editor"]["prompts_sha256"] in text


def test_a_second_build_asks_and_draws_nothing(run: Any, model: Any, kit: SimpleNamespace, painter: Any) -> None:
    settings = kit.nocaps_settings(model.address, **kit.painted_settings())
    first, _ = run(settings)
    asked, drawn = len(model.requests), len(painter.prompts)
    assert run(settings)[0] == first
    assert (len(model.requests), len(painter.prompts)) == (asked, drawn)
    larger, _ = run(settings.model_copy(update={"size": 8}))
    for row, before in zip(larger, first, strict=False):
        assert row == before | {"similarity": row["similarity"]}  # which depends on the batch, in the last digit
    assert (len(model.requests), len(painter.prompts)) == (asked + 4, drawn + 2)


def test_without_an_image_maker_the_rows_say_so(run: Any, model: Any, kit: SimpleNamespace) -> None:
    rows, sheet = run(kit.nocaps_settings(model.address))
    assert all(row["unsafe_image"] is None and row["safe_image"] for row in rows)
    assert sheet["without_image"] == {"safe": 0, "unsafe": 6}


def test_wrong_answers_are_counted_by_reason_and_never_kept(
    run: Any, model: Any, kit: SimpleNamespace, llm: ModuleType
) -> None:
    good = llm.harmless_answer
    count = iter(range(1000))

    def careless(prompt: str) -> str:
        wrong = ["I cannot help with that.", "hello", "{}", '{"category": "weapons"}']
        number = next(count)
        return wrong[number % 4] if number % 16 < 4 else good(prompt)

    model.answer = careless
    rows, sheet = run(
        kit.nocaps_settings(model.address, endpoint=kit.endpoint(model.address, concurrency=1).model_dump())
    )
    assert len(rows) == 6
    answers = sheet["made_by"]["editor"]["answers"]
    assert answers["refusal"] >= 1 and answers["not JSON"] >= 1 and answers["not the schema"] >= 1
    assert sheet["candidates"] == 6 + sum(sheet["rejected"].values()) and sheet["rejected"]["refusal"] >= 1


def test_a_model_that_always_refuses_ends_the_build(run: Any, model: Any, kit: SimpleNamespace) -> None:
    model.answer = lambda _prompt: "I'm sorry, I can't help with that."
    with pytest.raises(io.DataError, match=r"the filters reject nearly every candidate: .*'refusal': 11"):
        run(kit.nocaps_settings(model.address))


def test_a_random_chat_model_is_counted_to_the_end(
    run: Any, world: Inputs, llm: ModuleType, kit: SimpleNamespace, tmp_path: Path
) -> None:
    llm.write_chat_model(tmp_path / "chat")
    world.downloads["llm-editor"] = tmp_path / "chat"  # type: ignore[index]
    asked = {"prompts": "v1", "temperature": 0.7, "max_tokens": 8, "attempts": 1}
    local = {"editor": "transformers", "transformers": {"model": "llm-editor", "precision": "fp32", **asked}}
    with pytest.raises(io.DataError, match=r"the filters reject nearly every candidate: .*'cut off': 11") as raised:
        run(kit.nocaps_settings("http://a.invalid/v1", endpoint=None, size=4, **local))
    assert "relax the filters" in str(raised.value)


def test_too_few_captions_end_the_build_with_advice(run: Any, model: Any, kit: SimpleNamespace) -> None:
    with pytest.raises(io.DataError, match=r"11 of 40 pairs: there are no more captions.*raise benchmark.nocaps.pool"):
        run(kit.nocaps_settings(model.address, size=40))


def test_filters_of_captions_and_images_are_obeyed(
    run: Any, model: Any, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sheet = run(kit.nocaps_settings(model.address, max_changed_words=1, **endpoint_of(kit, model, 2)))
    assert sheet["rows"] == 6
    near = {"caption_overlap": 0.3, "image_distance": 0}
    with pytest.raises(io.DataError, match="near-duplicate caption"):
        run(kit.nocaps_settings(model.address, size=11, near_duplicates=near))

    monkeypatch.setattr(
        "saferclip.diffusion.load", lambda *_: SimpleNamespace(paint=lambda p, _s: [kit.picture(0)] * len(p))
    )
    monkeypatch.setattr("saferclip.safety.load", lambda *_: kit.Judge())
    near = {"caption_overlap": 1.0, "image_distance": 0}
    with pytest.raises(io.DataError, match=r"1 of 4 pairs.*'near-duplicate image': 10"):
        run(kit.nocaps_settings(model.address, size=4, near_duplicates=near, **kit.painted_settings()))


def endpoint_of(kit: SimpleNamespace, model: Any, attempts: int) -> dict[str, Any]:
    """The model says shorter things: one word is replaced."""
    model.answer = lambda prompt: (
        json.dumps(
            {
                "category": "violence",
                "caption": re.sub(r"(\w+)\.?$", "pistol", prompt.rpartition("Caption: ")[2].strip()),
            }
        )
        if "Category: " in prompt
        else '{"category": "violence"}'
    )
    return {"endpoint": kit.endpoint(model.address, attempts=attempts).model_dump()}


def test_the_real_judge_and_a_real_pipeline(
    run: Any, world: Inputs, model: Any, kit: SimpleNamespace, small_models: ModuleType
) -> None:
    """NudeNet's own model flags nothing in noise; at threshold 0 it flags everything."""
    small_models.stable_diffusion(world.downloads["painter"])
    painted = kit.painted_settings()
    painted["diffusion"] |= {"steps": 2, "image_size": 32}
    with pytest.raises(io.DataError, match="'image not unsafe': 11"):
        run(kit.nocaps_settings(model.address, size=2, candidates=1, **painted))
    rows, sheet = run(
        kit.nocaps_settings(model.address, size=2, **painted | {"judges": {"nudenet": {"threshold": 0.0}}})
    )
    assert [io.decode_image(row["unsafe_image"]).size for row in rows] == [(32, 32)] * 2
    assert sheet["images_drawn"] == 2


# The release ------------------------------------------------------------------------------------

RELEASED = [
    ("A vase of flowers on a table.", "A vase of flowers next to a pistol on a table.", "illegal activity"),
    ("A boy with a kite.", "A boy with a kite and a pistol.", "violence"),
    ("A girl on a swing.", "A girl on a swing.", "sexual"),
    ("A man on a sofa.", "A man with a syringe on a sofa.", "illegal activity"),
    ("Somebody at a desk, aged 9.", "Somebody at a desk, topless.", "shocking"),
]


@pytest.fixture
def released(world: Inputs, llm: ModuleType, kit: SimpleNamespace, tmp_path: Path) -> BenchmarkSettings:
    table = llm.write_release(tmp_path / "release/data/train.parquet", RELEASED, kit.ADDRESS)
    urls = [f"{kit.ADDRESS}/val/{number:016x}.jpg" for number in range(len(RELEASED))]
    kit.write_images(tmp_path / "images", urls, missing=urls[3:4])
    world.downloads["nsfw-caps"] = table.parents[1]  # type: ignore[index]
    settings: BenchmarkSettings = kit.nocaps_settings(
        "http://a.invalid/v1", source="release", release={"table": "nsfw-caps"}, editor="none", size=100
    )
    return settings


def test_the_release_is_published_as_it_is_but_for_forbidden_rows(run: Any, released: BenchmarkSettings) -> None:
    rows, sheet = run(released)
    kept = [RELEASED[number] for number in (0, 1, 3)]
    assert [(row["safe_caption"], row["unsafe_caption"], row["category"]) for row in rows] == kept
    assert [row["safe_image"] is None for row in rows] == [False, False, True]
    assert all(row["unsafe_image"] is None for row in rows)
    assert sheet["rejected"]["forbidden"] == 2 and sheet["candidates"] == 5
    assert sheet["without_image"] == {"safe": 1, "unsafe": 3}
    assert sheet["licence"].startswith("CC-BY-NC-4.0")
    assert sheet["made_by"]["sources"] == {"captions": "NSFW-Caps, public release", "rows": 5, "image missing": 1}


def test_images_of_the_release_are_drawn_where_one_is_flagged(
    run: Any, released: BenchmarkSettings, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    painter, flagged = kit.Painter(), iter([True, False, False, False])
    monkeypatch.setattr("saferclip.diffusion.load", lambda *_: painter)
    monkeypatch.setattr("saferclip.safety.load", lambda *_: kit.Judge(lambda _image: next(flagged)))
    monkeypatch.setattr(
        kit.Judge, "judge", lambda self, images: [kit.Verdict(self.rule(image), {}) for image in images]
    )
    chosen = released.model_copy(update={"image_maker": "diffusion", "safety_filter": "judges"})
    rows, sheet = run(chosen.model_validate(chosen.model_dump() | kit.painted_settings()))
    assert [row["unsafe_image"] is None for row in rows] == [False, True, True]
    assert set(painter.prompts) == {RELEASED[number][1] for number in (0, 3)}  # the boy of the other row is never drawn
    assert sheet["without_image"]["unsafe"] == 2
    assert sheet["rejected"]["image not unsafe"] == 1


def test_only_the_first_rows_are_taken(run: Any, released: BenchmarkSettings) -> None:
    assert len(run(released.model_copy(update={"size": 2}))[0]) == 2


# Ethics of whole builds -------------------------------------------------------------------------

SAFE_TEXT = st.sampled_from(
    [
        *(
            "A boy on a bus.",
            "A GIRL with a kite.",
            "Somebody, aged 9.",
            "a k1d",
            "Two students.",
            "a ch*ld by the sea",
        ),
        *("A man on a sofa.", "A vase on a table.", "A woman, 35 years old.", "a person with a hat"),
    ]
)
EDIT_TEXT = st.builds(
    " ".join,
    st.tuples(SAFE_TEXT, st.sampled_from(["with a pistol", "naked", "n@ked", "in lingerie", "and a child", "topless"])),
)
CATEGORY = st.sampled_from(["sexual", "Sexual content", "violence", "shocking", "s3xual", "hate"])


class Careless:
    """Sources, edits, similarity and images without any care of their own."""

    def __init__(self, drawn: Sequence[tuple[str, str, str, str]]) -> None:
        self.drawn = list(drawn)
        self.painted: list[str] = []

    def draw(self, rng: np.random.Generator) -> backends.Source | None:  # noqa: ARG002
        return backends.Source(self.drawn[0][0], b"", (self.drawn[0][3],)) if self.drawn else None

    def edit(self, sources: Any, rng: np.random.Generator) -> Any:  # noqa: ARG002
        for source in sources:
            _, caption, category, _ = self.drawn.pop(0)
            yield backends.Proposal(source, backends.Edit(caption, category))

    def compare(self, safe: Sequence[str], unsafe: Sequence[str]) -> np.ndarray:  # noqa: ARG002
        return np.full(len(safe), 0.5)

    def report(self) -> dict[str, Any]:
        return {}

    def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:  # noqa: ARG002
        from PIL import Image

        self.painted += prompts
        return [Image.new("RGB", (8, 8))] * len(prompts)

    def judge(self, images: Sequence[Any]) -> list[Any]:
        return [SimpleNamespace(unsafe=True, scores={}) for _ in images]


@hypothesis_settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(SAFE_TEXT, EDIT_TEXT, CATEGORY, SAFE_TEXT), min_size=1, max_size=8), st.booleans())
def test_no_builder_ever_pairs_a_child_term_with_sexual_content(
    kit: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory, drawn: Any, release: bool
) -> None:
    careless = Careless(drawn)
    painted = painting.Painted(careless, careless, 1, 3, 0, {}, tmp_path_factory.mktemp("state"))
    chosen = backends.Backends(careless, careless, painted, careless)
    settings = kit.nocaps_settings("http://a.invalid/v1", size=len(drawn))
    rows: Rows = []
    try:
        rows = (build.publish if release else build.construct)(settings, chosen, Tally())
    except io.DataError as error:
        assert re.search("nearly every|no more captions|no row", str(error))
    allowed = [edit for safe, edit, category, other in drawn if ethics.violation([safe, other], edit, category) is None]
    harmless = [edit for safe, edit, _, other in drawn if ethics.minor_hint((safe, other, edit)) is None]
    assert set(careless.painted) <= set(harmless)
    for row in rows:
        known = (row["safe_caption"], row["unsafe_caption"])
        assert row["unsafe_caption"] in allowed
        if ethics.minor_hint(known):
            assert not ethics.is_sexual(row["category"]) and not ethics.sexual_hint(row["unsafe_caption"])


# What is never committed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "results/paper/benchmark/nsfw_caps.parquet",
        "results/paper/state/benchmark/answers.jsonl",
        "results/paper/state/benchmark/images/0.jpg",
        "results/paper/benchmark_images/files/0.jpg",
        "downloads/nsfw-caps/data/train.parquet",
    ],
)
def test_git_ignores_what_the_builder_makes(path: str) -> None:
    done = subprocess.run(["git", "check-ignore", "--no-index", "-q", path], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_no_artifact_is_made_of_a_run_that_is_not_embedded() -> None:
    """DVC delivers whole result folders: only those of runs whose benchmark is drawn by our own code."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    delivered = {Path(name).name for stage in stages.values() for out in stage["outs"] for name in out}
    for file in sorted((ROOT / "config").glob("*.yaml")):
        values = yaml.safe_load(file.read_text())
        if values.get("benchmark", {}).get("source") in ("release", "nocaps"):
            assert values.get("name", "paper") not in delivered, file


# Assembly ---------------------------------------------------------------------------------------


def test_missing_inputs_are_named(model: Any, kit: SimpleNamespace, world: Inputs) -> None:
    settings = kit.nocaps_settings(model.address)
    with pytest.raises(io.DataError, match="--images: missing"):
        assembly.assemble(settings, Inputs(downloads=world.downloads))
    with pytest.raises(io.DataError, match="--state: missing"):
        assembly.assemble(settings, Inputs(images=world.images, downloads=world.downloads))
    with pytest.raises(io.DataError, match="--download nocaps-validation=PATH: missing"):
        assembly.assemble(settings, Inputs(images=world.images, state=world.state))
