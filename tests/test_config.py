"""Every wrong setting is refused, all at once, with the key and what to write instead."""

from __future__ import annotations

import copy
import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import pytest
import yaml
from snakemake.utils import update_config

from saferclip import config
from saferclip.config import ConfigError, Settings

CONFIGS = Path(__file__).parents[1] / "config"
# Through JSON, so that sections that share an anchor are copies: a change to one is a change to one.
MINI = json.loads(json.dumps(yaml.safe_load((CONFIGS / "mini.yaml").read_text(encoding="utf-8"))))
SPLITS = ("train", "validation", "test")
OPTIONAL = {("data", "embedded"), ("test_sets",), ("test_sets", "embedded"), ("robustness",), ("base_model_training",)}
OPTIONAL |= {("benchmark",), ("tradeoff",), ("tradeoff", "validation")}
OPTIONAL |= {("test_sets", "embedded", "probe_images"), ("evaluation", "neighbours")}  # the error names the benchmark

PUBLIC_SETS = {
    "zero_shot": {"pets": {"title": "Pets", "download": "wds-pets", "split": "test", "metric": "accuracy"}},
    "galleries": {"nudenet": "nudenet-images"},
    "safe_images": "coco-val2017",
    "gallery_unsafe": 40,
    "gallery_safe_ratio": 10,
    "gallery_minimum": 20,
    "seed": 1,
}

Change = Callable[[dict[str, Any]], object]


def changed(change: Change) -> dict[str, Any]:
    values = copy.deepcopy(MINI)
    change(values)
    return values


def messages(change: Change) -> list[str]:
    """What the settings of the default run are told after a change that makes them wrong."""
    with pytest.raises(ConfigError) as caught:
        config.validate(changed(change), origin="run.yaml")
    head, *lines = str(caught.value).splitlines()
    assert head == f"run.yaml: {len(lines)} problem(s) in the settings"
    return [line.strip() for line in lines]


def message(change: Change) -> str:
    (only,) = messages(change)
    return only


