"""The cluster profile on a real SLURM: a tiny run through sbatch on a cluster of one node with fake GPUs.

What jobs asked for and got is read from the scheduler's own record. The cluster and the run are made once for this
file, so its tests belong on one worker: pytest --dist loadfile.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("snakemake_executor_plugin_slurm")

ROOT = Path(__file__).parents[2]
PROFILE = Path("workflow/profiles/slurm/profile.yaml")
CONFIG = "site"  # config/tiny.yaml with less of what is the same here: each job starts Snakemake twice
BENCHMARKS = ("test", "nsfw_caps", "zero_shot")
RUN = Path(f"results/{CONFIG}")
LONG = 20  # epochs of a training that is long enough to be interrupted
WAIT_SECONDS = 600
# All in which the test cluster differs from a real one: it has no accounting, and it is asked every second. The plugin
# would ask ever more rarely, and has no option for that.
TEST_CLUSTER = ("--slurm-status-command", "squeue", "--latency-wait", "10")
ASK_OFTEN = """
import sys

if "--workflow-profile" in sys.orig_argv:
    import asyncio
    from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

    RemoteExecutor.sleep = lambda self: asyncio.sleep(1)
"""
# Every way in which sites ask for a GPU: what the profile says, what the job's record says then, and how many it gets.
WAYS = {
    "counted": ({"gpu": 1}, {"TresPerJob": "gres:gpu:1"}, 1),
    "several": ({"gpu": 2}, {"TresPerJob": "gres:gpu:2"}, 2),
    "model": ({"gpu": 1, "gpu_model": "a100"}, {"TresPerJob": "gres:gpu:a100:1"}, 1),
    "gres": ({"gres": "gpu:1"}, {"TresPerNode": "gres:gpu:1"}, 1),
    "typed_gres": ({"gres": "gpu:a100:1"}, {"TresPerNode": "gres:gpu:a100:1"}, 1),
    "both": ({"gpu": 2, "gres": "gpu:2"}, {"TresPerJob": "gres:gpu:2", "TresPerNode": "gres:gpu:2"}, 2),
    "typed_both": (
        {"gpu": 2, "gpu_model": "a100", "gres": "gpu:a100:2"},
        {"TresPerJob": "gres:gpu:a100:2", "TresPerNode": "gres:gpu:a100:2"},
        2,
    ),
    "none": ({}, {}, 0),
}
# A workflow of small jobs under the same profile: each way of asking for GPUs, and a job that needs more memory than it
# asks for: 600 MB, while it takes 700 itself and Snakemake beside it.
TRIAL = """
WAYS = %(ways)s

rule all:
    input: [f"{way}.txt" for way in WAYS], "hungry.txt"

for way in WAYS:
    rule:
        name: way
        output: f"{way}.txt"
        resources: mem_mb=500, runtime=5, gpu=0
        shell: "echo ${{CUDA_VISIBLE_DEVICES:-none}} > {output}"

rule hungry:
    output: "hungry.txt"
    resources: runtime=5
    shell: "python -c 'import time; held = [0] * 90_000_000; time.sleep(4)' && touch {output}"
"""


@dataclass(frozen=True)
class Finished:
    """A run that has ended: its project, what Snakemake said, and SLURM's record of every job."""

    project: Any
    text: str
    jobs: list[dict[str, str]]

    def of(self, rule: str) -> list[dict[str, str]]:
        """The jobs of one rule."""
        return [job for job in self.jobs if rule_of(job) == rule]


def rule_of(job: dict[str, str]) -> str:
    """The rule or group that a job belongs to; the plugin writes it into the comment."""
    return job["Comment"].removeprefix("rule_").partition("_wildcards_")[0]


def is_group(job: dict[str, str]) -> bool:
    """Whether a job holds figures and tables rather than a step of its own."""
    return rule_of(job).startswith("products_")


def megabytes(text: str) -> float:
    """SLURM's way to write memory, such as 62.50G, in MB as SLURM counts them."""
    return float(text[:-1]) * {"M": 1, "G": 1024}[text[-1]]


def minutes(text: str) -> int:
    """SLURM's way to write a time limit, such as 1-00:00:00."""
    days, _, clock = text.rpartition("-")
    hours, minute, _ = map(int, clock.split(":"))
    return int(days or 0) * 1440 + hours * 60 + minute


