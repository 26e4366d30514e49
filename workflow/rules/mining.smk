rule embedding:
    """Embed every quadruple with the frozen model, once: mining and training read these.

    Images are decoded here anyway; where training reads them from a file, it is written on the way.
    """
    input:
        model=rules.base_model.output,
        train=f"{R}/data/train.parquet",
        validation=f"{R}/data/validation.parquet",
        code=modules("mining.embedding"),
    output:
        tensors=f"{R}/embedding/frozen.safetensors",
        summary=f"{R}/embedding/summary.json",
        pixels=PIXELS,
    log:
        f"{LOGS}/embedding.log",
    benchmark:
        f"{LOGS}/embedding.tsv"
    priority: 1  # trainings wait for it
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        mem_mb=2500,
        runtime=240,
        gpu=0,
    params:
        settings=settings("embedding"),
        model=lambda wildcards, input: dirname(input.model[0]),
        folder=subpath(output[0], parent=True),
    shell:
        "saferclip embedding --settings {params.settings:q} --base-model {params.model} --train {input.train}"
        " --validation {input.validation} --output {params.folder} --threads {threads} 2> {log}"


rule mining:
    """The nearest safe caption of each unsafe one, over the whole training split."""
    input:
        train=f"{R}/data/train.parquet",
        embeddings=rules.embedding.output.tensors,
        code=modules("mining.nearest"),
    output:
        neighbours=f"{R}/mining/neighbours.parquet",
        summary=f"{R}/mining/summary.json",
    log:
        f"{LOGS}/mining.log",
    benchmark:
        f"{LOGS}/mining.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2500,
        runtime=120,
        gpu=0,
    params:
        settings=settings("mining"),
        folder=subpath(output.summary, parent=True),
    shell:
        "saferclip mining --settings {params.settings:q} --train {input.train} --embeddings {input.embeddings}"
        " --output {params.folder} --threads {threads} 2> {log}"


if RUN.target_rules:

    rule targets:
        """The targets of unsafe inputs by a rule of one's own, where a method asks for one."""
        input:
            train=f"{R}/data/train.parquet",
            embeddings=rules.embedding.output.tensors,
            code=modules("mining.targets"),
        output:
            neighbours=f"{R}/targets/{{targets}}/neighbours.parquet",
            summary=f"{R}/targets/{{targets}}/summary.json",
        log:
            f"{LOGS}/targets/{{targets}}.log",
        benchmark:
            f"{LOGS}/targets/{{targets}}.tsv"
        wildcard_constraints:
            targets="|".join(map(re.escape, RUN.target_rules)),
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=2500,
            runtime=120,
            gpu=0,
        params:
            settings=lambda wildcards: RUN.settings_of("targets", RUN.target_rules[wildcards.targets]),
            folder=subpath(output.summary, parent=True),
        shell:
            "saferclip targets --settings {params.settings:q} --train {input.train} --embeddings {input.embeddings}"
            " --output {params.folder} --threads {threads} 2> {log}"
