"""The step ``edit``: a safer model by arithmetic on the base model's weights.

What is done is the kind of edit in the settings; the result is a model like a trained one, with the scores on the
validation split that trainings have, by which an edit's settings are chosen.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch

from saferclip import io, models
from saferclip.config import EditSettings, UwmSettings
from saferclip.editing import projection, uwm
from saferclip.mining import embedding
from saferclip.mining.pixels import IMAGES
from saferclip.models import Clip
from saferclip.provenance import file_digest, provenance
from saferclip.training.inputs import Images
from saferclip.training.losses import Embeddings
from saferclip.training.validation import SELECTION_SCORE, validation_rows, validation_scores

RECORD = "record.json"

logger = logging.getLogger(__name__)


def edit(
    settings: EditSettings, base_model: Path, train: Path, validation: Path, embeddings: Path, output: Path
) -> None:
    """Write the edited model (open_clip's ``local-dir:`` format) and ``record.json`` to the folder ``output``.

    Nothing in it is random.  Raises ConfigError for an architecture that the edit cannot act on, DataError if the
    inputs do not fit each other.
    """
    start = time.monotonic()
    files = {"train": train, "validation": validation, "embeddings": embeddings}
    clip = models.load(base_model, models.default_device())
    before = {name: weight.clone() for name, weight in clip.model.state_dict().items()}
    if isinstance(settings.edit, UwmSettings):
        facts = uwm.edit(clip, settings.edit, train, settings.batch_size)
    else:
        facts = projection.edit(clip, settings.edit, embeddings)
    changed = {name: int((weight != before[name]).sum()) for name, weight in clip.model.state_dict().items()}
    record = {
        "inputs_sha256": {
            name: file_digest(path) for name, path in {**files, "base_model": base_model / models.WEIGHTS}.items()
        },
        "changed_weights": {name: count for name, count in changed.items() if count},
        **facts,
        **_validation(clip, validation, settings.batch_size),
        "seconds": time.monotonic() - start,
        "device": str(models.default_device()),
        "threads": torch.get_num_threads(),
        "provenance": provenance(settings.model_dump(mode="json")),
    }
    with io.atomic_path(output) as folder:
        models.save(folder, clip.model.state_dict(), clip.architecture)
        io.write_json(folder / RECORD, record)


def _validation(clip: Clip, path: Path, batch_size: int) -> dict[str, Any]:
    """The scores of the edited model on the validation split, and how many rows they are about."""
    embedded = embedding.embed_table(clip, path, batch_size)
    images = Images(*(embedding.present(path, column) for column in IMAGES))
    scores = validation_scores(Embeddings(*(embedded[column] for column in (*embedding.CAPTIONS, *IMAGES))), images)
    score = f"{scores[SELECTION_SCORE]:.2f}" if scores else "cannot be measured"
    logger.info("selection score %s", score)
    return {"validation": scores, "validation_rows": validation_rows(images)}
