rule figure:
    """One figure of the registry, in every configured format."""
    input:
        files=product("files"),
        code=product("code"),
    output:
        [
            report(
                f"{R}/figures/{{figure}}.{format}",
                category="Figures",
                caption="../report/product.rst",
                labels=labels("on paper (PDF)" if format == "pdf" else "image (PNG)"),
            )
            for format in RUN.figures.formats
        ],
    log:
        f"{LOGS}/figures/{{figure}}.log",
    benchmark:
        f"{LOGS}/figures/{{figure}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        settings=settings("figure"),
        caption=product("caption"),
        run=lambda wildcards: R,
        stem=lambda wildcards: f"{R}/figures/{wildcards.figure}",
    shell:
        "saferclip figure {wildcards.figure} --settings {params.settings:q} --run {params.run}"
        " --output {params.stem} 2> {log}"


rule table:
    """One table of the registry: a page for the report, and CSV, Markdown and LaTeX."""
    input:
        files=product("files"),
        code=product("code"),
    output:
        report(
            f"{R}/tables/{{table}}.html",
            category="Tables",
            caption="../report/product.rst",
            labels=labels("page"),
        ),
        report(
            f"{R}/tables/{{table}}.csv",
            category="Tables",
            caption="../report/product.rst",
            labels=labels("spreadsheet (CSV)"),
        ),
        f"{R}/tables/{{table}}.md",
        f"{R}/tables/{{table}}.tex",
    log:
        f"{LOGS}/tables/{{table}}.log",
    benchmark:
        f"{LOGS}/tables/{{table}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        settings=settings("table"),
        caption=product("caption"),
        run=lambda wildcards: R,
        stem=lambda wildcards: f"{R}/tables/{wildcards.table}",
    shell:
        "saferclip table {wildcards.table} --settings {params.settings:q} --run {params.run}"
        " --output {params.stem} 2> {log}"


rule figures_and_tables:
    """All that the report shows."""
    input:
        expand(f"{R}/figures/{{figure}}.{{format}}", figure=products(registry.FIGURES), format=RUN.figures.formats),
        expand(f"{R}/tables/{{table}}.{{format}}", table=products(registry.TABLES), format=TABLE_FORMATS),


localrules:
    report,


rule report:
    """One HTML page with everything, by Snakemake's own report; beside it, the configuration it was made with."""
    input:
        rules.figures_and_tables.input,
        texts=["workflow/report/workflow.rst", "workflow/report/product.rst"],
    output:
        page=REPORT,
        config=f"{R}/config.yaml",
    log:
        f"{LOGS}/report.log",
    benchmark:
        f"{LOGS}/report.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        config=lambda wildcards: json.dumps(RUN.model_dump(mode="json"), sort_keys=True),
        folder=subpath(output.page, parent=True),
    # Both are written elsewhere first, so that a kill leaves no half of them under their names.
    shell:
        "(rm -rf {params.folder:q}/.report.*.partial && scratch={params.folder:q}/.report.$$.partial && mkdir $scratch"
        " && printf %s {params.config:q} > $scratch/config.yaml && snakemake --report $scratch/report.html"
        " --configfile $scratch/config.yaml --nolock -- figures_and_tables"
        " && mv $scratch/config.yaml {output.config:q} && mv $scratch/report.html {output.page:q} && rmdir $scratch)"
        " > {log:q} 2>&1"