def jobs_in(slurm: Any, folder: Path) -> list[dict[str, str]]:
    """The record of every job that was submitted from a folder."""
    return [job for job in slurm.jobs() if Path(job["WorkDir"]) == folder]


@pytest.fixture(scope="module")
def site(project_copy: Callable[[str], Any]) -> Any:
    """A project whose profile was changed for this site, as docs/cluster.md says: partitions, and fewer processors."""
    project = project_copy("cluster")
    project.smaller(CONFIG, {"evaluation.benchmarks": list(BENCHMARKS)})
    text = (project.folder / PROFILE).read_text()
    for before, after in (
        ("  # slurm_partition: cpu\n", "  slurm_partition: normal\n"),
        ("    <<: &gpu-job\n      gpu: 1\n", "    <<: &gpu-job\n      gpu: 1\n      slurm_partition: gpu\n"),
    ):
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    (project.folder / PROFILE).write_text(re.sub(r"^(  \w+): 8$", r"\1: 1", text, flags=re.MULTILINE))
    (project.folder / "src/sitecustomize.py").write_text(ASK_OFTEN)
    return project


@pytest.fixture(scope="module")
def trial(slurm: Any, site: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[Finished]]:
    """The workflow of small jobs, under way."""
    project = type(site)(tmp_path_factory.mktemp("trial"))
    (project.folder / "Snakefile").write_text(TRIAL % {"ways": list(WAYS)})
    (project.folder / "src").mkdir()
    (project.folder / "src/sitecustomize.py").write_text(ASK_OFTEN)
    profile = yaml.safe_load((site.folder / PROFILE).read_text())
    profile["set-resources"] = {way: wanted for way, (wanted, _, _) in WAYS.items() if wanted}
    profile["set-resources"]["hungry"] = {"mem_mb": "600 * attempt"}
    del profile["set-threads"]
    (project.folder / PROFILE).parent.mkdir(parents=True)
    (project.folder / PROFILE).write_text(yaml.safe_dump(profile))

    def run() -> Finished:
        text = project.run("snakemake", "--workflow-profile", str(PROFILE.parent), *TEST_CLUSTER).stdout
        return Finished(project, text, jobs_in(slurm, project.folder))

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(run)


@pytest.fixture(scope="module")
def finished(slurm: Any, site: Any, trial: Future[Finished]) -> Finished:
    """The whole workflow, called as a user calls it; beside it the workflow of small jobs."""
    assert trial  # both wait most of the time
    call = ("snakemake", "--workflow-profile", str(PROFILE.parent), "--configfile", f"config/{CONFIG}.yaml")
    text = site.run(*call, *TEST_CLUSTER).stdout
    return Finished(site, text, jobs_in(slurm, site.folder))


def test_every_step_is_a_job_but_the_local_ones(finished: Finished) -> None:
    stats = dict(re.findall(r"^([a-z]\w+) +(\d+)$", finished.text.partition("Job stats:")[2], re.MULTILINE))
    steps = Counter({name: int(count) for name, count in stats.items() if name != "total"})
    assert sum(steps.values()) == int(stats["total"]) > 20
    assert steps["evaluation"] == 2
    local = set(re.findall(r"^localrule (\w+):$", finished.text, re.MULTILINE))
    assert local == {"report", "all"}
    alone = Counter({name: count for name, count in steps.items() if name not in {*local, "figure", "table"}})
    assert Counter(rule_of(job) for job in finished.jobs if not is_group(job)) == alone
    assert {job["JobState"] for job in finished.jobs} == {"COMPLETED"}


