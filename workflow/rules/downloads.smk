rule downloads:
    """All that this run fetches, and nothing else: where only the login node has a network, ask for this first."""
    input:
        [str(path) + ".json" for path in fetched().values()],
        images=lambda wildcards: SAFE_IMAGES,


if RUN.downloads:

    rule download:
        """Fetch one row of the table of downloads. The only rule that needs a network, so it stays on the login node."""
        input:
            code=modules("downloads.fetch"),
        output:
            # The manifest alone: Snakemake deletes the outputs of a failed job, and half a download is worth keeping.
            f"{RUN.downloads.folder}/{{download}}.json",
        log:
            f"{RUN.downloads.folder}/logs/{{download}}.log",
        benchmark:
            f"{RUN.downloads.folder}/logs/{{download}}.tsv"
        localrule: True
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=1000,
            runtime=1440,
        params:
            # The row is a parameter so that a new revision or hash is a new download.
            row=lambda wildcards: downloads.row_json(RUN.downloads.table, wildcards.download),
            table=RUN.downloads.table,
            folder=RUN.downloads.folder,
            connections=RUN.downloads.connections,
            retries=RUN.downloads.retries,
        shell:
            "saferclip download {wildcards.download} --table {params.table:q} --folder {params.folder:q}"
            " --connections {params.connections} --retries {params.retries} 2> {log:q}"
