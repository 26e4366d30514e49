"""Models that a setting names on the Hugging Face Hub by themselves, without a row of the versions table."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from saferclip.config import ConfigError
from saferclip.downloads import Row, fetch

# Of the formats that a repository may hold, one is fetched: open_clip's first, and safetensors before others.
WEIGHTS = (("open_clip*.safetensors",), ("open_clip*.bin",), ("model*.safetensors",), ("pytorch_model*.bin",))
CONFIGURATIONS = ("*config.json",)
CONNECTIONS = 4
RETRIES = 5


def fetch_model(repository: str, revision: str, folder: Path, weights: tuple[str, ...] = ()) -> Path:
    """Fetch a model's configuration and weights into a folder below ``folder``, and return it.

    ``revision`` is a commit, or empty for the newest; ``weights`` are the files of weights, if known.
    Raises DownloadError saying what to do, ConfigError for a wrong name; a folder without weights is left to its
    reader to refuse.
    """
    name = f"hub--{repository.replace('/', '--')}".lower() + (f"--{revision[:12]}" if revision else "")
    place = folder / name
    for patterns in (weights,) if weights else WEIGHTS:
        row = _row(name, repository, revision, (*CONFIGURATIONS, *patterns))
        fetch.fetch_row(row, folder, CONNECTIONS, RETRIES)
        if any(file for pattern in patterns for file in place.glob(pattern)):
            break
    return place


def _row(name: str, repository: str, revision: str, patterns: tuple[str, ...]) -> Row:
    """A row of the versions table that stands in none."""
    cells = {"kind": "hf-model", "source": repository, "revision": revision, "licence": "see its page"}
    try:
        return Row.model_validate({"name": name, **cells, "files": patterns})
    except ValidationError as error:
        wrong = f"{repository}@{revision}" if revision else repository
        raise ConfigError(
            f"source: '{wrong}' is not understood; write hf-hub:<owner>/<repository>, or that with @ and the full hash "
            "of a commit"
        ) from error
