rule data:
    """Quadruples of safe and unsafe captions and images, in three splits."""
    input:
        tables=[str(getattr(RUN.data.local, split)) for split in SPLITS] if RUN.data.local else [],
        code=modules("data.build"),
    output:
        expand(f"{R}/data/{{split}}.parquet", split=SPLITS),
    log:
        f"{LOGS}/data.log",
    benchmark:
        f"{LOGS}/data.tsv"
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        settings=settings("data"),
        folder=subpath(output[0], parent=True),
    shell:
        "saferclip data --settings {params.settings:q} --output {params.folder} 2> {log}"


rule test_sets:
    """The large safe gallery with unsafe items in it, and the zero-shot sets, of the embedded world."""
    input:
        code=modules("data.test_sets"),
    output:
        expand(f"{R}/test_sets/{{name}}", name=["gallery.parquet", "zero_shot.parquet", "zero_shot.json"]),
    log:
        f"{LOGS}/test_sets.log",
    benchmark:
        f"{LOGS}/test_sets.tsv"
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        settings=settings("test_sets"),
        folder=subpath(output[0], parent=True),
    shell:
        "saferclip test-sets --settings {params.settings:q} --output {params.folder} 2> {log}"
