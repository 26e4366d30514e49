rule benchmark:
    """NSFW-Caps: minimal edits of safe captions, images drawn from them, and what the filters kept."""
    input:
        model=rules.base_model.output,
        train=f"{R}/data/train.parquet",
        code=modules("benchmark.build"),
    output:
        table=f"{R}/benchmark/nsfw_caps.parquet",
        datasheet=f"{R}/benchmark/datasheet.json",
    log:
        f"{LOGS}/benchmark.log",
    benchmark:
        f"{LOGS}/benchmark.tsv"
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        mem_mb=2500,
        runtime=120,
        gpu=0,
    params:
        settings=settings("benchmark"),
        detail=settings("scene_detail"),
        model=lambda wildcards, input: dirname(input.model[0]),
        data=subpath(input.train, parent=True),
        folder=subpath(output.table, parent=True),
    shell:
        "saferclip benchmark --settings {params.settings:q} --detail {params.detail:q} --base-model {params.model}"
        " --data {params.data} --output {params.folder} --threads {threads} 2> {log}"
