if RUN.tradeoff:

    rule tradeoff:
        """One model's trade-off curve: evaluated at several scales of what tuning changed."""
        input:
            model=evaluated_model,
            base_model=rules.base_model.output,
            tables=sorted(set(SWEPT.values())),
            descriptions=[f"{R}/test_sets/zero_shot.json"],
            code=modules("evaluation.tradeoff"),
        output:
            records=expand(f"{R}/tradeoff/{{{{method}}}}/seed-{{{{seed}}}}/{{benchmark}}.json", benchmark=SWEPT),
            outcomes=f"{R}/tradeoff/{{method}}/seed-{{seed}}/outcomes.parquet",
        log:
            f"{LOGS}/tradeoff/{{method}}/seed-{{seed}}.log",
        benchmark:
            f"{LOGS}/tradeoff/{{method}}/seed-{{seed}}.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=2000,
            runtime=720,
            gpu=0,
        params:
            settings=settings("tradeoff"),
            files=[f"--file {name}={file}" for name, file in SWEPT.items()],
            model=lambda wildcards, input: dirname(input.model[0]),
            base_model=lambda wildcards, input: dirname(input.base_model[0]),
            folder=subpath(output.outcomes, parent=True),
        shell:
            "saferclip tradeoff --settings {params.settings:q} --method {wildcards.method} --seed {wildcards.seed}"
            " --model {params.model} --base-model {params.base_model} {params.files} --output {params.folder}"
            " --threads {threads} 2> {log}"


if RUN.tradeoff and RUN.tradeoff.validation:

    rule validation_sets:
        """Zero-shot sets beside the validation split, of which no test set has an image."""
        input:
            code=modules("data.validation_sets"),
        output:
            multiext(f"{R}/validation_sets/zero_shot", ".parquet", ".json"),
        log:
            f"{LOGS}/validation_sets.log",
        benchmark:
            f"{LOGS}/validation_sets.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=1000,
            runtime=60,
        params:
            settings=settings("validation_sets"),
            folder=subpath(output[0], parent=True),
        shell:
            "saferclip validation-sets --settings {params.settings:q} --output {params.folder} 2> {log}"

    use rule benchmark as validation_benchmark with:
        output:
            table=VALIDATED["nsfw_caps"],
            datasheet=f"{R}/validation_benchmark/datasheet.json",
            readable=f"{R}/validation_benchmark/DATASHEET.md",
        log:
            f"{LOGS}/validation_benchmark.log",
        benchmark:
            f"{LOGS}/validation_benchmark.tsv"
        params:
            settings=settings("validation_benchmark"),
            downloads=[],
            detail=["--detail", RUN.settings_of("scene_detail")],
            images=[],
            model=[f"--base-model {dirname(file)}" for file in COMPARING_MODEL[:1]],
            data=subpath(input.train, parent=True),
            state=lambda wildcards: f"{R}/state/validation_benchmark",
            folder=subpath(output.table, parent=True),

    use rule tradeoff as validation_tradeoff with:
        input:
            model=evaluated_model,
            base_model=rules.base_model.output,
            tables=sorted(VALIDATED.values()),
            descriptions=f"{R}/validation_sets/zero_shot.json",
            code=modules("evaluation.tradeoff"),
        output:
            records=expand(
                f"{R}/validation_tradeoff/{{{{method}}}}/seed-{{{{seed}}}}/{{benchmark}}.json", benchmark=VALIDATED
            ),
            outcomes=f"{R}/validation_tradeoff/{{method}}/seed-{{seed}}/outcomes.parquet",
        log:
            f"{LOGS}/validation_tradeoff/{{method}}/seed-{{seed}}.log",
        benchmark:
            f"{LOGS}/validation_tradeoff/{{method}}/seed-{{seed}}.tsv"
        params:
            settings=settings("tradeoff"),
            files=[f"--file {name}={file}" for name, file in VALIDATED.items()],
            model=lambda wildcards, input: dirname(input.model[0]),
            base_model=lambda wildcards, input: dirname(input.base_model[0]),
            folder=subpath(output.outcomes, parent=True),

    rule tradeoff_ranking:
        """Methods by the area under their trade-off curves on validation data: the judge of a method in the making."""
        input:
            curves=list(curves("validation_tradeoff").values()),
            code=modules("evaluation.ranking"),
        output:
            f"{R}/tradeoff_ranking/ranking.csv",
        log:
            f"{LOGS}/tradeoff_ranking.log",
        benchmark:
            f"{LOGS}/tradeoff_ranking.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=2000,
            runtime=30,
        params:
            settings=settings("tradeoff_ranking"),
            base=lambda wildcards, input: input.curves[0],
            curves=[f"--curve {name}={file}" for name, file in list(curves("validation_tradeoff").items())[1:]],
        shell:
            "saferclip tradeoff-ranking --settings {params.settings:q} --base {params.base} {params.curves}"
            " --output {output} 2> {log}"

    rule tradeoff_validation:
        """Trade-off curves on validation data, and the ranking by them; on request only."""
        input:
            rules.tradeoff_ranking.output,
