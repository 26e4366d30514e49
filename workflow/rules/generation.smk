if RUN.generation and RUN.generation.text_to_image:

    rule text_to_image:
        """Draw I2P's prompts with a method's text encoder in a diffusion model, and judge the images."""
        input:
            downloads=lambda wildcards: needed("text_to_image"),
            export=tuned_export,
            code=modules("generation.text_to_image"),
        output:
            record=f"{R}/text_to_image/{{method}}/seed-{{seed}}/{{guidance}}.json",
            scores=f"{R}/text_to_image/{{method}}/seed-{{seed}}/{{guidance}}.parquet",
        log:
            f"{LOGS}/text_to_image/{{method}}/seed-{{seed}}/{{guidance}}.log",
        benchmark:
            f"{LOGS}/text_to_image/{{method}}/seed-{{seed}}/{{guidance}}.tsv"
        wildcard_constraints:
            guidance="|".join(map(re.escape, RUN.generation.text_to_image.guidance)),
        conda:
            ENVIRONMENT
        threads: 2
        resources:
            mem_mb=16000,
            runtime=1440,
            gpu=0,
        params:
            settings=guided,
            downloads=lambda wildcards: given("text_to_image"),
            encoder=encoder_option("--text-encoder", "diffusers_text_encoder/text_encoder"),
            # Outside the outputs, which Snakemake deletes when a job fails: an interrupted run goes on from here.
            state=lambda wildcards: f"{R}/state/text_to_image/{wildcards.method}/seed-{wildcards.seed}/{wildcards.guidance}",
            folder=subpath(output.record, parent=True),
        shell:
            "saferclip text-to-image --settings {params.settings:q} --guidance {wildcards.guidance}"
            " --method {wildcards.method} --seed {wildcards.seed} {params.downloads} {params.encoder}"
            " --output {params.folder} --state {params.state} --threads {threads} 2> {log}"


if RUN.generation and RUN.generation.image_to_text:

    rule image_to_text:
        """Ask LLaVA about unsafe images through a method's image encoder, and judge the answers."""
        input:
            downloads=lambda wildcards: needed("image_to_text"),
            export=tuned_export,
            test=f"{R}/data/test.parquet",
            code=modules("generation.image_to_text"),
        output:
            record=f"{R}/image_to_text/{{method}}/seed-{{seed}}/record.json",
            answers=f"{R}/image_to_text/{{method}}/seed-{{seed}}/answers.parquet",
        log:
            f"{LOGS}/image_to_text/{{method}}/seed-{{seed}}.log",
        benchmark:
            f"{LOGS}/image_to_text/{{method}}/seed-{{seed}}.tsv"
        conda:
            ENVIRONMENT
        threads: 2
        resources:
            mem_mb=32000,
            runtime=1440,
            gpu=0,
        params:
            settings=settings("image_to_text"),
            downloads=lambda wildcards: given("image_to_text"),
            encoder=encoder_option("--vision", "transformers"),
            # Outside the outputs, which Snakemake deletes when a job fails: an interrupted run goes on from here.
            state=lambda wildcards: f"{R}/state/image_to_text/{wildcards.method}/seed-{wildcards.seed}",
            folder=subpath(output.record, parent=True),
        shell:
            "saferclip image-to-text --settings {params.settings:q} --method {wildcards.method}"
            " --seed {wildcards.seed} {params.downloads} {params.encoder} --test {input.test}"
            " --output {params.folder} --state {params.state} --threads {threads} 2> {log}"
