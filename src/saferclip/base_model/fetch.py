"""Put the model that a run starts from into the run's own folder, in open_clip's format."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

from saferclip import io, models
from saferclip.config import BaseModelSettings, ConfigError

logger = logging.getLogger(__name__)


def fetch(settings: BaseModelSettings, output: Path) -> None:
    """Bring the base model to ``output`` (open_clip ``local-dir:`` format).

    Raises ConfigError for a source that is not understood, DataError if the model is not there.
    """
    kind, _, name = settings.source.partition(":")
    if kind == "dvc":
        folder = Path(name)
        if not (folder / models.WEIGHTS).exists():
            _pull(folder)
    elif kind == "local-dir":
        folder = Path(name)
    else:
        raise ConfigError(
            f"base_model.source: '{settings.source}' is not understood; write 'dvc:<folder>' or 'local-dir:<folder>'"
        )
    models.load(folder)  # refuses what open_clip could not use later
    output.mkdir(parents=True, exist_ok=True)
    for file in (models.ARCHITECTURE, models.WEIGHTS):
        with io.atomic_path(output / file) as temporary:
            shutil.copyfile(folder / file, temporary)


def _pull(folder: Path) -> None:
    """Fetch a versioned folder from the DVC remote; `dvc pull` checks its hash."""
    logger.info("%s is not here yet: dvc pull", folder)
    # The environment's own dvc, whether or not the environment is activated.
    command = [sys.executable, "-m", "dvc", "pull", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise io.DataError(
            f"{folder}: `dvc pull` failed; fetch it by hand, or make it: `snakemake base_model_training`\n{done.stderr}"
        )
