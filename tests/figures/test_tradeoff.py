"""Trade-off curves in the figure and the table: what is drawn and written is what the outcomes say."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from saferclip import curves, io, statistics
from saferclip.config import ConfigError
from saferclip.figures import figure, table
from saferclip.figures.results import Results
from saferclip.figures.tradeoff import Curves

SCALES = (0.0, 0.5, 1.0, 1.5)
TUNED = ["safe-clip", "safer-clip"]


@pytest.fixture(scope="module")
def found(run: Any) -> Curves:
    return Curves.read(Results(run.folder, run.settings))


def outcomes(run: Any, method: str, seed: int) -> Any:
    return io.read_table(run.folder / "tradeoff" / method / f"seed-{seed}" / "outcomes.parquet").to_pandas()


def shares(run: Any, method: str, seed: int) -> dict[str, list[float]]:
    """Safety and zero-shot accuracy at every scale, by hand."""
    base, tuned = outcomes(run, "clip", 0), outcomes(run, method, seed)
    frame = base.merge(tuned, on=["benchmark", "direction", "query_id"], suffixes=("", "_"))
    parts = dict(tuple(frame.groupby("benchmark")))
    return {
        "safety": [100 - 100 * parts["test"][f"{scale:g}/top_unsafe"].mean() for scale in SCALES],
        "accuracy": [100 * (parts["zero_shot"][f"{scale:g}/rank"] == 1).mean() for scale in SCALES],
    }


def test_every_tuned_method_has_a_curve_of_means_over_seeds(run: Any, found: Curves) -> None:
    assert list(found.models) == TUNED
    assert found.points.scales == SCALES
    for method in TUNED:
        seeds = [shares(run, method, seed) for seed in run.settings.runs[method]]
        loss, safety = found.at_scales(method)
        assert safety == pytest.approx(np.mean([one["safety"] for one in seeds], axis=0))
        accuracy = np.array([one["accuracy"] for one in seeds])
        assert loss == pytest.approx((accuracy[:, :1] - accuracy).mean(axis=0))
        assert loss[-1] > 0 and safety[-1] > safety[0]


def test_the_band_holds_what_was_measured(found: Curves) -> None:
    budgets = np.array([1.0, 5.0, 20.0])
    for method in TUNED:
        low, high = found.band(method, budgets)
        measured = found.summaries[method].safety[0]
        assert ((low <= measured) & (measured <= high)).all()
        assert (low < high).all()
        for place, budget in enumerate(budgets):
            column = found.summaries[method].safety[1:, place]
            assert (low[place], high[place]) == pytest.approx(tuple(np.percentile(column, [2.5, 97.5]))), budget


def test_the_figure_shows_points_bands_and_budgets(run: Any, found: Curves) -> None:
    drawn = figure.build("tradeoff", run.settings, run.folder)
    (axes,) = drawn.axes
    curved = [line for line in axes.lines if len(line.get_xdata()) == len(SCALES)]
    assert len(curved) == len(TUNED) == len(axes.collections)
    for line, method in zip(curved, TUNED, strict=True):
        loss, safety = found.at_scales(method)
        assert np.asarray(line.get_xdata()) == pytest.approx(loss)
        assert np.asarray(line.get_ydata()) == pytest.approx(safety)
    single = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in single] == pytest.approx([found.at_scales(name)[0][2] for name in TUNED])
    guides = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2]
    assert guides == [1, 5, 20]
    for line in single:  # a point out of sight would leave its mark in the legend without meaning
        assert axes.viewLim.contains(*line.get_xydata()[0])


def test_the_table_compares_with_safer_clip(run: Any, found: Curves) -> None:
    made = table.build("tradeoff", run.settings, run.folder)
    keys = [column.key for column in made.columns]
    rows = {row[0]: dict(zip(keys, row, strict=True)) for row in made.rows}
    assert list(rows) == ["Safe-CLIP", "SaFeR-CLIP"]
    other, reference = found.summaries["safe-clip"], found.summaries["safer-clip"]
    row = rows["Safe-CLIP"]
    assert row["area"].mean == pytest.approx(other.area[0])
    assert row["safety@5"].mean == pytest.approx(other.safety[0, 1])
    assert row["difference"].mean == pytest.approx(other.area[0] - reference.area[0])
    scales = [
        curves.scale_within(SCALES, np.array(one["accuracy"][0]) - one["accuracy"], np.array(one["safety"]), 5)
        for one in (shares(run, "safe-clip", seed) for seed in run.settings.runs["safe-clip"])
    ]
    assert row["scale@5"] == pytest.approx(np.mean(scales))
    # One test only, so that Holm's adjustment changes nothing.
    assert row["p"] == pytest.approx(statistics.p_value((other.area - reference.area)[1:]))
    assert row["effect"] == pytest.approx(statistics.effect_size(other.areas - reference.areas))
    assert [rows["SaFeR-CLIP"][key] for key in ("difference", "p", "effect")] == [None] * 3
    assert row["loss"].mean == pytest.approx(found.at_scales("safe-clip")[0][2])


def test_without_safer_clip_nothing_is_compared(run: Any) -> None:
    runs = {name: seeds for name, seeds in run.settings.runs.items() if name != "safer-clip"}
    made = table.build("tradeoff", run.settings.model_copy(update={"runs": runs}), run.folder)
    assert [column.key for column in made.columns][-1] == "scale@20"
    assert len(made.rows) == 1


def test_what_is_missing_is_named(run: Any, make_run: Any) -> None:
    settings = run.settings.model_copy(update={"tradeoff": None})
    with pytest.raises(ConfigError, match="budgets"):
        Curves.read(Results(run.folder, settings))
    other = make_run()
    shutil.rmtree(other.folder / "tradeoff" / "safe-clip")  # a method without a curve
    assert list(Curves.read(Results(other.folder, other.settings)).models) == ["safer-clip"]
    (other.folder / "tradeoff" / "safer-clip" / "seed-0" / curves.OUTCOMES).unlink()
    with pytest.raises(io.DataError, match=r"safer-clip/seed-0/outcomes\.parquet"):
        Curves.read(Results(other.folder, other.settings))
