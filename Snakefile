# The whole reproduction: sources -> data -> benchmark -> mining -> training -> evaluation -> figures -> report
#
#   snakemake --cores all                                      the default run, config/mini.yaml
#   snakemake --cores all --configfile config/paper.yaml       another run; outputs go to results/<its name>/
#   snakemake --cores all base_model_training                  make the delivered base model anew
#   snakemake --cores all learning_rate_selection              choose learning rates anew
#   snakemake --cores all edit_selection                       choose settings of edits anew
#   snakemake --cores all tradeoff_validation                  trade-off curves on validation data
#
# Rules say what a step reads, writes and needs; the step itself is `saferclip <step>`.
from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from saferclip import downloads
from saferclip.config import ConfigError, downloads_of, read, validate
from saferclip.io import DataError

min_version("9.10")

# Only without --configfile, which would otherwise be merged into the default run.
if "name" not in config:

    configfile: "config/mini.yaml"


try:
    for file in workflow.configfiles:
        read(Path(file))  # refuses a repeated key, of which Snakemake's own reader takes the last
    RUN = validate(config)
    if RUN.downloads:
        downloads.check_names(RUN.downloads.table, downloads_of(RUN), RUN.downloads.local)
except (ConfigError, DataError) as error:
    raise WorkflowError(str(error)) from None


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/interruptions.smk"
include: "workflow/rules/downloads.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/base_model.smk"
include: "workflow/rules/benchmark.smk"
include: "workflow/rules/mining.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/editing.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/tradeoff.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/generation.smk"
include: "workflow/rules/figures.smk"


rule all:
    default_target: True
    input:
        REPORT,
