rule base_model:
    """Put the model to fine-tune into the run's folder, and check its activation.

    A DVC artifact is pulled if it is not here yet, a name on the hub is fetched: what may use a network stays on the
    login node, and so does the check then, a quarter of an hour for ViT-L/14 on two cores. A download keeps both apart.
    """
    input:
        given=model_files(RUN.base_model),
        downloads=lambda wildcards: needed("base_model"),
        code=modules("base_model.fetch"),
    output:
        model(f"{R}/base_model"),
    log:
        f"{LOGS}/base_model.log",
    benchmark:
        f"{LOGS}/base_model.tsv"
    priority: 1  # trainings wait for it
    localrule: RUN.base_model.kind in NETWORKED
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        mem_mb=2000,
        runtime=60,
        gpu=0,
    params:
        settings=settings("base_model"),
        version=delivered_version(),
        downloads=lambda wildcards: given("base_model"),
        cache=CACHE,
        folder=subpath(output[0], parent=True),
    shell:
        "saferclip base-model --settings {params.settings:q} {params.downloads} --cache {params.cache:q}"
        " --output {params.folder} --threads {threads} 2> {log}"


rule published_model:
    """Put a model that others have tuned beside the run's own; as base_model, which see."""
    input:
        given=lambda wildcards: model_files(RUN.published(wildcards.method)),
        downloads=lambda wildcards: needed("published_model", wildcards.method),
        code=modules("base_model.fetch"),
    output:
        model(f"{R}/published_model/{{method}}"),
    log:
        f"{LOGS}/published_model/{{method}}.log",
    benchmark:
        f"{LOGS}/published_model/{{method}}.tsv"
    localrule: any(RUN.published(method).kind in NETWORKED for method in PUBLISHED)
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        mem_mb=2000,
        runtime=60,
        gpu=0,
    params:
        settings=settings("published_model"),
        downloads=lambda wildcards: given("published_model", wildcards.method),
        cache=CACHE,
        folder=subpath(output[0], parent=True),
    shell:
        "saferclip published-model --settings {params.settings:q} --method {wildcards.method} {params.downloads}"
        " --cache {params.cache:q} --output {params.folder} --threads {threads} 2> {log}"


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
            "saferclip base-model-training --settings {params.settings:q} --output {params.folder:q}"
            " --state {params.state} --threads {threads} 2> {log:q}"
