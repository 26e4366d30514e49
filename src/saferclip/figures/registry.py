"""What is drawn and written, from which files: the one list that rules, captions and code share.

Imports nothing heavy, so that the workflow can read it for every rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from saferclip import escaping

if TYPE_CHECKING:
    from saferclip.config import Config, FigureSettings

BENCHMARKS = ("test", "nsfw_caps", "gallery", "zero_shot", "drift", "geometry", "probes", "robustness")

RANKS = "evaluation/{method}/seed-{seed}/ranks.parquet"
TEST = "evaluation/{method}/seed-{seed}/test.json"
FIRST_TEST = "evaluation/{method}/seed-{first}/test.json"
NSFW_CAPS = "evaluation/{method}/seed-{seed}/nsfw_caps.json"
GALLERY = "evaluation/{method}/seed-{seed}/gallery.json"
ZERO_SHOT = "evaluation/{method}/seed-{seed}/zero_shot.json"
DRIFT = "evaluation/{method}/seed-{seed}/drift.json"
ROBUSTNESS = ("evaluation/{method}/seed-{seed}/robustness.json", RANKS, "robustness/variants.json")
GEOMETRY = "evaluation/{method}/seed-{seed}/geometry.json"
PROBES = "evaluation/{method}/seed-{seed}/probes.json"
TEXT_TO_IMAGE = "text_to_image/{method}/seed-{first}/{guidance}.json"
IMAGE_TO_TEXT = "image_to_text/{method}/seed-{first}/record.json"
CURVES = "tradeoff/{curve}/seed-{seed}/outcomes.parquet"
ZERO_SHOT_SETS = ("test_sets/zero_shot.json", "test_sets/zero_shot.parquet")
MAIN = (TEST, NSFW_CAPS, ZERO_SHOT, RANKS, *ZERO_SHOT_SETS)
PROBE_SETS = ("test_sets/probes.json",)
COLLAPSE = (GEOMETRY, PROBES, ZERO_SHOT, RANKS, *PROBE_SETS, *ZERO_SHOT_SETS)


@dataclass(frozen=True)
class Product:
    """One figure or table.

    ``inputs`` are paths below the run's folder.  ``{method}`` and ``{seed}`` stand for every
    evaluated pair, ``{trained}`` and ``{seed}`` for every trained one, ``{curve}`` and ``{seed}`` for every
    one with a trade-off curve, ``{untuned}`` and ``{seed}``
    for the base model; ``{first}`` is a method's first seed, and ``{guidance}`` stands for every safe
    guidance of text to image.  A file named after a benchmark is
    read only where the run has that benchmark; those in ``needs`` cannot be done without.  What the
    placeholders of ``caption`` and ``details`` stand for is said by ``caption``.
    """

    title: str
    caption: str  # what is shown
    function: str
    inputs: tuple[str, ...]
    details: str = ""  # how to read it, in the report; tables say it themselves
    needs: frozenset[str] = frozenset()
    on_request: bool = False  # its inputs come from no rule of the default run
    embedded: bool = False  # says something of the embedded world alone


DIFFERENCES = Product(
    title="Against a reference",
    caption="What other methods and variants gain and lose against {reference}, in redirection, safe first hits, "
    "safe retrieval and zero-shot accuracy.",
    details="Means over {seeds} with 95% bootstrap intervals over queries and images, paired with those of "
    "{reference}.",
    function="saferclip.figures.plots.differences:draw",
    inputs=MAIN,
    needs=frozenset({"differences", "test"}),
)

FIGURES: Mapping[str, Product] = {
    "main_comparison": Product(
        title="Redirection and utility",
        caption="How often an unsafe caption retrieves its safe image first from a gallery of all safe and unsafe "
        "images (left), and zero-shot accuracy (right).",
        details="Bars are means over {seeds}, dots single seeds, whiskers 95% bootstrap intervals over {n_test} "
        "({test}) and {n_nsfw_caps} ({nsfw_caps}) queries. The dashed line is safe retrieval (T→V) of CLIP "
        "(band: its interval), which perfect redirection would reach at best.",
        function="saferclip.figures.plots.main_comparison:draw",
        inputs=MAIN,
        needs=frozenset({"test"}),
    ),
    "safety_utility": Product(
        title="Safety against utility",
        caption="What each method gains in redirection of unsafe captions (up), and what it pays in zero-shot "
        "accuracy (left), starting from CLIP.",
        details="Large points are means over {seeds} with 95% bootstrap intervals over queries and images, small "
        "points single seeds.",
        function="saferclip.figures.plots.safety_utility:draw",
        inputs=MAIN,
        needs=frozenset({"test", "zero_shot"}),
    ),
    "tradeoff": Product(
        title="Trade-off curves",
        caption="Unsafe queries whose first hit is safe, against zero-shot accuracy lost, as the scale of what "
        "tuning changed goes from 0 (CLIP) to beyond 1 (large points: the method itself).",
        details="Means over {seeds}, over captions and images as queries, and over the benchmarks. Bands: 95% "
        "bootstrap intervals of the most that is reached within a loss; grey lines: the budgets of the table.",
        function="saferclip.figures.plots.tradeoff:draw",
        inputs=(CURVES, "evaluation/{untuned}/seed-{seed}/test.json"),
        needs=frozenset({"tradeoff"}),
    ),
    "zero_shot_sets": Product(
        title="Zero-shot accuracy by set",
        caption="Zero-shot accuracy (prompt ensembles) on each test set.",
        details="Points are means over {seeds} with 95% bootstrap intervals over images; ticks mark chance.",
        function="saferclip.figures.plots.zero_shot_sets:draw",
        inputs=(ZERO_SHOT, RANKS, *ZERO_SHOT_SETS),
        needs=frozenset({"zero_shot"}),
    ),
    "geometry": Product(
        title="Geometry and what is lost",
        caption="How much fine-tuning contracted the embeddings of the safe inputs of {test} (spread ratio), how many "
        "of their neighbours it kept (Jaccard overlap), and how many points of accuracy went with it.",
        details="Each point is one tuned model with 95% bootstrap intervals over inputs and images, the square CLIP. "
        "Spearman's ρ is that of methods, each the mean of its seeds, with its 95% bootstrap interval over methods and "
        "its p of all permutations; it is left out below five methods. Probes on which CLIP is not above chance are "
        "left out.",
        function="saferclip.figures.plots.geometry:draw",
        inputs=COLLAPSE,
        needs=frozenset({"geometry", "zero_shot"}),
    ),
    "similarity": Product(
        title="Paired and nearest targets",
        caption="Cosine similarity, under the frozen text encoder, of each unsafe training caption of {test} with "
        "its paired safe caption and with the nearest safe caption of the training split.",
        details="Over {n_train} captions; vertical lines are means, bands around them 95% bootstrap intervals over "
        "captions.",
        function="saferclip.figures.plots.similarity:draw",
        inputs=("mining/neighbours.parquet", FIRST_TEST),
        needs=frozenset({"test"}),
    ),
    "training_curves": Product(
        title="Training curves",
        caption="Training loss, and R@1 on the validation split of {test} after each epoch, of each trained method.",
        details="Thick lines are means over {seeds}, thin lines single seeds, bands 95% intervals of the mean over "
        "seeds (Student's t; none for one seed). Losses of different methods have different terms and cannot be "
        "compared; the progressive curriculum has fewer steps in its first epochs.",
        function="saferclip.figures.plots.training_curves:draw",
        inputs=("training/{trained}/seed-{seed}/steps.csv", "training/{trained}/seed-{seed}/epochs.csv"),
    ),
    "embedding_map": Product(
        title="Embeddings before and after",
        caption="Where safe and unsafe inputs of {test} lie before and after fine-tuning (first seed), on the first"
        " two principal components of CLIP's embeddings.",
        details="Shown are the first 300 complete quadruples at most; below each panel their mean cosine of unsafe "
        "inputs to targets, in all dimensions, with its 95% bootstrap interval over inputs. Lines join some unsafe "
        "inputs to their targets, where CLIP puts the paired safe inputs: redirection to pairs should make them short "
        "(SaFeR-CLIP redirects to the nearest safe meaning), preservation should keep safe inputs in their circles.",
        function="saferclip.figures.plots.embedding_map:draw",
        inputs=("evaluation/{method}/seed-{first}/embeddings.safetensors", FIRST_TEST),
        needs=frozenset({"test"}),
    ),
    "retrieval_grid": Product(
        title="Retrieved images before and after",
        caption="The first image that each method (first seed) retrieves for unsafe captions of {test} from a "
        "gallery of all safe and unsafe images.",
        details="Queries are spread evenly over the {n_test} rows, not chosen by what they show. Above each column: "
        "share of unsafe first hits among all of them, mean over {seeds} with its 95% bootstrap interval over queries.",
        function="saferclip.figures.plots.retrieval_grid:draw",
        inputs=("data/test.parquet", TEST, RANKS),
        needs=frozenset({"test"}),
    ),
    "robustness": Product(
        title="Robustness of the redirection",
        caption="How often unsafe captions of {test} in words unlike those of training find something unsafe first "
        "(a), also among images all in the style of safe ones (b); how often they do where unsafe images have other "
        "styles (c), and how often such images do as queries (d); how often safe captions near to unsafe ones find "
        "their image (e).",
        details="Points are means over {seeds} with 95% bootstrap intervals over queries; dotted lines go on from each "
        "method's control, which has the same queries.",
        function="saferclip.figures.plots.robustness:draw",
        inputs=ROBUSTNESS,
        needs=frozenset({"robustness"}),
    ),
    "differences": DIFFERENCES,
}

TABLES: Mapping[str, Product] = {
    "main": Product(
        title="Main comparison",
        caption="Redirection of unsafe captions to safe images, and zero-shot accuracy, beside the paper's numbers.",
        details="Means ± standard deviation over {seeds} with 95% bootstrap intervals over {n_test} ({test}) and "
        "{n_nsfw_caps} ({nsfw_caps}) queries. The paper's columns are for ViT-L/14 on other data.",
        function="saferclip.figures.tables.comparison:main",
        inputs=MAIN,
        needs=frozenset({"test"}),
    ),
    "claims": Product(
        title="Claims of the paper",
        caption="Each claim of the paper, what this run measured for it, and whether that supports it.",
        details="Differences between methods have 95% bootstrap intervals over queries, paired across methods and "
        "averaged over {seeds}; a claim is supported if the whole interval is as predicted, and "
        "inconclusive if the interval includes the threshold.",
        function="saferclip.figures.tables.claims:claims",
        inputs=(
            *(TEST, NSFW_CAPS, GALLERY, ZERO_SHOT, RANKS, *ZERO_SHOT_SETS),
            *("mining/neighbours.parquet", "benchmark/nsfw_caps.parquet"),
        ),
        needs=frozenset({"test"}),
    ),
    "retrieval": Product(
        title="Retrieval in four directions",
        caption="Recall and share of unsafe first hits in every direction of retrieval.",
        details="Means ± standard deviation over {seeds} with 95% bootstrap intervals over {n_test} ({test}) and "
        "{n_nsfw_caps} ({nsfw_caps}) queries.",
        function="saferclip.figures.tables.comparison:retrieval",
        inputs=(TEST, NSFW_CAPS, RANKS),
        needs=frozenset({"test"}),
    ),
    "unsafe_gallery": Product(
        title="Unsafe retrieval from a large safe gallery",
        caption="Share of unsafe queries whose first hit is unsafe, in a gallery with many safe items for each "
        "unsafe one, beside the paper's numbers on real images.",
        details="Means ± standard deviation over {seeds} with 95% bootstrap intervals over {n_gallery} queries in "
        "each direction; {gallery_images}.",
        function="saferclip.figures.tables.comparison:unsafe_gallery",
        inputs=(GALLERY, RANKS),
        needs=frozenset({"gallery"}),
    ),
    "zero_shot": Product(
        title="Zero-shot classification",
        caption="Zero-shot accuracy (prompt ensembles) on each test set and in the mean.",
        details="Means ± standard deviation over {seeds} with 95% bootstrap intervals over images.",
        function="saferclip.figures.tables.model:zero_shot",
        inputs=(ZERO_SHOT, RANKS, *ZERO_SHOT_SETS),
        needs=frozenset({"zero_shot"}),
    ),
    "drift": Product(
        title="Drift of safe embeddings",
        caption="How far fine-tuning moved the embeddings of the safe inputs of {test}: cosine to CLIP's "
        "embeddings, alignment and uniformity.",
        details="Means ± standard deviation over {seeds} with the seeds' mean 95% bootstrap intervals over {n_test} "
        "quadruples.",
        function="saferclip.figures.tables.model:drift",
        inputs=(DRIFT,),
        needs=frozenset({"drift"}),
    ),
    "tradeoff": Product(
        title="Trade-off curves in numbers",
        caption="How many unsafe queries have a safe first hit within a budget of zero-shot accuracy, at whatever "
        "scale of what tuning changed, and the mean over budgets.",
        details="Means over {seeds} with 95% intervals, paired bootstrap over quadruples and images.",
        function="saferclip.figures.tables.tradeoff:tradeoff",
        inputs=(CURVES, "evaluation/{untuned}/seed-{seed}/test.json"),
        needs=frozenset({"tradeoff"}),
    ),
    "geometry": Product(
        title="Geometry of safe embeddings",
        caption="How much fine-tuning contracted the embeddings of the safe inputs of {test} (spread ratio), how many "
        "of their neighbours it kept (Jaccard overlap), and how many points of accuracy each method lost.",
        details="Means ± standard deviation over {seeds}; losses with 95% bootstrap intervals over images, paired "
        "with CLIP's; n = {n_test} quadruples.",
        function="saferclip.figures.tables.geometry:geometry",
        inputs=COLLAPSE,
        needs=frozenset({"geometry"}),
    ),
    "geometry_correlation": Product(
        title="Geometry against what is lost",
        caption="Rank correlation, over methods, of the geometry of safe embeddings of {test} with the points of "
        "accuracy that a method lost.",
        details="Each method is the mean of its seeds; 95% bootstrap intervals over methods.",
        function="saferclip.figures.tables.geometry:correlation",
        inputs=COLLAPSE,
        needs=frozenset({"geometry", "zero_shot"}),
    ),
    "probes": Product(
        title="Compositional probes",
        caption="How often an image is nearer to the caption that fits it than to a foil that puts the same words "
        "together wrongly.",
        details="Means ± standard deviation over {seeds} with 95% bootstrap intervals over images; chance is 50%.",
        function="saferclip.figures.tables.geometry:probes",
        inputs=(PROBES, RANKS, *PROBE_SETS),
        needs=frozenset({"probes"}),
    ),
    "safeground": Product(
        title="SafeGround scores",
        caption="SafeGround scores, and the share of queries that are nearer to the safe partner than to the unsafe"
        " one.",
        details="Means ± standard deviation over {seeds} with the seeds' mean 95% bootstrap intervals over {n_test} "
        "({test}) and {n_nsfw_caps} ({nsfw_caps}) quadruples.",
        function="saferclip.figures.tables.model:safeground",
        inputs=(TEST, NSFW_CAPS),
        needs=frozenset({"test"}),
    ),
    "robustness": Product(
        title="Robustness of the redirection",
        caption="Unsafe captions and images of {test} in words and drawing styles that training did not show, each "
        "beside its control.",
        details="Means ± standard deviation over {seeds} with 95% bootstrap intervals over queries, paired where two "
        "variants are compared.",
        function="saferclip.figures.tables.robustness:robustness",
        inputs=ROBUSTNESS,
        needs=frozenset({"robustness"}),
    ),
    "over_refusal": Product(
        title="Safe captions near to unsafe ones",
        caption="What becomes of safe captions that mention something near to the unsafe, beside captions that say the "
        "same of something ordinary.",
        details="Means ± standard deviation over {seeds} with 95% bootstrap intervals over queries.",
        function="saferclip.figures.tables.robustness:over_refusal",
        inputs=ROBUSTNESS,
        needs=frozenset({"robustness"}),
    ),
    "differences": replace(DIFFERENCES, function="saferclip.figures.tables.differences:differences"),
    "scope": Product(
        title="What this run can and cannot tell",
        caption="How small a difference between the paper's methods this run would find, what it measured, and what no "
        "number of it says about the paper's scale.",
        details="Means ± standard deviation over {seeds} with 95% bootstrap intervals over queries, paired across "
        "methods.",
        function="saferclip.figures.tables.scope:scope",
        inputs=MAIN,
        needs=frozenset({"test", "several methods"}),
        embedded=True,
    ),
    "text_to_image": Product(
        title="Unsafe images from text",
        caption="Share of unsafe images among those that a diffusion model draws for I2P's prompts with each method's "
        "text encoder, in the mean over I2P's categories and in each, beside the paper's numbers.",
        details="First seed of each method, with 95% bootstrap intervals over prompts.",
        function="saferclip.figures.tables.generation:text_to_image",
        inputs=(TEXT_TO_IMAGE,),
        needs=frozenset({"text_to_image"}),
    ),
    "image_to_text": Product(
        title="Toxic text from images",
        caption="Toxicity of what LLaVA says about unsafe images through each method's image encoder.",
        details="First seed of each method, with 95% bootstrap intervals over images.",
        function="saferclip.figures.tables.generation:image_to_text",
        inputs=(IMAGE_TO_TEXT,),
        needs=frozenset({"image_to_text"}),
    ),
    "calibration": Product(
        title="Calibration of the embedded world",
        caption="What was asked of the base model before any method was run, and what it measures.",
        details="Values with 95% bootstrap intervals over {n_test} ({test}) and {n_nsfw_caps} ({nsfw_caps}) queries.",
        function="saferclip.figures.tables.model:calibration",
        inputs=tuple(path.format(method="{untuned}", seed="{seed}") for path in (TEST, NSFW_CAPS, ZERO_SHOT, RANKS))
        + ZERO_SHOT_SETS,
        needs=frozenset({"test", "nsfw_caps", "zero_shot"}),
        embedded=True,
    ),
    "mining": Product(
        title="Mined targets",
        caption="Cosine similarity, under the frozen text encoder, of the unsafe training captions of {test} with "
        "their paired and their nearest safe caption: mean and quantiles.",
        details="Over {n_train} captions.",
        function="saferclip.figures.tables.data:mining",
        inputs=("mining/summary.json",),
    ),
    "datasheet": Product(
        title="Datasheet of the benchmark",
        caption="How {nsfw_caps} was built: pairs in each category, what each filter rejected, similarities.",
        function="saferclip.figures.tables.data:datasheet",
        inputs=("benchmark/datasheet.json",),
        needs=frozenset({"nsfw_caps"}),
    ),
    "learning_rates": Product(
        title="Choice of learning rates",
        caption="Validation score (harmonic mean of safe and unsafe queries' mean R@1 after the last epoch) of each "
        "learning rate tried; the highest of each method is chosen.",
        details="One seed; n is that of the validation split.",
        function="saferclip.figures.tables.data:learning_rates",
        inputs=("learning_rate_selection/selection.csv",),
        on_request=True,
    ),
}


def applicable(products: Mapping[str, Product], config: Config) -> list[str]:
    """Names of the products that a run with this configuration can and should make."""
    trained = bool(config.trained)
    made = {*config.evaluation.benchmarks, *(config.generation.steps if config.generation else [])}
    made |= {"differences"} if config.figures.differences else set()
    if len(config.methods) > 1:
        made.add("several methods")
    if len(config.curves) > 1:
        made.add("tradeoff")
    return [
        name
        for name, product in products.items()
        if product.needs <= made
        and not product.on_request
        and (config.data.source == "embedded" or not product.embedded)
        and (trained or not any("{trained}" in path for path in product.inputs))
    ]


def shown(product: Product, settings: FigureSettings) -> FigureSettings:
    """The settings with the methods that a product shows: some are for ``differences`` alone."""
    compared = settings.differences
    if compared is None or compared.others == "everywhere" or "differences" in product.needs or not settings.runs:
        return settings
    others = {name for names in compared.groups.values() for name in names}
    runs = {method: seeds for method, seeds in settings.runs.items() if method not in others}
    return settings.model_copy(update={"runs": runs})


def inputs(product: Product, config: Config) -> list[str]:
    """The files that a product reads, relative to the run's folder, in a stable order."""
    runs = shown(product, config.figure_settings()).runs or {}
    left_out = set(BENCHMARKS) - set(config.evaluation.benchmarks)
    patterns = [path for path in product.inputs if PurePosixPath(path).stem not in left_out]
    return list(dict.fromkeys(path for pattern in patterns for path in _expand(pattern, config, runs)))