def test_small_jobs_share_few_jobs(finished: Finished) -> None:
    """Six in each, one after the other: their times add up, their memory does not."""
    run = finished.project.folder / RUN
    made = {(folder, file.stem) for folder in ("figures", "tables") for file in (run / folder).iterdir()}
    assert len(made) > 12
    holding = [job for job in finished.jobs if is_group(job)]
    assert len(holding) == -(-len(made) // 6)
    assert {(job["MinMemoryNode"], job["CPUs/Task"], job["Partition"]) for job in holding} == {("2000M", "1", "normal")}
    assert sum(minutes(job["TimeLimit"]) for job in holding) == 10 * len(made)
    assert max(minutes(job["TimeLimit"]) for job in holding) == 60


STATED = """{
    rule.name: {
        "threads": rule.resources["_cores"].value,
        "runtime": rule.resources["runtime"].value,
        "mem_mb": rule.resources["mem_mb"].value,
        "gpu": rule.resources["gpu"].value if "gpu" in rule.resources else 0,
    }
    for rule in workflow.rules if not rule.norun
}"""


def test_jobs_get_what_profile_and_rules_ask_for(finished: Finished) -> None:
    """SLURM's record against the profile as YAML, and against the rules where the profile says nothing."""
    profile = yaml.safe_load((finished.project.folder / PROFILE).read_text())
    stated = finished.project.parsed(STATED, CONFIG)
    seen = set()
    for job in finished.jobs:
        if is_group(job):
            continue
        rule = rule_of(job)
        wanted = stated[rule] | profile["set-resources"][rule]
        partition = wanted.get("slurm_partition", profile["default-resources"]["slurm_partition"])
        memory = int(eval(str(wanted["mem_mb"]), {"attempt": 1}))
        threads = profile["set-threads"].get(rule, wanted["threads"])
        got = (
            job["Partition"],
            megabytes(job["MinMemoryNode"]),
            minutes(job["TimeLimit"]),
            int(job["CPUs/Task"]),
            job["JOB_GRES"],
        )
        gpus = f"gpu:a100:{wanted['gpu']}" if wanted["gpu"] else "(null)"
        assert got == (partition, memory, wanted["runtime"], threads, gpus), rule
        seen.add(rule)
    assert {"data", "base_model", "benchmark", "embedding", "mining", "training", "evaluation"} <= seen


def test_training_was_given_a_gpu(finished: Finished) -> None:
    """By SLURM's record. The GPU is fake, so on a machine without a real one the step computed on the CPU."""
    assert [job["JOB_GRES"] for job in finished.of("training")] == ["gpu:a100:1"]
    record = json.loads((finished.project.folder / RUN / "training/safer-clip/seed-0/record.json").read_text())
    assert record["device"] == "cpu" or torch.cuda.is_available()


def test_every_job_has_a_log_where_the_documentation_says(finished: Finished) -> None:
    logs = finished.project.folder / ".snakemake/slurm_logs"
    files = {Path(job["StdOut"]) for job in finished.jobs}
    assert files == set(logs.rglob("*.log"))
    assert len(files) == len(finished.jobs)
    for job in finished.jobs:
        assert Path(job["StdOut"]).name == f"{job['JobId']}.log"
        assert "Finished jobid" in Path(job["StdOut"]).read_text()
    assert (finished.project.folder / RUN / "logs/training/safer-clip/seed-0.log").is_file()


def test_a_job_killed_for_memory_is_tried_again_with_more(trial: Future[Finished]) -> None:
    first, second = sorted(trial.result().of("hungry"), key=lambda job: int(job["JobId"]))
    assert (first["JobState"], first["MinMemoryNode"]) == ("FAILED", "600M")
    assert "exceeded memory limit" in Path(first["StdOut"]).read_text()
    assert (second["JobState"], second["MinMemoryNode"]) == ("COMPLETED", "1200M")


@pytest.mark.parametrize("way", WAYS)
def test_gpus_are_asked_for_as_sites_differ(trial: Future[Finished], way: str) -> None:
    done = trial.result()
    _, recorded, count = WAYS[way]
    (job,) = done.of(way)
    assert {key: job[key] for key in ("TresPerJob", "TresPerNode") if key in job} == recorded
    assert job["JOB_GRES"] == (f"gpu:a100:{count}" if count else "(null)")
    devices = (done.project.folder / f"{way}.txt").read_text().strip()
    assert (0 if devices == "none" else len(set(devices.split(",")))) == count


def test_the_profile_knows_every_step() -> None:
    """In the text, since no run has all rules."""
    text = "\n".join(file.read_text() for file in sorted((ROOT / "workflow/rules").glob("*.smk")))
    rules = set(re.findall(r"^ *(?:rule|use rule \w+ as) (\w+)", text, re.MULTILINE))
    only_name_files = {"downloads", "exports", "figures_and_tables", "tradeoff_validation"}
    always_local = {"download", "benchmark_images", "report"}
    profile = yaml.safe_load((ROOT / PROFILE).read_text())
    assert rules - only_name_files - always_local == set(profile["set-resources"])


def test_memory_grows_with_every_attempt() -> None:
    """Each rule of the profile, and the default for any other."""
    profile = yaml.safe_load((ROOT / PROFILE).read_text())
    asked = [entry["mem_mb"] for entry in (profile["default-resources"], *profile["set-resources"].values())]
    assert len(asked) > 15
    for memory in asked:
        first, second, third = (eval(memory, {"attempt": attempt}) for attempt in (1, 2, 3))
        assert first < second < third, memory
    assert profile["retries"] == 2


def test_a_local_run_computes_the_same(finished: Finished, tmp_path: Path) -> None:
    """Without the cluster nothing is to be done; made anew here, one training and its evaluation are the same."""
    assert "Nothing to be done" in finished.project.snakemake(config=CONFIG)
    local = type(finished.project)(tmp_path / "local")
    shutil.copytree(finished.project.folder, local.folder, symlinks=True)
    training, evaluation = (Path(stage) / "safer-clip/seed-0" for stage in ("training", "evaluation"))
    for stage in (training, evaluation):
        shutil.rmtree(local.folder / RUN / stage)
    local.snakemake(str(RUN / evaluation / "test.json"), config=CONFIG)
    for file in (training / "adapter/adapter_model.safetensors", evaluation / "ranks.parquet"):
        assert (local.folder / RUN / file).read_bytes() == (finished.project.folder / RUN / file).read_bytes(), file
    for benchmark in BENCHMARKS:
        here, there = (
            json.loads((folder / RUN / evaluation / f"{benchmark}.json").read_text())
            for folder in (local.folder, finished.project.folder)
        )
        assert here["metrics"] == there["metrics"]


def test_an_interrupted_training_goes_on_from_its_state(slurm: Any, finished: Finished, tmp_path: Path) -> None:
    """One training is put back into the queue, as by preemption; another is told to end, as with a grace time."""
    project = type(finished.project)(tmp_path / "interrupted")
    shutil.copytree(finished.project.folder, project.folder, symlinks=True)
    project.variant("long", {"optimisation.epochs": LONG, "seeds": [0, 1]}, CONFIG)
    targets = [str(RUN / f"training/safer-clip/seed-{seed}/record.json") for seed in (0, 1)]
    logs = [project.folder / RUN / f"logs/training/safer-clip/seed-{seed}.log" for seed in (0, 1)]
    logs[0].unlink()  # of the run before
    call = ("snakemake", *targets, "--workflow-profile", str(PROFILE.parent), "--configfile", "config/long.yaml")
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(project.run, *call, *TEST_CLUSTER)
        for log in logs:
            wait_until(lambda log=log: "epoch 2:" in log.read_text() or run.done())
        requeued, ended = (job_of(slurm, project.folder, seed) for seed in (0, 1))
        slurm.run("scontrol", "requeue", requeued["JobId"])
        slurm.run("scancel", "--signal=TERM", ended["JobId"])
        text = run.result().stdout
    jobs = {job["JobId"]: job for job in jobs_in(slurm, project.folder)}
    again = jobs.pop(requeued["JobId"])
    assert (again["Restarts"], again["JobState"], again["MinMemoryNode"]) == ("1", "COMPLETED", "62.50G")
    assert [(job["JobState"], job["MinMemoryNode"]) for job in jobs.values()] == [
        ("FAILED", "62.50G"),
        ("COMPLETED", "125G"),
    ]
    assert "ended by SIGTERM after step" in text  # Snakemake shows the log of a job that failed
    for log in logs:
        said = log.read_text()
        assert "going on from" in said
        assert "epoch 1:" not in said
        assert f"epoch {LONG}:" in said


def job_of(slurm: Any, folder: Path, seed: int) -> dict[str, str]:
    """The job that trains with a seed."""
    comment = f"rule_training_wildcards_safer-clip_{seed}"
    (job,) = (job for job in jobs_in(slurm, folder) if job["Comment"] == comment)
    return job


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until something is so; a file that it reads may not be there yet."""
    for _ in range(WAIT_SECONDS * 10):
        with suppress(FileNotFoundError):
            if true():
                return
        time.sleep(0.1)
    pytest.fail(f"not so after {WAIT_SECONDS} s")