def sections(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all mappings whose keys are settings; an architecture's keys are open_clip's."""
    if path[-1:] == ("architecture",):
        return []
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    here = [path] if isinstance(values, dict) and path != ("methods",) and values else []
    return here + [found for key, value in items for found in sections(value, (*path, key))]


def at(values: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        values = values[part]
    return values


def dotted(path: tuple[Any, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


# Files ------------------------------------------------------------------------------------------


def test_every_file_is_valid() -> None:
    files = sorted(CONFIGS.rglob("*.yaml"))
    assert {CONFIGS / name for name in ("mini.yaml", "tiny.yaml", "own-pairs.yaml")} <= set(files)
    names = [run_of(file).name for file in files if "name" in config.read(file)]
    assert len(set(names)) == len(names), "two runs of one name would overwrite each other's results"
    for file in files:
        run_of(file)


# What some files are laid over, as Snakemake does with several.
OVERLAYS = {
    "mini-ablations": ("mini",),
    "mini-own": ("mini",),
    "mini-weights": ("mini",),
    "mini-peers": ("mini",),
    "mini-unseen": ("mini",),
    "mini-labels": ("mini", "mini-peers"),
    "generation": ("paper",),
    "nsfw-caps": ("paper",),
    "rehearsal": ("paper", "generation"),
    "rehearsal-release": ("paper", "generation", "rehearsal"),
}


def runs_with_chosen_rates() -> set[str]:
    """Those with a table of learning rates that a step tried, and those that DVC delivers, which must have one."""
    lock = CONFIGS.parent / "dvc.lock"
    stages = yaml.safe_load(lock.read_text())["stages"] if lock.exists() else {}
    tried = {file.name.partition(".")[0] for file in CONFIGS.glob("*.learning_rates.csv")}
    return tried | (stages.keys() & {file.stem for file in CONFIGS.glob("*.yaml")})


@pytest.mark.parametrize("name", sorted(runs_with_chosen_rates()))
def test_configured_learning_rates_are_the_chosen_ones(name: str) -> None:
    """They came from the one documented rule, by no other way: of the run itself, or of what it is laid over."""
    run = run_of(CONFIGS / f"{name}.yaml")
    tables = [rows_of(CONFIGS / f"{layer}.learning_rates.csv") for layer in (*OVERLAYS.get(name, ()), name)]
    chosen = {method: float(row["learning_rate"]) for rows in tables for method, row in chosen_in(rows).items()}
    trained = {method: values for method, values in run.methods.items() if isinstance(values, config.TrainedMethod)}
    assert chosen == {method: values.learning_rate for method, values in trained.items()}
    assert {float(row["learning_rate"]) for row in tables[-1]} == set(run.selection.learning_rates)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.edits.csv")), ids=lambda file: file.name)
def test_edits_are_the_chosen_ones(file: Path) -> None:
    methods = run_of(CONFIGS / f"{file.name.partition('.')[0]}.yaml").methods
    choices = chosen_in(rows_of(file))
    assert choices
    for method, row in choices.items():
        edit = methods[method].edit.model_dump()  # type: ignore[union-attr]
        settings = dict(pair.split("=") for pair in row["settings"].split())
        assert {key: str(edit[key]) for key in settings} == settings, method


def rows_of(file: Path) -> list[dict[str, str]]:
    """What a step has tried."""
    with file.open() as text:
        return list(csv.DictReader(text))


def chosen_in(rows: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    """The chosen row of each method."""
    return {row["method"]: row for row in rows if row["chosen"] == "True"}


def run_of(file: Path) -> config.Config:
    """A whole run."""
    return config.validate(laid_over(*OVERLAYS.get(file.stem, ()), file.stem))


def laid_over(*names: str) -> dict[str, Any]:
    """Delivered configurations, each over those before it."""
    values: dict[str, Any] = {}
    for name in names:
        update_config(values, config.read(CONFIGS / f"{name}.yaml"))
    return values


def test_default_run_says_everything_that_has_no_default() -> None:
    """The YAML is the one home of defaults: a field may have one only if None, 'not given', is meaningful."""
    kinds = [kind for kind in vars(config).values() if isinstance(kind, type) and issubclass(kind, Settings)]
    optional = [(kind, name) for kind in kinds for name, field in kind.model_fields.items() if not field.is_required()]
    assert optional
    for kind, name in optional:
        field = kind.model_fields[name]
        assert field.default is None, f"{kind.__name__}.{name} has a default; put it into config/"
        assert NoneType in get_args(field.annotation)


def test_settings_survive_the_command_line() -> None:
    run = config.validate(MINI)
    assert config.parse_settings(config.TrainingSettings, run.settings_of("training", "safer-clip")) == run.training(
        "safer-clip"
    )


def test_settings_of_a_step_do_not_depend_on_notation() -> None:
    one = config.validate(changed(lambda values: values["optimisation"].update(max_gradient_norm=1)))
    other = config.validate(changed(lambda values: values["optimisation"].update(max_gradient_norm="1.0")))
    assert one.settings_of("training", "safer-clip") == other.settings_of("training", "safer-clip")


# Keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sections(MINI), ids=dotted)
def test_unknown_key_is_refused_at_every_level(path: tuple[Any, ...]) -> None:
    known = next(iter(at(MINI, path)))
    found = message(lambda values: at(values, path).update({f"{known}x": 1}))
    assert found == f"{dotted((*path, f'{known}x'))}: unknown key; did you mean '{known}'?"


def test_unknown_key_near_nothing_is_answered_with_the_known_ones() -> None:
    found = message(lambda values: values["mining"].update(zzz=1))
    assert found == "mining.zzz: unknown key; known keys: approximate, batch_size, block_size, pixels"


REQUIRED = [(*path, key) for path in sections(MINI) for key in at(MINI, path) if (*path, key) not in OPTIONAL]


@pytest.mark.parametrize("path", REQUIRED, ids=dotted)
def test_missing_key_is_named(path: tuple[Any, ...]) -> None:
    found = message(lambda values: at(values, path[:-1]).pop(path[-1]))
    assert found.startswith(f"{dotted(path)}: missing; add it")


def test_missing_key_comes_with_its_meaning() -> None:
    found = message(lambda values: values["mining"].pop("batch_size"))
    assert found == "mining.batch_size: missing; add it (inputs encoded at once)"


def test_key_that_is_no_text() -> None:
    assert message(lambda values: values["mining"].update({1: 2})).startswith("mining[1]: not the name of a setting")


@pytest.mark.parametrize("values", [None, [], "mini", 3])
def test_settings_must_be_a_section(values: Any) -> None:
    with pytest.raises(ConfigError, match=r"\(top level\): write a section"):
        config.validate(values)


# Values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda v: v.update(seeds="0"), "seeds: write a list, as in [a, b] (found: '0')"),
        (lambda v: v.update(seeds=[]), "seeds: empty; write at least one"),
        (lambda v: v.update(seeds=[0, 1, 0]), "seeds: 0 more than once; write each once"),
        (lambda v: v.update(seeds=[0, "x"]), "seeds[1]: write a whole number (found: 'x')"),
        (lambda v: v.update(title=5), "title: write text; quotes make text of a number (found: 5)"),
        (
            lambda v: v.update(name="My Run"),
            "name: use small letters, digits, '.', '_' and '-', beginning with a letter or digit (found: 'My Run')",
        ),
        (lambda v: v.update(mining=None), "mining: write a section: 'key: value' lines (found: None)"),
        (lambda v: v["optimisation"].update(epochs=2.5), "optimisation.epochs: write a whole number (found: 2.5)"),
        (lambda v: v["optimisation"].update(epochs=0), "optimisation.epochs: must be greater than 0 (found: 0)"),
        (lambda v: v["optimisation"]["lora"].update(alpha="a"), "optimisation.lora.alpha: write a number (found: 'a')"),
        (
            lambda v: v["optimisation"].update(max_gradient_norm=float("inf")),
            "optimisation.max_gradient_norm: must be a finite number (found: inf)",
        ),
        (
            lambda v: v["methods"]["safer-clip"].update(targets="nearst"),
            "methods.safer-clip.targets: did you mean 'nearest'? (found: 'nearst')",
        ),
        (
            lambda v: v["methods"]["safer-clip"].update(targets=7),
            "methods.safer-clip.targets: choose one of: paired, nearest (found: 7)",
        ),
        (
            lambda v: v["evaluation"].update(benchmarks=["test", "dirft"]),
            "evaluation.benchmarks[1]: did you mean 'drift'? (found: 'dirft')",
        ),
        (lambda v: v["methods"].update(other="x"), "methods.other: write a section: 'key: value' lines (found: 'x')"),
        (lambda v: v["methods"].update(other=0), "methods.other: write a section: 'key: value' lines (found: 0)"),
        (
            lambda v: v["selection"].update(learning_rates=[0]),
            "selection.learning_rates[0]: must be greater than 0 (found: 0)",
        ),
        (lambda v: v["base_model_training"].update(phases=[]), "base_model_training.phases: empty; write at least one"),
    ],
)
def test_wrong_value_is_answered_with_the_right_kind(change: Change, expected: str) -> None:
    assert message(change) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"rul": "both", "rule": "both"}, ".rul: unknown key; did you mean 'rule'?"),
        ({"rule": "bth"}, ".rule: did you mean 'both'? (found: 'bth')"),
        ({"rule": "both", "neighbours": 0}, ".neighbours: must be greater than 0 (found: 0)"),
        ({"rule": "both", "pool": 1.5, "seed": 1}, ".pool: must be less than or equal to 1 (found: 1.5)"),
        ({}, ".rule: missing; add it (which safe item: any, or the nearest one by the frozen cosine of captions, of "),
        ({"rule": "random"}, ": a 'seed' must be given where targets or their pool are drawn"),
        ({"rule": "text", "pool": 0.5}, ": a 'seed' must be given where targets or their pool are drawn"),
        ({"rule": "text", "seed": 1}, ": nothing is drawn, so 'seed' would have no effect; leave it out"),
        (
            {"rule": "random", "seed": 1, "neighbours": 2},
            ": 'neighbours' are the nearest, which rule 'random' does not look for; leave it out",
        ),
    ],
)
def test_a_wrong_target_rule_is_explained(rule: dict[str, Any], expected: str) -> None:
    said = message(lambda values: values["methods"]["safer-clip"].update(targets=rule))
    assert said.startswith(f"methods.safer-clip.targets{expected}")


def test_target_rules_are_steps_of_their_own() -> None:
    """Methods share the search of one rule, whatever the notation; other methods have none."""
    rule = {"rule": "text", "pool": 0.1, "seed": 4}

    def change(values: dict[str, Any]) -> None:
        method = values["methods"]["safer-clip"]
        values["methods"]["a"] = method | {"targets": rule}
        values["methods"]["b"] = method | {"targets": dict(reversed(rule.items()))}
        values["methods"]["c"] = method | {"targets": {"rule": "both", "neighbours": 4}}

    run = config.validate(changed(change))
    assert run.target_rules == {"text-pool-0.1-seed-4": "b", "both-4": "c"}
    assert run.settings_of("targets", "a") == run.settings_of("targets", "b") != run.settings_of("targets", "c")
    assert config.parse_settings(config.TargetsStep, run.settings_of("targets", "a")) == run.targets("a")
    assert run.targets("safer-clip") is None
    with pytest.raises(ConfigError, match="step 'targets': 'mini' has no settings for it"):
        run.section("targets", "safer-clip")
    with pytest.raises(ConfigError, match="step 'targets': name a method"):
        run.section("targets")


@pytest.mark.parametrize("key", ["dpi", "palette", "formats", "examples", "resamples"])
@pytest.mark.parametrize("value", [True, False])
def test_yes_and_no_are_not_numbers(key: str, value: bool) -> None:
    assert message(lambda values: values["figures"].update({key: value})).startswith(f"figures.{key}: true, false, yes")


def test_long_values_are_cut_in_messages() -> None:
    assert len(message(lambda values: values.update(seeds="0" * 1000))) < 120


def test_all_problems_are_listed_at_once() -> None:
    def change(values: dict[str, Any]) -> None:
        values["trainign"] = 1
        values["methods"]["safer-clip"]["learning_rte"] = 1
        del values["mining"]["block_size"]
        values["optimisation"]["lora"]["rank"] = "many"

    found = messages(change)
    assert [line.partition(":")[0] for line in found] == [
        "mining.block_size",
        "optimisation.lora.rank",
        "methods.safer-clip.learning_rte",
        "trainign",
    ]


# What must go together --------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [{}, None])
def test_clip_is_the_method_with_nothing_to_say(nothing: dict[str, Any] | None) -> None:
    run = config.validate(changed(lambda values: values["methods"].update(clip=nothing)))
    assert run.methods["clip"] is None
    assert run.seeds_of("clip") == (0,)
    assert run.seeds_of("safer-clip") == (0, 1, 2)
    with pytest.raises(ConfigError, match="method 'clip' is not trained; choose one of: safe-clip, safer-clip"):
        run.training("clip")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda v: v["methods"].pop("clip"), "methods: must hold 'clip: {}'"),
        (lambda v: v["methods"].update(clip=v["methods"]["safe-clip"]), "methods: must hold 'clip: {}'"),
        (lambda v: v["methods"].update(other={}), "say how these are trained: other"),
        (
            lambda v: v["methods"]["safer-clip"].update(
                weights=dict.fromkeys(v["methods"]["safer-clip"]["weights"], 0)
            ),
            "methods.safer-clip.weights: at least one weight must be above 0",
        ),
        (lambda v: v.pop("benchmark"), "names 'nsfw_caps', so the section 'benchmark' must be given"),
        (
            lambda v: v.pop("test_sets"),
            "names ['gallery', 'probes', 'zero_shot'], so the section 'test_sets' must be given",
        ),
        (lambda v: v.pop("robustness"), "names 'robustness', so the section 'robustness' must be given"),
        (
            lambda v: v.update(
                data={"source": "local", "local": dict.fromkeys(("train", "validation", "test"), "x.csv")}
            ),
            "set it to 'captions' where data.source is 'local'",
        ),
        (
            lambda v: v["robustness"].update(seed=1),
            "robustness: source is 'embedded', whose seed is data.embedded.seed; leave out 'seed'",
        ),
        (
            lambda v: v["robustness"].update(source="captions"),
            "robustness: source is 'captions', so 'seed' must be given",
        ),
        (lambda v: v["data"].update(source="local"), "data: source is 'local', so the section 'local' must be given"),
        (
            lambda v: v.update(
                data={"source": "local", "local": dict.fromkeys(("train", "validation", "test"), "x.csv")}
            ),
            "leave them out where data.source is 'local'",
        ),
        (
            lambda v: v["test_sets"].update(source="public"),
            "test_sets: source is 'public', so the section 'public' must be given",
        ),
        (
            lambda v: v.update(test_sets={"source": "public", "public": PUBLIC_SETS | {"zero_shot": None}}),
            "names ['probes', 'zero_shot'], for which test_sets.public names no sets",
        ),
        (
            lambda v: v["test_sets"]["embedded"].pop("probe_images"),
            "names ['probes'], so test_sets.embedded.probe_images must be given",
        ),
        (lambda v: v["evaluation"].pop("neighbours"), "'benchmarks' names 'geometry', so 'neighbours' must be given"),
        (
            lambda v: v.update(test_sets={"source": "public", "public": PUBLIC_SETS | {"safe_images": None}}),
            "test_sets.public: galleries are given, so 'safe_images' must be given",
        ),
        (
            lambda v: v.update(test_sets={"source": "public", "public": PUBLIC_SETS | {"galleries": {"mean": "x"}}}),
            "test_sets.public: no set can be called 'mean'",
        ),
        (
            lambda v: v.update(test_sets={"source": "public", "public": PUBLIC_SETS | {"gallery_minimum": 41}}),
            "test_sets.public: 'gallery_minimum' must not be above 'gallery_unsafe'",
        ),
        (lambda v: v["evaluation"].update(benchmarks=["test"]), "must name 'test' and 'zero_shot'"),
        (
            lambda v: v["tradeoff"].update(methods=["clip", "no"]),
            "names ['clip', 'no'], which this run does not tune",
        ),
        (lambda v: v["tradeoff"]["validation"].update(seed=v["benchmark"]["seed"]), "tradeoff.validation.seed is that"),
        (lambda v: v["test_sets"].update(source="public", public=PUBLIC_SETS), "tradeoff.validation draws sets of"),
        (lambda v: v["tradeoff"].update(scales=[0.5, 1.5]), "tradeoff.scales: must ascend, and hold 1"),
        (lambda v: v["tradeoff"].update(scales=[1, 0.5]), "tradeoff.scales: must ascend, and hold 1"),
        (lambda v: v["tradeoff"].update(scales=[0, 1]), "tradeoff.scales"),
        (lambda v: v["tradeoff"].update(budgets=[5, 1]), "tradeoff.budgets: must ascend"),
        (lambda v: v["figures"].update(runs={"other": [0]}), "figures.runs names 'other' with seeds [0]"),
    ],
)
def test_contradictions_are_refused(change: Change, expected: str) -> None:
    assert expected in message(change)


def test_the_step_robustness_is_given_the_worlds_seed_and_detail_or_its_own_seed() -> None:
    world = config.validate(MINI)
    drawn = config.parse_settings(config.RobustnessStep, world.settings_of("robustness"))
    assert world.data.embedded
    assert (drawn.seed, drawn.detail) == (world.data.embedded.seed, world.data.embedded.detail)
    words = config.validate(changed(lambda v: v["robustness"].update(source="captions", seed=8)))
    given = config.parse_settings(config.RobustnessStep, words.settings_of("robustness"))
    assert (given.seed, given.detail, given.queries) == (8, None, drawn.queries)


def test_public_test_sets_go_with_any_quadruples_and_name_their_downloads() -> None:
    values = changed(lambda v: v.update(test_sets={"source": "public", "public": PUBLIC_SETS}))
    values["downloads"] = {"table": "t.csv", "folder": "d", "local": {}, "connections": 1, "retries": 0}
    values["data"] = {"source": "local", "local": dict.fromkeys(SPLITS, "x.csv")}
    values["evaluation"]["benchmarks"] = ["test", "gallery", "zero_shot"]
    del values["tradeoff"]["validation"]
    run = config.validate(values)
    assert set(run.downloads_of("test_sets")) == {"wds-pets", "nudenet-images", "coco-val2017"}
    given = config.parse_settings(config.SetsStep, run.settings_of("test_sets"))
    assert given.embedded is None
    assert given.public is not None and given.public.galleries == {"nudenet": "nudenet-images"}
    drawn = config.parse_settings(config.SetsStep, config.validate(MINI).settings_of("test_sets"))
    assert drawn.public is None
    assert drawn.embedded is not None and drawn.embedded.seed == MINI["data"]["embedded"]["seed"]


def test_curves_start_at_the_untuned_model_and_are_given_no_test_data_for_validation() -> None:
    run = config.validate(MINI)
    assert run.curves == ["clip", "safe-clip", "safer-clip"]
    assert config.validate(changed(lambda v: v["tradeoff"].update(methods=["safer-clip"]))).curves == [
        "clip",
        "safer-clip",
    ]
    assert config.validate(changed(lambda v: v.pop("tradeoff"))).curves == []
    step = config.parse_settings(config.TradeoffStep, run.settings_of("tradeoff"))
    assert step.scales == tuple(MINI["tradeoff"]["scales"])
    assert step.evaluation.benchmarks == ("test", "nsfw_caps", "zero_shot")
    pairs = config.parse_settings(config.BenchmarkSettings, run.settings_of("validation_benchmark"))
    assert (pairs.seed, pairs.size) == (MINI["tradeoff"]["validation"]["seed"], 500)
    assert pairs.seed != MINI["benchmark"]["seed"]
    sets = config.parse_settings(config.ValidationSets, run.settings_of("validation_sets"))
    assert (sets.seed, sets.zero_shot_images) == (MINI["data"]["embedded"]["seed"], 300)


# YAML -------------------------------------------------------------------------------------------


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", ["name: a\nname: b\n", "a: {b: 1, b: 2}\n", "- {b: 1, b: 2}\n"])
def test_repeated_key_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml: cannot be read: key '\w+' is there twice"):
        config.load(written(tmp_path, text))


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    text = (CONFIGS / "mini.yaml").read_text(encoding="utf-8")
    assert text.count("      redirection_image: 0.5\n") == 1
    text = text.replace("      redirection_image: 0.5\n", "      redirection_image: 0.9\n")
    run = config.load(written(tmp_path, text))
    ours, merged = run.training("safer-clip").method.weights, run.training("safe-clip").method.weights
    assert (ours.redirection_image, ours.preservation_text) == (0.9, merged.preservation_text)


@pytest.mark.parametrize("notation", ["1e-3", "1.0e-3", "0.001", "'0.001'"])
def test_every_notation_of_a_number_is_one(tmp_path: Path, notation: str) -> None:
    """In YAML 1.1, 1e-3 without a point is text."""
    text = (CONFIGS / "mini.yaml").read_text(encoding="utf-8")
    text = text.replace("max_gradient_norm: 1.0", f"max_gradient_norm: {notation}")
    assert config.load(written(tmp_path, text)).optimisation.max_gradient_norm == 0.001


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"a: \x00", b"!!python/object/apply:os.getcwd []"])
def test_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.yaml: cannot be read: "):
        config.load(path)


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read: .*No such file"):
        config.load(tmp_path / "absent.yaml")


def test_settings_on_the_command_line_must_be_json() -> None:
    with pytest.raises(ConfigError, match="--settings: not JSON"):
        config.parse_settings(config.MiningSettings, "{")
    with pytest.raises(ConfigError, match="--settings: 1 problem"):
        config.parse_settings(config.MiningSettings, json.dumps({"batch_size": 1}))


def test_unknown_step_and_step_without_settings() -> None:
    run = config.validate(MINI)
    with pytest.raises(ConfigError, match="there is no step 'minig'; choose one of: data, "):
        run.settings_of("minig")
    with pytest.raises(ConfigError, match="step 'training': name a method"):
        run.settings_of("training")


PUBLISHED = {"weights": {"source": "download:safe-clip-published"}}
DOWNLOADS = {"table": "config/versions.csv", "folder": "downloads", "local": {}, "connections": 4, "retries": 5}


def test_a_published_model_is_evaluated_but_not_trained() -> None:
    run = config.validate(
        changed(lambda values: values.update(downloads=DOWNLOADS, methods=values["methods"] | {"published": PUBLISHED}))
    )
    assert run.trained == ["safe-clip", "safer-clip"]
    assert run.seeds_of("published") == (0,)
    assert run.published("published").source == "download:safe-clip-published"
    assert json.loads(run.settings_of("published_model", "published"))["source"] == "download:safe-clip-published"
    assert run.downloads_of("published_model", "published") == {
        "safe-clip-published": Path("downloads/safe-clip-published")
    }
    assert config.validate(run.model_dump(mode="json")) == run
    with pytest.raises(ConfigError, match="'published' is not trained; choose one of: safe-clip, safer-clip"):
        run.training("published")
    with pytest.raises(ConfigError, match="'safe-clip' is not a published model"):
        run.published("safe-clip")


HYPERBOLIC = config.read(CONFIGS / "mini-peers.yaml")["methods"]["hysac"]


def test_a_hyperbolic_method_is_trained_by_settings_of_its_own() -> None:
    run = config.validate(changed(lambda values: values["methods"].update(hysac=HYPERBOLIC)))
    assert run.trained == ["safe-clip", "safer-clip", "hysac"]
    settings = config.parse_settings(config.TrainingSettings, run.settings_of("training", "hysac"))
    assert settings == run.training("hysac") and isinstance(settings.method, config.HyperbolicMethod)
    assert config.validate(run.model_dump(mode="json")) == run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": "paired"}, "methods.hysac.targets: unknown key"),
        ({"geometry": {**HYPERBOLIC["geometry"], "kind": "flat"}}, "methods.hysac.geometry.kind: "),
        ({"geometry": {**HYPERBOLIC["geometry"], "curvature": -1.0}}, "methods.hysac.geometry.curvature: "),
        ({"geometry": {**HYPERBOLIC["geometry"], "safe_shar": 0.5}}, "did you mean 'safe_share'?"),
        ({"weights": {"preservation_text": 1.0}}, "methods.hysac.weights.preservation_text: unknown key"),
        ({"weights": dict.fromkeys(HYPERBOLIC["weights"], 0.0)}, "at least one weight must be above 0"),
    ],
)
def test_a_hyperbolic_methods_settings_are_explained(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config.validate(changed(lambda values: values["methods"].update(hysac={**HYPERBOLIC, **change})))


def test_a_hyperbolic_method_is_no_encoder_for_llava() -> None:
    values = laid_over("paper", "generation")
    values["methods"]["hysac"] = HYPERBOLIC
    with pytest.raises(ConfigError, match=re.escape("transformers can express, which ['hysac'] are not")):
        config.validate(values)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"source": "ftp:x"},
            "methods.published.weights.source: 'ftp:x' is not understood; write one of: dvc:<folder>",
        ),
        ({"source": "file:x.pt"}, "methods.published.weights: architecture: missing"),
        ({"source": "file:x.pt", "architectur": "x"}, "weights.architectur: unknown key; did you mean 'architecture'?"),
    ],
)
def test_a_published_models_settings_are_explained(weights: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config.validate(changed(lambda values: values["methods"].update(published={"weights": weights})))


def test_a_download_in_a_source_needs_the_section_of_downloads() -> None:
    with pytest.raises(ConfigError, match="vit is to be downloaded, so the section 'downloads' must be given"):
        config.validate(changed(lambda values: values["base_model"].update(source="download:vit")))


PROJECTION = {"kind": "projection", "rank": 4, "subspace": "shared"}
UWM = {
    "kind": "uwm",
    "calibration": 8,
    "text_modules": "a",
    "image_modules": "b",
    "text_sparsity": 0.98,
    "image_sparsity": 0.98,
    "factor": -1,
}


def edited(*methods: dict[str, Any], **grid: Any) -> Change:
    """Adds the methods ``edited-0`` and so on, and values to try."""

    def change(values: dict[str, Any]) -> None:
        values["methods"] |= {f"edited-{place}": method for place, method in enumerate(methods)}
        if grid:
            values["selection"]["edits"] = grid

    return change


def test_an_edit_is_run_once_and_never_trained() -> None:
    run = config.validate(changed(edited({"edit": PROJECTION}, {"edit": UWM})))
    assert run.edited == ["edited-0", "edited-1"]
    assert run.trained == ["safe-clip", "safer-clip"]
    assert run.seeds_of("edited-1") == (0,)
    section = run.section("edit", "edited-0")
    assert isinstance(section, config.EditSettings)
    assert section.batch_size == run.mining.batch_size
    assert config.parse_settings(config.EditSettings, run.settings_of("edit", "edited-1")) == run.edit("edited-1")
    with pytest.raises(ConfigError, match="'safer-clip' is not an edit"):
        run.section("edit", "safer-clip")
    with pytest.raises(ConfigError, match="'edited-0' is not trained"):
        run.section("training", "edited-0")


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"edit": 3}, ".edit: write a section: 'key: value' lines (found: 3)"),
        ({"edit": {}}, ".edit: kind: choose one of: uwm, projection"),
        ({"edit": {**UWM, "kind": "uwn"}}, ".edit: kind: choose one of: uwm, projection (found: 'uwn')"),
        ({"edit": {**UWM, "text_sparsity": 2}}, ".edit.text_sparsity: must be less than or equal to 1 (found: 2)"),
        ({"edit": {**PROJECTION, "rnk": 3}}, ".edit.rnk: unknown key; did you mean 'rank'?"),
        (
            {"edit": PROJECTION, "targets": "paired", "weights": {}},
            ": holds 'edit' and also targets, weights; a method's weights are computed ('edit' alone), trained "
            "('targets', 'weights' and so on) or fetched ('weights: {source: ...}'): keep one",
        ),
    ],
)
def test_an_edits_settings_are_checked_as_those_of_its_kind(method: dict[str, Any], expected: str) -> None:
    assert message(edited(method)) == f"methods.edited-0{expected}"


def test_candidates_of_an_edit_are_all_combinations() -> None:
    grid = {"edited-0": {"rank": [2, 8], "subspace": ["own", "shared"]}}
    run = config.validate(changed(edited({"edit": PROJECTION}, {"edit": UWM}, **grid)))
    found = [(settings.edit.rank, settings.edit.subspace) for settings in run.edit_candidates("edited-0")]
    assert found == [(2, "own"), (2, "shared"), (8, "own"), (8, "shared")]
    assert run.edit_candidates("edited-1") == [run.edit("edited-1")]


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ({"safer-clip": {"rank": [1]}}, "method 'safer-clip' is not an edit"),
        ({"edited-0": {"rank": [1, "many"]}}, "selection.edits.edited-0.rank: "),
        ({"edited-0": {"rnk": [1]}}, "selection.edits.edited-0.rnk: "),
    ],
)
def test_values_to_try_are_checked(grid: dict[str, Any], expected: str) -> None:
    assert expected in message(edited({"edit": PROJECTION}, **grid))


def varied(lora: dict[str, Any], **more: Any) -> Callable[[dict[str, Any]], None]:
    """SaFeR-CLIP once more, with other adapters."""

    def change(values: dict[str, Any]) -> None:
        values["methods"]["varied"] = {**values["methods"]["safer-clip"], "lora": lora, **more}

    return change


def test_a_methods_adapters_differ_in_what_it_says() -> None:
    run = config.validate(changed(varied({"rank": 2, "encoders": ["text"]})))
    usual, found = (run.training(method).optimisation for method in ("safer-clip", "varied"))
    assert usual == run.optimisation
    assert found.lora == usual.lora.model_copy(update={"rank": 2, "encoders": ("text",)})
    assert found.model_copy(update={"lora": usual.lora}) == usual


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        ({}, "methods.varied.lora: empty; write at least one of: rank, alpha, dropout, target_modules, encoders"),
        ({"rnk": 2}, "methods.varied.lora.rnk: unknown key; did you mean 'rank'?"),
        ({"rank": 0}, "methods.varied.lora.rank: must be greater than 0 (found: 0)"),
    ],
)
def test_a_methods_adapters_are_checked(lora: dict[str, Any], expected: str) -> None:
    assert expected in message(varied(lora))


def test_differences_name_methods_of_the_run() -> None:
    def change(values: dict[str, Any]) -> None:
        values["figures"]["differences"] = {
            "reference": "safer-clip",
            "others": "here",
            "groups": {"loss": ["safe-clop"]},
        }

    assert "figures.differences names 'safe-clop', which is no method of this run" in message(change)


def test_the_delivered_ablations_differ_from_the_method_in_one_thing_each() -> None:
    run = run_of(CONFIGS / "mini-ablations.yaml")
    assert run.figures.differences is not None
    named = [name for names in run.figures.differences.groups.values() for name in names]
    assert len(named) == len(set(named)) == 20
    whole = run.methods["safer-clip"].model_dump()
    for name in named:
        variant = run.methods[name].model_dump()
        different = {key for key in whole if variant[key] != whole[key]}
        assert len(different) == 1, (name, different)
