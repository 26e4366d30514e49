rule evaluation:
    """Every benchmark for one model: numbers with intervals, ranks, and some embeddings to draw."""
    input:
        model=evaluated_model,
        base_model=rules.base_model.output,
        baseline=baseline,
        tables=sorted(set(TABLES.values())),
        descriptions=[f"{R}/test_sets/{file}" for file in set_files() if file.removesuffix(".json") in TABLES],
        variants=[f"{R}/robustness/variants.json"] if "robustness" in TABLES else [],
        code=modules("evaluation.evaluate"),
    output:
        records=expand(
            f"{R}/evaluation/{{{{method}}}}/seed-{{{{seed}}}}/{{benchmark}}.json", benchmark=RUN.evaluation.benchmarks
        ),
        ranks=f"{R}/evaluation/{{method}}/seed-{{seed}}/ranks.parquet",
        embeddings=f"{R}/evaluation/{{method}}/seed-{{seed}}/embeddings.safetensors",
    log:
        f"{LOGS}/evaluation/{{method}}/seed-{{seed}}.log",
    benchmark:
        f"{LOGS}/evaluation/{{method}}/seed-{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=240,
        gpu=0,
    params:
        settings=settings("evaluation"),
        files=[f"--file {name}={file}" for name, file in TABLES.items()],
        model=lambda wildcards, input: dirname(input.model[0]),
        base_model=lambda wildcards, input: dirname(input.base_model[0]),
        baseline=lambda wildcards, input: f"--baseline {dirname(input.baseline)}" if input.baseline else "",
        folder=subpath(output.ranks, parent=True),
    shell:
        "saferclip evaluation --settings {params.settings:q} --method {wildcards.method} --seed {wildcards.seed}"
        " --model {params.model} --base-model {params.base_model} {params.baseline} {params.files}"
        " --output {params.folder} --threads {threads} 2> {log}"
