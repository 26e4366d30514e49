MADE = RUN.data.visu.unsafe_images if RUN.data.source == "visu" else None
SHARDS = range(MADE.shards) if MADE else []


if MADE:

    rule unsafe_images:
        """ViSU's unsafe images, which are withheld: painted anew, judged, and kept if flagged. A shard for each job."""
        input:
            downloads=needed("unsafe_images"),
            # Alone of all steps: an edit of shared code does not paint for hundreds of GPU hours anew; --forcerun does.
            code=ancient(modules("data.unsafe_images")),
        output:
            table=f"{R}/unsafe_images/{{shard}}.parquet",
            summary=f"{R}/unsafe_images/{{shard}}.json",
        log:
            f"{LOGS}/unsafe_images/{{shard}}.log",
        benchmark:
            f"{LOGS}/unsafe_images/{{shard}}.tsv"
        wildcard_constraints:
            shard=r"\d+",
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=16000,
            runtime=1440,
            gpu=0,
        params:
            settings=settings("unsafe_images"),
            downloads=lambda wildcards: given("unsafe_images"),
            # Outside the outputs, which Snakemake deletes when a job fails: an interrupted run goes on from here.
            state=lambda wildcards: f"{R}/state/unsafe_images/{wildcards.shard}",
            folder=subpath(output.table, parent=True),
        shell:
            "saferclip unsafe-images --settings {params.settings:q} {params.downloads} --shard {wildcards.shard}"
            " --output {params.folder} --state {params.state} --threads {threads} 2> {log}"


rule data:
    """Quadruples of safe and unsafe captions and images, in three splits."""
    input:
        tables=[str(getattr(RUN.data.local, split)) for split in SPLITS] if RUN.data.source == "local" else [],
        downloads=lambda wildcards: needed("data"),
        unsafe_images=[f"{R}/unsafe_images/{shard}.parquet" for shard in SHARDS],
        code=modules("data.build"),
    output:
        expand(f"{R}/data/{{split}}.parquet", split=SPLITS),
        [f"{R}/data/summary.json"] if RUN.data.source == "visu" else [],
    log:
        f"{LOGS}/data.log",
    benchmark:
        f"{LOGS}/data.tsv"
    priority: 1  # trainings wait for it
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        settings=settings("data"),
        downloads=lambda wildcards: given("data"),
        unsafe_images=lambda wildcards, input: [f"--unsafe-images {file}" for file in input.unsafe_images],
        folder=subpath(output[0], parent=True),
    shell:
        "saferclip data --settings {params.settings:q} {params.downloads} {params.unsafe_images}"
        " --output {params.folder} 2> {log}"


rule test_sets:
    """Large safe galleries with unsafe items in them, zero-shot sets and probes: drawn, or read from public ones."""
    input:
        downloads=lambda wildcards: needed("test_sets"),
        prompts=lambda wildcards: public_sets("files"),
        test=f"{R}/data/test.parquet" if public_sets("galleries") else [],
        code=modules("data.test_sets"),
    output:
        expand(f"{R}/test_sets/{{name}}", name=set_files()),
    log:
        f"{LOGS}/test_sets.log",
    benchmark:
        f"{LOGS}/test_sets.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=3000,
        runtime=240,
    params:
        settings=settings("test_sets"),
        downloads=lambda wildcards: given("test_sets"),
        test=lambda wildcards, input: f"--test {input.test}" if input.test else "",
        folder=subpath(output[0], parent=True),
    shell:
        "saferclip test-sets --settings {params.settings:q} {params.downloads} {params.test}"
        " --output {params.folder} 2> {log}"


if "robustness" in RUN.evaluation.benchmarks:

    rule robustness:
        """Unsafe test inputs in other words and styles, and safe ones that are near to unsafe."""
        input:
            test=f"{R}/data/test.parquet",
            code=modules("data.robustness.build"),
        output:
            f"{R}/robustness/variants.parquet",
            f"{R}/robustness/variants.json",
        log:
            f"{LOGS}/robustness.log",
        benchmark:
            f"{LOGS}/robustness.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=2000,
            runtime=60,
        params:
            settings=settings("robustness"),
            folder=subpath(output[0], parent=True),
        shell:
            "saferclip robustness --settings {params.settings:q} --test {input.test} --output {params.folder} 2> {log}"
