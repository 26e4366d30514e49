"""One subcommand for each step of the workflow; the same commands that rules call.

    saferclip settings mining --config config/mini.yaml    # what a step is given
    saferclip mining --settings "$(...)" --train ... --output ...

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from saferclip import escaping, signals

if TYPE_CHECKING:
    from saferclip.config import Settings

SectionT = TypeVar("SectionT", bound="Settings")
Command = Callable[..., Any]

FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)
NEW = click.Path(path_type=Path)

# Libraries report each use to their makers, over the network; read when they are first imported.
UNREPORTED = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0", "ORT_DISABLE_TELEMETRY": "1"}


class Steps(click.Group):
    """Reports what a user can mend as one line, not as a traceback; lists commands in workflow order."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except signals.Ended as ended:
            click.echo(ended.message, err=True)
            raise
        except Exception as error:
            message = _message(error)
            if message is None:
                raise
            click.echo(f"error: {escaping.lines(message)}", err=True)  # names in it may be a stranger's
            ctx.exit(1)


def _message(error: Exception) -> str | None:
    """What a user is told of an error that a user can mend; nothing of others, which are faults of ours."""
    from saferclip.config import ConfigError
    from saferclip.io import DataError

    # torch says so of the CPU's memory as a RuntimeError like any other, pyarrow by a subclass of MemoryError.
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
        return f"out of memory: {error}; close other programs, or give the step more (mem_mb of its rule)"
    return str(error) if isinstance(error, (ConfigError, DataError, OSError)) else None


@click.group(cls=Steps, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="saferclip")
def main() -> None:
    """Make CLIP safe, keep what it knew: SaFeR-CLIP step by step.

    Each command is one step of the workflow, which runs them all: snakemake --cores all
    """
    click.get_current_context().with_resource(signals.raised())
    os.environ.update(UNREPORTED)
    # At its end a process would look through all that its libraries made for cycles: a sixth of a short step's time.
    atexit.register(gc.freeze)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("saferclip").setLevel(logging.INFO)  # other packages speak only when something is wrong


def _settings(command: Command) -> Command:
    text = "the step's settings as JSON; `saferclip settings` prints them"
    return click.option("--settings", required=True, metavar="JSON", help=text)(command)


def _output(command: Command) -> Command:
    return click.option("--output", type=NEW, required=True, help="where results are written")(command)


def _option(name: str, kind: click.Path, text: str) -> Callable[[Command], Command]:
    return click.option(name, type=kind, required=True, help=text)


def _downloads(command: Command) -> Command:
    return click.option(
        "--download",
        "downloads",
        multiple=True,
        metavar="NAME=PATH",
        callback=lambda _context, _parameter, values: _pairs(values, "--download"),
        help="where something that the settings name is on disk; repeatable",
    )(command)


def _threads(command: Command) -> Command:
    return click.option(
        "--threads", type=click.IntRange(min=1), callback=_limit_threads, expose_value=False, help="processor threads"
    )(command)


def _limit_threads(_context: click.Context, _parameter: click.Parameter, value: int | None) -> None:
    if value is None:
        return
    # Read by OpenMP when torch is first imported, so before anything imports it.
    os.environ["OMP_NUM_THREADS"] = str(value)
    import torch

    torch.set_num_threads(value)


def _parse(section: type[SectionT], text: str) -> SectionT:
    from saferclip.config import parse_settings

    return parse_settings(section, text)


def _pairs(values: Iterable[str], option: str) -> dict[str, Path]:
    """Turn ``name=path`` options into a mapping."""
    pairs = {}
    for value in values:
        name, separator, path = value.partition("=")
        if not separator or not name or not path:
            raise click.BadParameter(f"'{value}': write name=path", param_hint=option)
        pairs[name] = Path(path)
    return pairs


@main.command()
@click.argument("name")
@_option("--table", FILE, "the versions table")
@_option("--folder", NEW, "where downloads are kept")
@click.option("--connections", type=click.IntRange(min=1), required=True, help="files fetched at once")
@click.option("--retries", type=click.IntRange(min=0), required=True, help="further tries, with growing pauses")
def download(name: str, table: Path, folder: Path, connections: int, retries: int) -> None:
    """Fetch what one row of the versions table means."""
    from saferclip.downloads import fetch

    fetch.fetch(name, table, folder, connections, retries)


