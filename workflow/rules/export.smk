rule export:
    """One tuned model for open_clip, transformers and diffusers, each proved equal, with a model card."""
    input:
        model=evaluated_model,
        evaluation=expand(
            f"{R}/evaluation/{{method}}/seed-{{seed}}/{{benchmark}}.json",
            benchmark=RUN.evaluation.benchmarks,
            allow_missing=True,
        ),
        baseline=[
            f"{R}/evaluation/clip/seed-{seed}/{benchmark}.json"
            for seed in RUN.seeds_of("clip")
            for benchmark in RUN.evaluation.benchmarks
        ],
        code=modules("export.export"),
    output:
        exported(f"{R}/export"),
    log:
        f"{LOGS}/export/{{method}}/seed-{{seed}}.log",
    benchmark:
        f"{LOGS}/export/{{method}}/seed-{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        settings=settings("export"),
        model=lambda wildcards, input: dirname(input.model[0]),
        evaluation=lambda wildcards, input: dirname(input.evaluation[0]),
        baseline=lambda wildcards, input: dirname(input.baseline[0]),
        folder=subpath(output[0], parent=True),
    shell:
        "saferclip export --settings {params.settings:q} --model {params.model} --evaluation {params.evaluation}"
        " --baseline {params.baseline} --output {params.folder} --threads {threads} 2> {log}"


rule exports:
    """Every model that the run trains or edits for other libraries; on request only."""
    input:
        [exported(f"{R}/export", method, seed) for method in (*TRAINED, *EDITED) for seed in RUN.seeds_of(method)],
