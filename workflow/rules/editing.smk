rule edit:
    """A safer model computed from the base model's weights, without training."""
    input:
        model=rules.base_model.output,
        train=f"{R}/data/train.parquet",
        validation=f"{R}/data/validation.parquet",
        embeddings=rules.embedding.output.tensors,
        code=modules("editing.edit"),
    output:
        model=model(f"{R}/edit/{{method}}/seed-{{seed}}"),
        record=f"{R}/edit/{{method}}/seed-{{seed}}/record.json",
    log:
        f"{LOGS}/edit/{{method}}/seed-{{seed}}.log",
    benchmark:
        f"{LOGS}/edit/{{method}}/seed-{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=120,
        gpu=0,
    params:
        settings=settings("edit"),
        model=lambda wildcards, input: dirname(input.model[0]),
        folder=subpath(output.record, parent=True),
    shell:
        "saferclip edit --settings {params.settings:q} --base-model {params.model:q} --train {input.train:q}"
        " --validation {input.validation:q} --embeddings {input.embeddings:q} --output {params.folder:q}"
        " --threads {threads} 2> {log:q}"


use rule edit as edit_trial with:
    output:
        model=temp(model(EDIT_TRIAL)),
        record=f"{EDIT_TRIAL}/record.json",
    log:
        f"{LOGS}/edit_selection/{{method}}/{{candidate}}.log",
    benchmark:
        f"{LOGS}/edit_selection/{{method}}/{{candidate}}.tsv"
    params:
        settings=lambda wildcards: candidate_settings(wildcards.method, int(wildcards.candidate)),
        model=lambda wildcards, input: dirname(input.model[0]),
        folder=subpath(output.record, parent=True),


rule edit_selection:
    """Choose edits' settings by validation score; only on request. The choice belongs in the configuration."""
    input:
        records=[
            f"{EDIT_TRIAL}/record.json".format(method=method, candidate=candidate)
            for method in EDITED
            for candidate in range(len(RUN.edit_candidates(method)))
        ],
        code=modules("editing.selection"),
    output:
        CHOSEN_EDITS,
    log:
        f"{LOGS}/edit_selection.log",
    benchmark:
        f"{LOGS}/edit_selection.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        runs=lambda wildcards, input: [f"--run={'/'.join(Path(file).parts[-3:-1])}={file}" for file in input.records],
    shell:
        "saferclip edit-selection {params.runs:q} --output {output:q} 2> {log:q}"
