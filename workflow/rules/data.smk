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
    """Large safe galleries with unsafe items in them, and zero-shot sets: drawn, or read from public ones."""
    input:
        downloads=lambda wildcards: needed("test_sets"),
        prompts=lambda wildcards: public_sets("files"),
        test=f"{R}/data/test.parquet" if public_sets("galleries") else [],
        code=modules("data.test_sets"),
    output:
        expand(f"{R}/test_sets/{{name}}", name=set_files()),
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
        downloads=lambda wildcards: given("test_sets"),
        test=lambda wildcards, input: f"--test {input.test}" if input.test else "",
        folder=subpath(output[0], parent=True),
    shell:
        "saferclip test-sets --settings {params.settings:q} {params.downloads} {params.test}"
        " --output {params.folder} 2> {log}"
