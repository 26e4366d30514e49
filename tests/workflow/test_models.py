"""Where models come from, in the plan: the network, published methods, and exports on request."""

from __future__ import annotations

from typing import Any

import pytest

PUBLISHED = {"weights": {"source": "download:safe-clip-published", "architecture": None}}
DOWNLOADS = {"table": "config/versions.csv", "folder": "downloads", "local": {}, "connections": 4, "retries": 5}


def test_a_published_model_is_fetched_and_evaluated_once_and_never_trained(finished: Any) -> None:
    changes = {"downloads": DOWNLOADS | {"local": {"safe-clip-published": "config"}}, "methods.published": PUBLISHED}
    plan = finished.plan("--forceall", config=finished.variant("published", changes))
    assert plan.of("published_model") == [{"method": "published"}]
    assert [job for job in plan.of("evaluation") if job["method"] == "published"] == [
        {"method": "published", "seed": "0"}
    ]
    assert {job["method"] for job in plan.of("training")} == {"safe-clip", "safer-clip"}
    evaluation = next(part for part in plan.text.split("\nrule ") if "wildcards: method=published" in part[:4000])
    assert "results/mini/published_model/published/open_clip_model.safetensors" in evaluation
    assert "--download safe-clip-published=config" in finished.snakemake(
        "--dry-run", "--printshellcmds", "--forceall", config="published"
    )


@pytest.mark.parametrize(
    ("source", "local"),
    [("download:vit-l-14-openai", False), ("local-dir:config", False), ("open_clip:ViT-L-14-quickgelu/openai", True)],
)
def test_only_a_step_that_uses_the_network_stays_on_the_login_node(finished: Any, source: str, local: bool) -> None:
    changes = {
        "downloads": DOWNLOADS | {"local": {"vit-l-14-openai": "config", "safe-clip-published": "config"}},
        "base_model.source": source,
        "methods.published": {"weights": {"source": source}},
    }
    config = finished.variant("sources", changes)
    found = set(finished.parsed("list(workflow._localrules)", config))
    assert {"base_model", "published_model"} & found == ({"base_model", "published_model"} if local else set())


def test_a_step_waits_for_its_download(finished: Any) -> None:
    changes = {"downloads": DOWNLOADS, "base_model.source": "download:safe-clip-published"}
    plan = finished.plan(config=finished.variant("waits", changes))
    assert plan.of("download") == [{"download": "safe-clip-published"}]
    assert "base_model" in plan.counts


def test_a_published_models_source_is_checked_like_any_setting(finished: Any) -> None:
    changes = {"methods.published": {"weights": {"source": "download:x", "architectur": "ViT-B-32"}}}
    text = finished.snakemake("--dry-run", config=finished.variant("wrong", changes), check=False)
    assert "methods.published.weights.architectur: unknown key; did you mean 'architecture'?" in text


def test_exports_are_made_on_request_for_every_trained_method_and_seed(finished: Any) -> None:
    assert "export" not in finished.plan("--forceall").counts
    found = {(job["method"], job["seed"]) for job in finished.plan("exports").of("export")}
    assert found == {(method, seed) for method in ("safe-clip", "safer-clip") for seed in "012"}