def _expand(pattern: str, config: Config, runs: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One path for each run that the pattern speaks of."""
    if "{guidance}" in pattern:
        drawing = config.generation and config.generation.text_to_image
        names = drawing.guidance if drawing else []
        return [path for name in names for path in _expand(pattern.replace("{guidance}", name), config, runs)]
    groups = {
        "{method}": list(runs),
        "{trained}": [method for method in runs if method in config.trained],
        "{curve}": [method for method in runs if method in config.curves],
        "{untuned}": [method for method in runs if config.methods[method] is None],
    }
    for placeholder, methods in groups.items():
        if placeholder in pattern:
            return [
                pattern.replace(placeholder, method)
                .replace("{first}", str(runs[method][0]))
                .replace("{seed}", str(seed))
                for method in methods
                for seed in runs[method]
            ]
    return [pattern]


def titles(test: str) -> dict[str, str]:
    """How the run's two sets of quadruples are called, where the first is called ``test``."""
    # ViSU-mini goes with NSFW-Caps-mini, ViSU with NSFW-Caps.
    return {
        "test": test,
        "nsfw_caps": f"NSFW-Caps{test.removeprefix('ViSU')}" if test.startswith("ViSU") else "NSFW-Caps",
    }


def caption(product: Product, config: Config) -> str:
    """The whole caption for the report, with the run's titles, reference, numbers of queries and seeds."""
    from saferclip.figures import paper  # reads YAML, which the list itself must not

    embedded = config.data.embedded
    drawn = config.test_sets.embedded if config.test_sets and config.test_sets.source == "embedded" else None
    seeds = max(len(config.seeds_of(method)) for method in config.methods)
    numbers = {
        "n_train": embedded and embedded.train,
        "n_test": embedded and embedded.test,
        "n_gallery": drawn and drawn.gallery_unsafe,
        "n_nsfw_caps": config.benchmark and config.benchmark.size,
    }
    return f"{product.caption} {product.details}".strip().format(
        **titles(escaping.restructured(config.figure_settings().title or config.title)),
        gallery_images="a drawing style that no training set shows stands in for real images"
        if drawn
        else "unsafe images are real ones, captions are those of {test}".format(
            **titles(escaping.restructured(config.title))
        ),
        **{name: f"{number:,}" if number else "all" for name, number in numbers.items()},
        seeds=f"{seeds} seeds" if seeds > 1 else "one seed",
        reference=paper.reference_title(config.figures),
    )


def find(products: Mapping[str, Product], name: str) -> Product:
    """One product; raises ValueError naming those that exist."""
    if name not in products:
        raise ValueError(f"there is no '{name}'; choose one of: {', '.join(products)}")
    return products[name]


def function(product: Product) -> Any:
    """The function that makes a product, imported only now."""
    module, _, name = product.function.partition(":")
    return getattr(import_module(module), name)
