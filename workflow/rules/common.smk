"""What rules share: paths, a step's settings, and the source files behind a step."""

import ast
import json
import re
from functools import cache
from os.path import dirname
from pathlib import Path
from shlex import quote

import yaml

from snakemake.logging import logger

from saferclip import downloads, plan
from saferclip.config import downloads_of
from saferclip.figures import registry

R = f"results/{RUN.name}"
LOGS = f"{R}/logs"
SPLITS = ("train", "validation", "test")

# What every rule runs in. Activate it (or .venv) before Snakemake; jobs inherit it.
ENVIRONMENT = "../../environment.yml"

TRAINED = RUN.trained
EDITED = RUN.edited
PUBLISHED = [method for method in RUN.methods if RUN.methods[method] and method not in (*TRAINED, *EDITED)]
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")

# Where the base model is copied from. A DVC artifact, which the default run fetches but never trains; a folder or a
# file, ordinary inputs; a download, whose rule comes first; or a name on the hub, which is fetched by the step itself.
DELIVERED = RUN.base_model.name
NETWORKED = ("dvc", "open_clip", "hf-hub")
CACHE = RUN.downloads.folder if RUN.downloads else "downloads"

# One training run of the learning rate grid, and the choice made from all: versioned beside the configuration.
TRIAL = f"{R}/learning_rate_selection/{{method}}/{{rate}}"
CHOSEN_RATES = f"config/{RUN.name}.learning_rates.csv"

# The same for edits: one combination of the values of selection.edits.
EDIT_TRIAL = f"{R}/edit_selection/{{method}}/{{candidate}}"
CHOSEN_EDITS = f"config/{RUN.name}.edits.csv"

# Decoded images, where training does not decode them for itself.
PIXELS = [f"{R}/embedding/{split}_pixels.safetensors" for split in SPLITS[:2] if RUN.mining.pixels == "file"]

# The table that each benchmark reads.
BENCHMARKS = {
    "test": f"{R}/data/test.parquet",
    "nsfw_caps": f"{R}/benchmark/nsfw_caps.parquet",
    "gallery": f"{R}/test_sets/gallery.parquet",
    "zero_shot": f"{R}/test_sets/zero_shot.parquet",
    "drift": f"{R}/data/test.parquet",
    "robustness": f"{R}/robustness/variants.parquet",
    "geometry": f"{R}/data/test.parquet",
    "probes": f"{R}/test_sets/probes.parquet",
}
TABLES = {name: BENCHMARKS[name] for name in dict.fromkeys(["test", *RUN.evaluation.benchmarks])}
# Of these, what a trade-off curve is made of; and what takes their places where test data must not be looked at.
SWEPT = {name: TABLES[name] for name in ("test", "nsfw_caps", "zero_shot") if RUN.tradeoff and name in TABLES}
VALIDATED = {
    "validation": f"{R}/data/validation.parquet",
    "nsfw_caps": f"{R}/validation_benchmark/nsfw_caps.parquet",
    "zero_shot": f"{R}/validation_sets/zero_shot.parquet",
}
TABLE_FORMATS = ("html", "csv", "md", "tex")
REPORT = f"{R}/report.html"

if RUN.costs and workflow.is_main_process:
    logger.info(plan.describe(RUN))


wildcard_constraints:
    method="|".join(map(re.escape, RUN.methods)),
    seed=r"\d+",
    rate=r"[0-9.e+-]+",
    candidate=r"\d+",


def settings(step):
    """The JSON that a command takes as --settings: the step's own section of the configuration, nothing else.

    A function of wildcards, because braces in a plain string would be taken for wildcards.
    """
    return lambda wildcards: RUN.settings_of(step, wildcards.get("method"))


def model_files(source):
    """The files of a model that is on this disk, or that a rule puts there; nothing for one from elsewhere."""
    if source.kind == "file":
        return [source.name]
    if source.kind != "local-dir":
        return []
    here = [str(file) for file in Path(source.name).glob("*.*") if file.is_file()]
    return sorted(here) if here and not RUN.base_model_training else model(source.name)


def needed(step, method=None):
    """Files that a step waits for before it reads its downloads: their manifests, or the user's own files."""
    places = RUN.downloads_of(step, method)
    return [str(path if name in RUN.downloads.local else f"{path}.json") for name, path in places.items()]


def fetched():
    """Everything of the table of downloads that the run speaks of and the user has not got: name to folder."""
    names = downloads_of(RUN) if RUN.downloads else []
    return {name: RUN.downloads.path(name) for name in names if name not in RUN.downloads.local}


def given(step, method=None):
    """The --download options that tell a command where its downloads are, for the shell: a path may hold anything."""
    return [f"--download {quote(f'{name}={path}')}" for name, path in RUN.downloads_of(step, method).items()]


def public_sets(what):
    """A setting of the public test sets; nothing where the run has none."""
    chosen = RUN.test_sets and RUN.test_sets.source == "public" and RUN.test_sets.public
    return getattr(chosen, what) if chosen else []


def set_files():
    """What the step test_sets makes: tables, and the descriptions beside them."""
    benchmarks = sorted(RUN.test_sets.benchmarks) if RUN.test_sets else []
    described = [name for name in benchmarks if name != "gallery" or public_sets("galleries")]
    return [f"{name}.parquet" for name in benchmarks] + [f"{name}.json" for name in described]