@main.command("unsafe-images")
@_settings
@_downloads
@click.option("--shard", type=click.IntRange(min=0), required=True, help="which share of the captions, from 0")
@_output
@_option("--state", NEW, "folder from which an interrupted run goes on")
@_threads
def unsafe_images(settings: str, downloads: dict[str, Path], shard: int, output: Path, state: Path) -> None:
    """Make ViSU's unsafe images: one shard of them."""
    from saferclip.config import UnsafeImages
    from saferclip.data import unsafe_images

    unsafe_images.make(_parse(UnsafeImages, settings), shard, downloads, output, state)


@main.command()
@_settings
@_downloads
@click.option("--unsafe-images", type=FILE, multiple=True, help="a shard of ViSU's unsafe images; repeatable")
@_output
def data(settings: str, downloads: dict[str, Path], unsafe_images: tuple[Path, ...], output: Path) -> None:
    """Make the quadruples: train, validation and test tables."""
    from saferclip.config import DataSettings
    from saferclip.data import build

    build.build(_parse(DataSettings, settings), output, downloads, unsafe_images)


@main.command("test-sets")
@_settings
@_downloads
@click.option("--test", type=FILE, help="test quadruples, whose captions public galleries are searched with")
@_output
def test_sets(settings: str, downloads: dict[str, Path], test: Path | None, output: Path) -> None:
    """Make the galleries of safe and unsafe items, and the zero-shot sets."""
    from saferclip.config import SetsStep
    from saferclip.data import test_sets

    test_sets.build(_parse(SetsStep, settings), downloads, test, output)


@main.command()
@_settings
@_option("--test", FILE, "test quadruples, whose unsafe inputs are varied")
@_output
def robustness(settings: str, test: Path, output: Path) -> None:
    """Vary the unsafe test inputs in words and pictures that no training showed."""
    from saferclip.config import RobustnessStep
    from saferclip.data.robustness import build

    build.build(_parse(RobustnessStep, settings), test, output)


@main.command("validation-sets")
@_settings
@_output
def validation_sets(settings: str, output: Path) -> None:
    """Make the zero-shot sets beside the validation split."""
    from saferclip.config import ValidationSets
    from saferclip.data import validation_sets

    validation_sets.build(_parse(ValidationSets, settings), output)


@main.command("base-model-training")
@_settings
@_output
@_option("--state", NEW, "folder from which an interrupted run goes on")
@_threads
def base_model_training(settings: str, output: Path, state: Path) -> None:
    """Train the mini scale's base model anew (the default run fetches it)."""
    from saferclip.base_model import training
    from saferclip.config import BaseModelTrainingSettings

    training.train(_parse(BaseModelTrainingSettings, settings), output, state)


def _cache(command: Command) -> Command:
    text = "where models are kept that the settings name on the hub themselves"
    return click.option("--cache", type=NEW, default=Path("downloads"), show_default=True, help=text)(command)


@main.command("base-model")
@_settings
@_downloads
@_cache
@_output
@_threads
def base_model(settings: str, downloads: dict[str, Path], cache: Path, output: Path) -> None:
    """Fetch the CLIP that is fine-tuned, and check its activation."""
    from saferclip.base_model import fetch
    from saferclip.config import BaseModelSettings

    fetch.fetch(_parse(BaseModelSettings, settings), downloads, cache, "base_model", output)


@main.command("published-model")
@click.option("--method", required=True)
@_settings
@_downloads
@_cache
@_output
@_threads
def published_model(method: str, settings: str, downloads: dict[str, Path], cache: Path, output: Path) -> None:
    """Fetch a model that others have tuned, to be evaluated beside the run's own."""
    from saferclip.base_model import fetch
    from saferclip.config import BaseModelSettings

    fetch.fetch(_parse(BaseModelSettings, settings), downloads, cache, f"methods.{method}.weights", output)


