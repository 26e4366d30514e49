rule base_model:
    """Fetch the model to fine-tune; a DVC artifact is pulled if it is not here yet."""
    input:
        given=model(DELIVERED) if SOURCE_KIND == "local-dir" else [],
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


if RUN.base_model_training:

    rule base_model_training:
        """Train the base model of the embedded world; on request only, where DVC delivers one."""
        input:
            code=modules("base_model.training"),
        output:
            model(DELIVERED),
            f"{DELIVERED}/steps.csv",
            f"{DELIVERED}/record.json",
        log:
            f"{DELIVERED}/training.log",
        benchmark:
            f"{DELIVERED}/training.tsv"
        conda:
            ENVIRONMENT
        threads: 2
        resources:
            mem_mb=3500,
            runtime=240,
            gpu=0,
        params:
            settings=settings("base_model_training"),
            # Outside the outputs, which Snakemake deletes when a job fails: an interrupted run goes on from here.
            state=lambda wildcards: f"results/state/base_model_training/{RUN.name}",
            folder=subpath(output[0], parent=True),
        shell:
            "saferclip base-model-training --settings {params.settings:q} --output {params.folder}"
            " --state {params.state} --threads {threads} 2> {log}"