@cache
def modules(*names):
    """Source files behind modules of saferclip: all they import from it, and the data files beside them.

    Snakemake cannot see edits behind a command line, so rules list these as inputs. Left out are
    config/, since its effect on a step is the step's settings, and the package's version.
    """
    found = {}
    queue = [f"saferclip.{name}" for name in names]
    while queue:
        name = queue.pop()
        file = _source(name)
        if name in found or name == "saferclip" or name.startswith("saferclip.config") or file is None:
            continue
        found[name] = file
        queue += [name.rpartition(".")[0], *_imports(file)]
    folders = {file.parent for file in found.values()} - {Path("src/saferclip")}
    data = [file for folder in folders for file in folder.iterdir() if file.is_file() and file.suffix != ".py"]
    return sorted(map(str, [*found.values(), *data]))


@cache
def _source(name):
    path = Path("src", *name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


@cache
def _imports(file):
    """What a file imports from saferclip, wherever in it; other names may be in the answer, which _source sorts out."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import name`: the name may be a module or not; _source knows.
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.startswith("saferclip")]


def model(folder):
    """The two files of a model folder in open_clip's format."""
    return [f"{folder}/open_clip_config.json", f"{folder}/open_clip_model.safetensors"]


def delivered_version():
    """Content hash of the base model's DVC artifact: a newly delivered model is another model."""
    if RUN.base_model.kind != "dvc":
        return ""
    stages = yaml.safe_load(Path("dvc.lock").read_text())["stages"] if Path("dvc.lock").is_file() else {}
    hashes = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
    return hashes.get(DELIVERED, "")


def trial_settings(method, rate):
    """A method's training settings with another learning rate, as JSON."""
    values = json.loads(RUN.settings_of("training", method))
    values["method"]["learning_rate"] = rate
    return json.dumps(values, sort_keys=True)


def candidate_settings(method, candidate):
    """One candidate of an edit's settings, as JSON."""
    return json.dumps(RUN.edit_candidates(method)[candidate].model_dump(mode="json"), sort_keys=True)


def mined(wildcards):
    """The table in which a method's training looks up its targets."""
    step = RUN.targets(wildcards.method)
    return f"{R}/targets/{step.targets.name}/neighbours.parquet" if step else f"{R}/mining/neighbours.parquet"


def evaluated_model(wildcards):
    """The model files that an evaluation reads: a fine-tuned, an edited or a published model, or the base model."""
    if wildcards.method in (*TRAINED, *EDITED):
        step = "training" if wildcards.method in TRAINED else "edit"
        return model(f"{R}/{step}/{wildcards.method}/seed-{wildcards.seed}")
    untuned = RUN.methods[wildcards.method] is None
    return model(f"{R}/base_model" if untuned else f"{R}/published_model/{wildcards.method}")


def baseline(wildcards):
    """What the untuned model's evaluation hands over to all others, to be compared with; nothing for itself."""
    untuned = next(method for method, settings in RUN.methods.items() if settings is None)
    if wildcards.method == untuned or not {"drift", "geometry", "robustness"} & set(RUN.evaluation.benchmarks):
        return []
    return f"{R}/evaluation/{untuned}/seed-{RUN.seeds_of(untuned)[0]}/embeddings.safetensors"


def curves(step):
    """The outcomes of every model that has a trade-off curve: method and seed to file."""
    return {
        f"{method}/{seed}": f"{R}/{step}/{method}/seed-{seed}/outcomes.parquet"
        for method in RUN.curves
        for seed in RUN.seeds_of(method)
    }


def exported(folder, method="{method}", seed="{seed}"):
    """What every export of a model has, whatever its architecture."""
    place = f"{folder}/{method}/seed-{seed}"
    return [f"{place}/README.md", f"{place}/export.json", *model(f"{place}/open_clip")]


def guided(wildcards):
    """The settings of text_to_image with one guidance, so that a new one leaves the others' images alone."""
    values = json.loads(RUN.settings_of("text_to_image"))
    values["guidance"] = {wildcards.guidance: values["guidance"][wildcards.guidance]}
    return json.dumps(values, sort_keys=True)


def tuned_export(wildcards):
    """A tuned method's export; nothing for the untuned one, with which other models keep their own encoder."""
    return exported(f"{R}/export", wildcards.method, wildcards.seed) if RUN.methods[wildcards.method] else []


def encoder_option(option, folder):
    """The option that names an exported encoder; nothing where there is none."""
    return lambda wildcards, input: f"{option} {dirname(input.export[0])}/{folder}" if input.export else ""


def products(kind):
    """Figures or tables that this run makes; the table of learning rates where a choice was delivered."""
    chosen = ["learning_rates"] if kind is registry.TABLES and TRAINED and Path(CHOSEN_RATES).is_file() else []
    return [*registry.applicable(kind, RUN), *chosen]


def product(what):
    """What the registry says of the figure or table that a job makes; a function of its wildcards.

    ``what`` is 'files' (that it reads), 'code' (behind it), 'title' or 'caption'.
    """

    def look_up(wildcards):
        noun, name = next(iter(wildcards.items()))
        entry = (registry.FIGURES if noun == "figure" else registry.TABLES)[name]
        if what == "files":
            return [f"{R}/{file}" for file in registry.inputs(entry, RUN)]
        if what == "code":
            return modules(f"figures.{noun}", entry.function.partition(":")[0].removeprefix("saferclip."))
        if what == "caption":
            return registry.caption(entry, RUN)
        return getattr(entry, what)

    return look_up


def labels(format):
    """How the report lists a figure or table: by its title, with a switch between two formats."""
    return lambda wildcards: {next(iter(wildcards.keys())): product("title")(wildcards), "format": format}