@main.command("benchmark-images")
@_settings
@_downloads
@click.option("--connections", type=click.IntRange(min=1), required=True, help="files fetched at once")
@click.option("--retries", type=click.IntRange(min=0), required=True, help="further tries of a file")
@_output
def benchmark_images(settings: str, downloads: dict[str, Path], connections: int, retries: int, output: Path) -> None:
    """Fetch the safe images of the NSFW-Caps benchmark by their addresses."""
    from saferclip.benchmark import images
    from saferclip.config import BenchmarkImages

    images.fetch(_parse(BenchmarkImages, settings), downloads, connections, retries, output)


@main.command()
@_settings
@click.option("--detail", metavar="JSON", help="how much captions of the embedded world say, as JSON")
@click.option("--base-model", type=FOLDER, help="model folder, where it compares captions")
@click.option("--images", type=FILE, help="list of the safe images, as benchmark-images writes it")
@_downloads
@_option("--data", FOLDER, "folder of the quadruple tables")
@_output
@click.option("--state", type=NEW, help="folder from which an interrupted build goes on")
@_threads
def benchmark(settings: str, detail: str | None, data: Path, output: Path, **inputs: Any) -> None:
    """Build the NSFW-Caps benchmark."""
    from saferclip.benchmark import build
    from saferclip.benchmark.assembly import Inputs
    from saferclip.config import BenchmarkSettings, SceneDetail

    given = Inputs(detail=_parse(SceneDetail, detail) if detail else None, **inputs)
    build.build(_parse(BenchmarkSettings, settings), given, data, output)


@main.command()
@_settings
@_option("--base-model", FOLDER, "model folder")
@_option("--train", FILE, "training quadruples")
@_option("--validation", FILE, "validation quadruples")
@_output
@_threads
def embedding(settings: str, base_model: Path, train: Path, validation: Path, output: Path) -> None:
    """Embed all quadruples with the frozen base model, once."""
    from saferclip.config import MiningSettings
    from saferclip.mining import embedding

    embedding.embed(_parse(MiningSettings, settings), base_model, train, validation, output)


@main.command()
@_settings
@_option("--train", FILE, "training quadruples")
@_option("--embeddings", FILE, "frozen embeddings")
@_output
@_threads
def mining(settings: str, train: Path, embeddings: Path, output: Path) -> None:
    """Find the nearest safe caption of each unsafe one."""
    from saferclip.config import MiningSettings
    from saferclip.mining import nearest

    nearest.mine(_parse(MiningSettings, settings), train, embeddings, output)


@main.command()
@_settings
@_option("--train", FILE, "training quadruples")
@_option("--embeddings", FILE, "frozen embeddings")
@_output
@_threads
def targets(settings: str, train: Path, embeddings: Path, output: Path) -> None:
    """Find the targets of unsafe inputs by a rule of one's own."""
    from saferclip.config import TargetsStep
    from saferclip.mining import targets

    targets.mine(_parse(TargetsStep, settings), train, embeddings, output)


@main.command()
@_settings
@click.option("--seed", type=int, required=True)
@_option("--base-model", FOLDER, "model folder")
@_option("--train", FILE, "training quadruples")
@_option("--validation", FILE, "validation quadruples")
@_option("--embeddings", FILE, "frozen embeddings")
@_option("--neighbours", FILE, "mined targets")
@_output
@_option("--state", NEW, "folder from which an interrupted run goes on")
@click.option(
    "--processes",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="GPUs, each with a process; without GPUs, processes on the CPU (0: one)",
)
@_threads
def training(settings: str, processes: int, **inputs: Any) -> None:
    """Fine-tune the base model by one method, with one seed."""
    from saferclip.config import TrainingSettings
    from saferclip.training import launch, train

    section = _parse(TrainingSettings, settings)
    if processes > 1 and not launch.inside():
        options = {"settings": settings, **inputs}
        launch.launch(
            processes, ["training", *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]
        )
    else:
        train.train(section, **inputs)


@main.command("learning-rate-selection")
@click.option(
    "--run", "runs", multiple=True, required=True, metavar="METHOD/RATE=CSV", help="a run's epochs.csv; repeatable"
)
@_output
def learning_rate_selection(runs: tuple[str, ...], output: Path) -> None:
    """Choose each method's learning rate by its validation score."""
    from saferclip.training import selection

    scores: dict[str, dict[float, Path]] = {}
    for name, path in _pairs(runs, "--run").items():
        method, _, rate = name.rpartition("/")
        try:
            scores.setdefault(method, {})[float(rate)] = path
        except ValueError as error:
            raise click.BadParameter(f"'{name}': write METHOD/RATE=CSV", param_hint="--run") from error
    selection.select(scores, output)


