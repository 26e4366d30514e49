rule training:
    """Fine-tune by one method with one seed. One thread, so that two runs share two cores.

    With more than one GPU (`set-resources: training: gpu: 4` in a profile), torchrun starts a process for each.
    """
    input:
        model=rules.base_model.output,
        train=f"{R}/data/train.parquet",
        validation=f"{R}/data/validation.parquet",
        embeddings=rules.embedding.output.tensors,
        pixels=PIXELS,  # found beside the embeddings
        neighbours=mined,
        code=modules("training.train"),
    output:
        model=model(f"{R}/training/{{method}}/seed-{{seed}}"),
        adapter=expand(f"{R}/training/{{{{method}}}}/seed-{{{{seed}}}}/adapter/{{file}}", file=ADAPTER),
        steps=f"{R}/training/{{method}}/seed-{{seed}}/steps.csv",
        epochs=f"{R}/training/{{method}}/seed-{{seed}}/epochs.csv",
        record=f"{R}/training/{{method}}/seed-{{seed}}/record.json",
    log:
        f"{LOGS}/training/{{method}}/seed-{{seed}}.log",
    benchmark:
        f"{LOGS}/training/{{method}}/seed-{{seed}}.tsv"
    # The longest jobs, for which little waits: two cores stay busy longer if all else goes first.
    priority: -1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=720,
        gpu=0,
    params:
        settings=settings("training"),
        seed=lambda wildcards: wildcards.seed,
        # Outside the outputs, which Snakemake deletes when a job fails: an interrupted run goes on from here.
        state=lambda wildcards: f"{R}/state/training/{wildcards.method}/seed-{wildcards.seed}",
        model=lambda wildcards, input: dirname(input.model[0]),
        folder=subpath(output.record, parent=True),
    shell:
        "saferclip training --settings {params.settings:q} --seed {params.seed} --base-model {params.model:q}"
        " --train {input.train:q} --validation {input.validation:q} --embeddings {input.embeddings:q}"
        " --neighbours {input.neighbours:q} --output {params.folder:q} --state {params.state:q}"
        " --processes {resources.gpu} --threads {threads} 2> {log:q}"


use rule training as learning_rate_training with:
    output:
        model=temp(model(TRIAL)),
        adapter=temp(expand(f"{TRIAL}/adapter/{{file}}", file=ADAPTER, allow_missing=True)),
        steps=f"{TRIAL}/steps.csv",
        epochs=f"{TRIAL}/epochs.csv",
        record=f"{TRIAL}/record.json",
    log:
        f"{LOGS}/learning_rate_selection/{{method}}/{{rate}}.log",
    benchmark:
        f"{LOGS}/learning_rate_selection/{{method}}/{{rate}}.tsv"
    params:
        settings=lambda wildcards: trial_settings(wildcards.method, float(wildcards.rate)),
        seed=RUN.selection.seed,
        state=lambda wildcards: f"{R}/state/learning_rate_selection/{wildcards.method}/{wildcards.rate}",
        model=lambda wildcards, input: dirname(input.model[0]),
        folder=subpath(output.record, parent=True),


rule learning_rate_selection:
    """Choose learning rates by validation score; only on request. The choice belongs in the configuration."""
    input:
        epochs=expand(f"{TRIAL}/epochs.csv", method=TRAINED, rate=RUN.selection.learning_rates),
        code=modules("training.selection"),
    output:
        CHOSEN_RATES,
    log:
        f"{LOGS}/learning_rate_selection.log",
    benchmark:
        f"{LOGS}/learning_rate_selection.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        runs=lambda wildcards, input: [f"--run={'/'.join(Path(file).parts[-3:-1])}={file}" for file in input.epochs],
    shell:
        "saferclip learning-rate-selection {params.runs:q} --output {output:q} 2> {log:q}"


rule learning_rates:
    """Put the delivered choice of learning rates where the report finds it.

    Its text is a parameter, not an input: learning_rate_selection must stay out of the default run.
    """
    output:
        f"{R}/learning_rate_selection/selection.csv",
    log:
        f"{LOGS}/learning_rates.log",
    benchmark:
        f"{LOGS}/learning_rates.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=100,
        runtime=5,
    params:
        chosen=lambda wildcards: Path(CHOSEN_RATES).read_text(),
    shell:
        "printf %s {params.chosen:q} > {output:q}.partial 2> {log:q} && mv {output:q}.partial {output:q}"
