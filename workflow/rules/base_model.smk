rule base_model:
    """Fetch the model to fine-tune. It never waits for base_model_training: the delivered weights are data."""
    input:
        given=delivered_model(),
        code=modules("base_model.fetch"),
    output:
        model(f"{R}/base_model"),
    log:
        f"{LOGS}/base_model.log",
    benchmark:
        f"{LOGS}/base_model.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        settings=settings("base_model"),
        version=delivered_version(),
        folder=subpath(output[0], parent=True),
    shell:
        "saferclip base-model --settings {params.settings:q} --output {params.folder} 2> {log}"


rule base_model_training:
    """Train the delivered base model anew; only on request, see docs/workflow.md for the cost."""
    input:
        code=modules("base_model.training"),
    output:
        model("results/iconworld-clip"),
        "results/iconworld-clip/steps.csv",
        "results/iconworld-clip/record.json",
    log:
        "results/iconworld-clip/training.log",
    benchmark:
        "results/iconworld-clip/training.tsv"
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        mem_mb=3500,
        runtime=240,
        gpu=0,
    params:
        settings=settings("base_model_training"),
        folder=subpath(output[0], parent=True),
    shell:
        "saferclip base-model-training --settings {params.settings:q} --output {params.folder}"
        " --threads {threads} 2> {log}"