def _tables(command: Command) -> Command:
    text = "a benchmark's table; repeatable"
    return click.option("--file", "files", multiple=True, required=True, metavar="BENCHMARK=FILE", help=text)(command)


@main.command()
@_settings
@_option("--base-model", FOLDER, "model folder")
@_option("--train", FILE, "training quadruples")
@_option("--validation", FILE, "validation quadruples")
@_option("--embeddings", FILE, "frozen embeddings")
@_output
@_threads
def edit(settings: str, **files: Any) -> None:
    """Compute a safer model's weights from the base model's, without training."""
    from saferclip.config import EditSettings
    from saferclip.editing import edit

    edit.edit(_parse(EditSettings, settings), **files)


@main.command("edit-selection")
@click.option(
    "--run",
    "runs",
    multiple=True,
    required=True,
    metavar="METHOD/CANDIDATE=JSON",
    help="a candidate's record.json; repeatable",
)
@_output
def edit_selection(runs: tuple[str, ...], output: Path) -> None:
    """Choose each edit's settings by its validation score."""
    from saferclip.editing import selection

    records: dict[str, list[Path]] = {}
    for name, path in _pairs(runs, "--run").items():
        records.setdefault(name.rpartition("/")[0], []).append(path)
    selection.select(records, output)


@main.command()
@_settings
@click.option("--method", required=True)
@click.option("--seed", type=int, required=True)
@_option("--model", FOLDER, "folder of the model to evaluate")
@_option("--base-model", FOLDER, "folder of the untuned model")
@click.option(
    "--baseline", type=FOLDER, help="folder of its evaluation; default: what drift compares with is embedded again"
)
@_tables
@_output
@_threads
def evaluation(
    settings: str,
    method: str,
    seed: int,
    model: Path,
    base_model: Path,
    baseline: Path | None,
    files: tuple[str, ...],
    output: Path,
) -> None:
    """Evaluate one model on every benchmark."""
    from saferclip.config import EvaluationSettings
    from saferclip.evaluation import evaluate

    section = _parse(EvaluationSettings, settings)
    evaluate.evaluate(section, method, seed, model, base_model, _pairs(files, "--file"), output, baseline)


@main.command()
@_settings
@click.option("--method", required=True)
@click.option("--seed", type=int, required=True)
@_option("--model", FOLDER, "folder of the tuned model, or of the untuned one")
@_option("--base-model", FOLDER, "folder of the untuned model, where the curve starts")
@_tables
@_output
@_threads
def tradeoff(settings: str, files: tuple[str, ...], **inputs: Any) -> None:
    """Evaluate one model at several scales of what tuning changed."""
    from saferclip.config import TradeoffStep
    from saferclip.evaluation import tradeoff

    tradeoff.tradeoff(_parse(TradeoffStep, settings), files=_pairs(files, "--file"), **inputs)


@main.command("tradeoff-ranking")
@_settings
@_option("--base", FILE, "outcomes of the untuned model, where all curves start")
@click.option(
    "--curve", "runs", multiple=True, required=True, metavar="METHOD/SEED=FILE", help="a model's outcomes; repeatable"
)
@_output
def tradeoff_ranking(settings: str, base: Path, runs: tuple[str, ...], output: Path) -> None:
    """Rank methods by the area under their trade-off curves."""
    from saferclip.config import RankingStep
    from saferclip.evaluation import ranking

    ranking.rank(_parse(RankingStep, settings), base, _pairs(runs, "--curve"), output)


@main.command()
@click.option(
    "--settings", default="{}", metavar="JSON", help="the step's settings as JSON; default: nothing is stated"
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["open_clip", "transformers", "diffusers"]),
    help="repeatable; default: all that can express the model",
)
@_option("--model", FOLDER, "folder of a training, or another model folder")
@click.option("--evaluation", type=FOLDER, help="folder of its evaluation, for the model card")
@click.option("--baseline", type=FOLDER, help="folder of the untuned model's evaluation, to compare with in the card")
@_output
@_threads
def export(settings: str, formats: tuple[str, ...], **folders: Any) -> None:
    """Write a model for open_clip, transformers and diffusers, with a model card."""
    import json

    from saferclip.config import ExportSettings
    from saferclip.export import export

    section = _parse(ExportSettings, settings)
    if formats:
        section = _parse(ExportSettings, json.dumps(section.model_dump(mode="json") | {"formats": formats}))
    export.export(section, **folders)


