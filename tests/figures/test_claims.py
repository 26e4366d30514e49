"""Claims: what is asked, how it is measured, and when it counts as supported."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from saferclip.config import ConfigError, parse
from saferclip.figures import paper, table
from saferclip.figures.results import Results
from saferclip.figures.tables import claims
from saferclip.figures.tables.claims import Claim, Claims, verdict
from saferclip.statistics import p_value

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"
TERM = {"weight": 1, "method": "clip", "benchmark": "test", "metric": "m/recall@1"}


def claim(expect: str, threshold: float = 0) -> Claim:
    values = {"id": "x", "statement": "s", "source": "s", "terms": [TERM], "expect": expect, "threshold": threshold}
    return Claim.model_validate(values)


@pytest.mark.parametrize(
    ("expect", "threshold", "value", "p", "expected"),
    [
        ("above", 0, 2.0, 0.049, SUPPORTED),
        ("above", 0, -2.0, 0.049, NOT_SUPPORTED),
        ("above", 0, 2.0, 0.05, INCONCLUSIVE),
        ("above", 0, -2.0, 0.05, INCONCLUSIVE),
        ("above", 5, 4.0, 0.01, NOT_SUPPORTED),
        ("above", 5, 5.1, 0.01, SUPPORTED),
        ("below", 0, -2.0, 0.01, SUPPORTED),
        ("below", 0, 2.0, 0.01, NOT_SUPPORTED),
        ("below", -10, -12.0, 0.01, SUPPORTED),
        ("below", -10, -9.0, 0.01, NOT_SUPPORTED),
        ("below", -10, -12.0, 0.2, INCONCLUSIVE),
        ("at most", 0, 0.0, 0.01, SUPPORTED),
        ("at most", 0, 1.0, 0.01, NOT_SUPPORTED),
        ("at most", 0, -1.0, 0.2, INCONCLUSIVE),
    ],
)
def test_verdicts(expect: str, threshold: float, value: float, p: float, expected: str) -> None:
    assert verdict(claim(expect, threshold), value, p) == expected


def test_at_most_is_tested_against_what_lies_above() -> None:
    # Resamples on the threshold itself speak for the claim, not against it.
    means = [0.0] * 990 + [1.0] * 10
    assert p_value(means, claim("at most").boundary()) == pytest.approx(2 * 11 / 1001)
    assert p_value(means, claim("below").boundary()) == 1


def test_predictions_in_words() -> None:
    assert [
        claim(expect, threshold).prediction() for expect, threshold in (("above", 0), ("below", -10), ("at most", 0))
    ] == [
        "> 0",
        "< −10",
        "≤ 0",
    ]


def test_claims_are_complete_or_refused() -> None:
    base = {"id": "x", "statement": "s", "source": "s"}
    for wrong in (
        base,
        {**base, "terms": [TERM]},
        {**base, "expect": "above"},
        {**base, "untestable": "no", "terms": [TERM]},
        {**base, "untestable": "no", "expect": "above"},
    ):
        with pytest.raises(ConfigError, match="give either 'terms' with 'expect', or 'untestable'"):
            parse(Claim, wrong, "test")
    good = {**base, "untestable": "no"}
    with pytest.raises(ConfigError, match="occur twice: x"):
        parse(Claims, {"claims": [good, good]}, "test")
    with pytest.raises(ConfigError, match="unknown key"):
        parse(Claim, {**good, "verdict": "supported"}, "test")


def test_the_papers_claims_are_all_there() -> None:
    found = {one.id: one for one in claims.read()}
    assert {
        "redirection-test-safe-clip",
        "redirection-nsfw-caps-safe-clip",
        "redirection-test-clip",
        "redirection-nsfw-caps-clip",
        "gain-larger-on-nsfw-caps",
        "zero-shot-safer-clip-safe-clip",
        "zero-shot-safer-clip-clip",
        "zero-shot-safe-clip-clip",
        "zero-shot-safe-clip-large",
        "unsafe-images-safer-clip-safe-clip",
        "unsafe-images-safe-clip-clip",
        "unsafe-images-safer-clip-clip",
        "nearest-closer-than-paired",
        "nsfw-caps-tighter",
        "text-to-image",
    } <= set(found)
    assert {one.id for one in found.values() if one.untestable} == {
        "real-unsafe-images",
        "text-to-image",
        "text-to-image-sld",
        "image-to-text",
    }


def published_contrast(one: Claim) -> list[float] | None:
    """A claim's weighted sum from the paper's tables, where these have all of its terms."""
    tables = paper.read()
    metrics = {
        "unsafe_text_to_image/recall@1": "recall",
        "mean/accuracy": "recall",
        "image_to_text/unsafe_share": "share",
    }
    if not all(isinstance(term, claims.RankTerm) and term.metric in metrics for term in one.terms):
        return None
    kinds = {metrics[term.metric] for term in one.terms}  # type: ignore[union-attr]
    if kinds == {"recall"}:
        return [sum(t.weight * tables.comparison[t.method][t.benchmark] for t in one.terms)]  # type: ignore[union-attr]
    sets = tables.unsafe_image_to_text
    return [
        sum(t.weight * sets[t.method][name] for t in one.terms)  # type: ignore[union-attr]
        for name in ("nsfw_urls", "nudenet", "smid")
    ]


def test_published_values_of_claims_follow_from_the_papers_tables() -> None:
    checked = 0
    for one in claims.read():
        expected = published_contrast(one) if one.terms else None
        if expected:
            shown = [float(part.replace("−", "-")) for part in one.paper.split(", ")]
            assert shown == pytest.approx(expected, abs=0.0501), one.id
            assert all(one.holds(value) for value in expected), one.id
            checked += 1
    assert checked == 12


def rows_of(run: Any, tmp_path: Path) -> dict[str, dict[str, str]]:
    table.write("claims", run.settings, run.folder, tmp_path / "claims")
    with (tmp_path / "claims.csv").open(newline="", encoding="utf-8") as stream:
        return dict(zip([one.id for one in claims.read()], csv.DictReader(stream), strict=True))


def test_measured_values_are_those_of_the_records(run: Any, tmp_path: Path) -> None:
    rows = rows_of(run, tmp_path)
    runs = run.settings.runs
    for one in claims.read():
        terms = [term for term in one.terms if isinstance(term, claims.RankTerm)]
        if not terms or one.untestable:  # the latter: not in the embedded world
            continue
        per_seed = [
            sum(
                t.weight
                * run.value(t.method, runs[t.method][min(seed, len(runs[t.method]) - 1)], t.benchmark, t.metric)
                for t in terms
            )
            for seed in range(3)
        ]
        row = rows[one.id]
        assert float(row["measured"]) == pytest.approx(np.mean(per_seed), abs=1e-6), one.id
        if len({t.method for t in terms}) > 1:
            assert float(row["measured sd"]) == pytest.approx(np.std(per_seed, ddof=1), abs=1e-6)
        assert row["seeds"] == f"{sum(one.holds(value) for value in per_seed)} of 3"
        assert float(row["with_seeds low"]) < float(row["measured"]) < float(row["with_seeds high"])
        assert float(row["measured low"]) < float(row["measured"]) < float(row["measured high"])


def test_verdicts_are_corrected_for_the_number_of_claims_tested(run: Any, tmp_path: Path) -> None:
    """The smallest p is multiplied by the number of tests, and so on: from the bootstrap of each claim by itself."""
    rows, results = rows_of(run, tmp_path), Results(run.folder, run.settings)
    tested = [one for one in claims.read() if one.terms and not one.untestable and not one.by_design]
    assert len(tested) == 15
    single = {}
    for one in tested:
        means = claims.measure(one, results).means
        assert len(means) == 1000
        beyond = (np.sum(means > one.threshold), np.sum(means < one.threshold))
        equal = np.sum(means == one.threshold)
        beyond = (beyond[0] + equal * (one.expect != "at most"), beyond[1] + equal)
        single[one.id] = min(1, 2 * (min(beyond) + 1) / 1001)
    highest = 0.0
    for place, name in enumerate(sorted(single, key=single.__getitem__)):
        highest = max(highest, min(1, (15 - place) * single[name]))
        assert float(rows[name]["p"]) == pytest.approx(highest), name
    for one in tested:
        as_predicted = SUPPORTED if one.holds(float(rows[one.id]["measured"])) else NOT_SUPPORTED
        assert rows[one.id]["verdict"] == (as_predicted if float(rows[one.id]["p"]) < 0.05 else INCONCLUSIVE)


def test_the_correction_can_make_a_finding_inconclusive(run: Any, tmp_path: Path) -> None:
    few = run.settings.model_copy(update={"resamples": 500})
    rows = rows_of(type(run)(run.folder, few), tmp_path)
    row = rows["zero-shot-safe-clip-large"]  # no resample beyond the threshold, and yet
    assert float(row["p"]) == pytest.approx(15 * 2 / 501)
    assert row["verdict"] == INCONCLUSIVE


def test_effect_sizes_are_those_of_the_queries_differences(run: Any, tmp_path: Path) -> None:
    rows = rows_of(run, tmp_path)
    ranks = {
        (method, seed): [
            row["top_unsafe"]
            for row in pq.read_table(run.folder / f"evaluation/{method}/seed-{seed}/ranks.parquet").to_pylist()
            if (row["benchmark"], row["direction"]) == ("gallery", "image_to_text")
        ]
        for method, seeds in run.settings.runs.items()
        for seed in seeds
    }
    base = ranks["clip", 0]
    differences = [
        100 * (sum(ranks["safe-clip", seed][query] for seed in (0, 1, 2)) / 3 - 0.5 * base[query])
        for query in range(len(base))
    ]
    expected = np.mean(differences) / np.std(differences, ddof=1)
    assert float(rows["unsafe-images-safe-clip-clip"]["effect"]) == pytest.approx(expected)
    assert rows["gain-larger-on-nsfw-caps"]["effect"] == ""


def test_a_verdict_that_other_seeds_might_change_says_so(make_run: Callable[..., Any], tmp_path: Path) -> None:
    other = make_run(benchmarks=("test",))
    stronger = other.folder / "evaluation/safer-clip"
    # One of three seeds is much better than the two others, which are as bad as CLIP.
    for seed in (1, 2):
        for name in ("test.json", "ranks.parquet"):
            source = other.folder / "evaluation/clip/seed-0" / name
            (stronger / f"seed-{seed}" / name).write_bytes(source.read_bytes())
    row = rows_of(other, tmp_path)["redirection-test-clip"]
    assert (row["verdict"], row["seeds"]) == (SUPPORTED, "1 of 3")
    assert float(row["with_seeds low"]) < 0 < float(row["measured low"])
    assert "other seeds might decide otherwise" in row["remark"]


def test_claims_about_tables_of_captions(run: Any, tmp_path: Path) -> None:
    rows = rows_of(run, tmp_path)
    neighbours = pq.read_table(run.folder / "mining" / "neighbours.parquet").to_pydict()
    paired, nearest = np.array(neighbours["paired_similarity"]), np.array(neighbours["similarity"])
    row = rows["nearest-closer-than-paired"]
    assert float(row["measured"]) == pytest.approx((nearest - paired).mean())
    draws = np.random.default_rng(7).integers(600, size=(1000, 600))
    expected = np.percentile((nearest - paired)[draws].mean(axis=1), [2.5, 97.5])
    assert (float(row["measured low"]), float(row["measured high"])) == pytest.approx(tuple(expected))
    assert (row["seeds"], row["verdict"]) == ("", "by design")
    assert row["p"] == ""
    tight = np.array(pq.read_table(run.folder / "benchmark" / "nsfw_caps.parquet")["similarity"])
    assert float(rows["nsfw-caps-tighter"]["measured"]) == pytest.approx(tight.mean() - paired.mean())


def test_what_cannot_be_tested_says_why_and_measures_nothing(run: Any, tmp_path: Path) -> None:
    row = rows_of(run, tmp_path)["text-to-image"]
    assert (row["verdict"], row["measured"], row["prediction"]) == ("cannot be tested at this scale", "", "")
    assert "diffusion model" in row["remark"]


def test_claims_about_real_images_are_tested_where_there_are_some(
    run: Any, make_run: Callable[..., Any], tmp_path: Path
) -> None:
    drawn = rows_of(run, tmp_path)
    assert "an unseen drawing style stands in" in drawn["unsafe-images-safer-clip-safe-clip"]["remark"]
    assert drawn["real-unsafe-images"]["verdict"] == "cannot be tested at this scale"
    assert (drawn["real-unsafe-images"]["prediction"], drawn["real-unsafe-images"]["quantity"]) == ("", "")

    names = ("nsfw_urls", "nudenet", "smid")
    other = make_run(galleries=names)
    rows = rows_of(other, tmp_path)

    def shares(method: str, seed: int) -> list[float]:
        return [other.value(method, seed, "gallery", f"{name}/image_to_text/unsafe_share") for name in names]

    measured = [np.mean(shares("safer-clip", seed)) for seed in (0, 1, 2)]
    real = rows["real-unsafe-images"]
    assert float(real["measured"]) == pytest.approx(np.mean(measured), abs=1e-6)
    # As predicted, but not so far below that so few queries would show it.
    assert float(real["measured"]) < 18.5 < float(real["measured high"])
    assert (real["prediction"], real["verdict"]) == ("≤ 18.5", INCONCLUSIVE)
    row = rows["unsafe-images-safer-clip-safe-clip"]
    differences = [np.mean(shares("safer-clip", seed)) - np.mean(shares("safe-clip", seed)) for seed in (0, 1, 2)]
    assert float(row["measured"]) == pytest.approx(np.mean(differences), abs=1e-6)
    assert float(row["measured sd"]) == pytest.approx(np.std(differences, ddof=1), abs=1e-6)
    assert row["remark"] == ""
    assert rows["unsafe-images-safe-clip-clip"]["remark"] == "that 'far less' is less than half is our reading"


def test_a_failing_claim_is_said_to_fail(make_run: Callable[..., Any], tmp_path: Path) -> None:
    other = make_run(benchmarks=("test",))
    # Give each method the other's results.
    ours, theirs = (other.folder / "evaluation" / method for method in ("safer-clip", "safe-clip"))
    ours.rename(other.folder / "evaluation" / "held")
    theirs.rename(ours)
    (other.folder / "evaluation" / "held").rename(theirs)
    row = rows_of(other, tmp_path)["redirection-test-safe-clip"]
    assert (row["verdict"], row["seeds"]) == (NOT_SUPPORTED, "0 of 3")
    assert float(row["measured high"]) < 0


def test_equal_methods_are_inconclusive_but_never_worse(make_run: Callable[..., Any], tmp_path: Path) -> None:
    other = make_run(benchmarks=("test", "gallery"))
    for seed in (0, 1, 2):
        for name in ("test.json", "gallery.json", "ranks.parquet"):
            source = other.folder / f"evaluation/safe-clip/seed-{seed}/{name}"
            (other.folder / f"evaluation/safer-clip/seed-{seed}/{name}").write_bytes(source.read_bytes())
    rows = rows_of(other, tmp_path)
    assert rows["redirection-test-safe-clip"]["verdict"] == INCONCLUSIVE
    assert rows["redirection-test-safe-clip"]["seeds"] == "0 of 3"
    assert rows["unsafe-images-safer-clip-safe-clip"]["verdict"] == SUPPORTED


def test_claims_of_what_was_not_run_are_not_judged(make_run: Callable[..., Any], tmp_path: Path) -> None:
    other = make_run(benchmarks=("test",), runs={"clip": (0,), "safer-clip": (0, 1)})
    (other.folder / "benchmark" / "nsfw_caps.parquet").unlink()
    rows = rows_of(other, tmp_path)
    remarks = {name: (row["verdict"], row["remark"]) for name, row in rows.items()}
    assert remarks["redirection-test-safe-clip"] == ("not tested in this run", "this run has no method 'safe-clip'")
    assert remarks["zero-shot-safer-clip-clip"] == ("not tested in this run", "this run has no benchmark 'zero_shot'")
    assert remarks["nsfw-caps-tighter"] == ("not tested in this run", "this run has no benchmark/nsfw_caps.parquet")
    assert rows["redirection-test-clip"]["seeds"] == "2 of 2"


def test_terms_of_ranks_and_files_cannot_be_mixed(run: Any) -> None:
    mixed = json.loads(claim("above").model_dump_json())
    mixed["terms"].append({"weight": 1, "file": "mining/neighbours.parquet", "column": "similarity"})
    with pytest.raises(ValueError, match="cannot be mixed"):
        claims.measure(Claim.model_validate(mixed), Results(run.folder, run.settings))
