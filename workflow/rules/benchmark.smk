# What the benchmark reads depends on where it comes from.
NSFW_CAPS = RUN.benchmark.source if RUN.benchmark else None
SAFE_IMAGES = [f"{R}/benchmark_images/manifest.json"] if NSFW_CAPS in ("release", "nocaps") else []
COMPARING_MODEL = model(f"{R}/base_model") if RUN.benchmark and RUN.benchmark.similarity == "base-model" else []


rule benchmark:
    """NSFW-Caps: minimal edits of safe captions, images drawn from them, and what the filters kept."""
    input:
        downloads=lambda wildcards: needed("benchmark"),
        images=SAFE_IMAGES,
        model=COMPARING_MODEL,
        train=f"{R}/data/train.parquet",
        code=modules("benchmark.build"),
        # Beside no module, as each version is a folder.
        prompts=sorted(map(str, Path("src/saferclip/benchmark/prompts").glob("*/*.*"))),
    output:
        table=f"{R}/benchmark/nsfw_caps.parquet",
        datasheet=f"{R}/benchmark/datasheet.json",
        readable=f"{R}/benchmark/DATASHEET.md",
    log:
        f"{LOGS}/benchmark.log",
    benchmark:
        f"{LOGS}/benchmark.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2500,
        runtime=120,
        gpu=0,
    params:
        settings=settings("benchmark"),
        downloads=lambda wildcards: given("benchmark"),
        detail=lambda wildcards: ["--detail", RUN.settings_of("scene_detail")] if NSFW_CAPS == "embedded" else [],
        images=[f"--images {file}" for file in SAFE_IMAGES],
        model=[f"--base-model {dirname(file)}" for file in COMPARING_MODEL[:1]],
        data=subpath(input.train, parent=True),
        # Outside the outputs, which Snakemake deletes when a job fails: answers and images are not made twice.
        state=lambda wildcards: f"{R}/state/benchmark",
        folder=subpath(output.table, parent=True),
    shell:
        "saferclip benchmark --settings {params.settings:q} {params.detail:q} {params.model} {params.images}"
        " {params.downloads} --data {params.data} --output {params.folder} --state {params.state} --threads {threads} 2> {log}"


if SAFE_IMAGES:

    rule benchmark_images:
        """Fetch the safe images of NSFW-Caps by their addresses; with `download`, all that needs a network."""
        input:
            downloads=lambda wildcards: needed("benchmark_images"),
            code=modules("benchmark.images"),
        output:
            # The list alone: Snakemake deletes the outputs of a failed job, and half of the images are worth keeping.
            f"{R}/benchmark_images/manifest.json",
        log:
            f"{LOGS}/benchmark_images.log",
        benchmark:
            f"{LOGS}/benchmark_images.tsv"
        localrule: True
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=1000,
            runtime=720,
        params:
            settings=settings("benchmark_images"),
            downloads=lambda wildcards: given("benchmark_images"),
            connections=lambda wildcards: RUN.downloads.connections,
            retries=lambda wildcards: RUN.downloads.retries,
            folder=subpath(output[0], parent=True),
        shell:
            "saferclip benchmark-images --settings {params.settings:q} {params.downloads}"
            " --connections {params.connections} --retries {params.retries} --output {params.folder} 2> {log}"