@main.command("text-to-image")
@_settings
@click.option("--guidance", required=True, help="name of a safe guidance in the settings")
@click.option("--method", required=True)
@click.option("--seed", type=int, required=True)
@_downloads
@click.option("--text-encoder", type=FOLDER, help="folder of a CLIPTextModel; default: the pipeline's own")
@_output
@_option("--state", NEW, "folder from which an interrupted run goes on")
@_threads
def text_to_image(settings: str, **inputs: Any) -> None:
    """Draw I2P's prompts with one model's text encoder, and judge the images."""
    from saferclip.config import TextToImageSettings
    from saferclip.generation import text_to_image

    text_to_image.text_to_image(_parse(TextToImageSettings, settings), **inputs)


@main.command("image-to-text")
@_settings
@click.option("--method", required=True)
@click.option("--seed", type=int, required=True)
@_downloads
@click.option("--vision", type=FOLDER, help="folder of a CLIPModel; default: LLaVA's own image encoder")
@_option("--test", FILE, "test quadruples")
@_output
@_option("--state", NEW, "folder from which an interrupted run goes on")
@_threads
def image_to_text(settings: str, **inputs: Any) -> None:
    """Ask LLaVA about unsafe images through one model's image encoder, and judge the answers."""
    from saferclip.config import ImageToTextSettings
    from saferclip.generation import image_to_text

    image_to_text.image_to_text(_parse(ImageToTextSettings, settings), **inputs)


def _product(command: Command) -> Command:
    for decorate in (
        _option("--output", NEW, "path of the files without their endings"),
        _option("--run", FOLDER, "the run's folder, results/<name>"),
        _settings,
        click.argument("name"),
    ):
        command = decorate(command)
    return command


@main.command()
@_product
def figure(name: str, settings: str, run: Path, output: Path) -> None:
    """Draw one figure."""
    from saferclip.config import FigureSettings
    from saferclip.figures import figure

    figure.draw(name, _parse(FigureSettings, settings), run, output)


@main.command()
@_product
def table(name: str, settings: str, run: Path, output: Path) -> None:
    """Write one table."""
    from saferclip.config import FigureSettings
    from saferclip.figures import table

    table.write(name, _parse(FigureSettings, settings), run, output)


@main.command()
@click.argument("step")
@_option("--config", FILE, "a run's configuration")
@click.option("--method", help="for the steps 'targets', 'training' and 'published_model'")
def settings(step: str, config: Path, method: str | None) -> None:
    """Print the settings of one step as JSON, as the workflow passes them."""
    from saferclip.config import load

    click.echo(load(config).settings_of(step, method))


@main.command()
@_option("--config", FILE, "a run's configuration")
def validate(config: Path) -> None:
    """Check a configuration without running anything."""
    from saferclip.config import load

    click.echo(f"{config}: '{load(config).name}' is valid")


@main.command()
@click.argument("names", nargs=-1, required=True)
@_option("--table", FILE, "the versions table, which is changed")
@click.option("--folder", type=FOLDER, help="where downloads are kept; for rows of the kind 'url'")
def pin(names: tuple[str, ...], table: Path, folder: Path | None) -> None:
    """Fill in today's versions of rows that name none."""
    from saferclip.downloads import fetch

    fetch.pin(names, table, folder)


@main.command()
@click.argument("store", type=FOLDER, required=False)
@click.option("--lock", type=FILE, default=Path("dvc.lock"), help="which versions there are [dvc.lock]")
def verify(store: Path | None, lock: Path) -> None:
    """Hash the objects of DVC's cache, or of a remote that is a folder."""
    from saferclip import artifacts

    click.echo(artifacts.verify(store or Path(".dvc/cache"), lock, cache=store is None))


if __name__ == "__main__":
    main()
