"""The safe images that the builder needs, by their addresses: fetched before anything is built, and listed.

With `download`, the only step that uses the network. Files stay beside the list, so that a new start fetches the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from saferclip import io
from saferclip.benchmark import sources
from saferclip.config import BenchmarkImages
from saferclip.downloads import web

logger = logging.getLogger(__name__)

FILES = "files"
MANIFEST = "manifest.json"


def fetch(
    settings: BenchmarkImages, downloads: Mapping[str, Path], connections: int, retries: int, output: Path
) -> None:
    """Fetch all images that may be needed to ``output``/files; write which are there to manifest.json.

    Addresses that will never give an image are listed with the reason. Raises DownloadError if servers do not answer,
    and DataError if there is not a single image.
    """
    wanted = {url: output / FILES / sources.file_name(url) for url in sources.addresses(settings, downloads)}
    missing = web.fetch_urls(wanted, connections, retries)
    for url, path in tqdm(wanted.items(), "checking", disable=None):
        if url not in missing and not sources.is_image(path.read_bytes()):
            path.unlink()  # so that a new start fetches it again
            missing[url] = "the file is no image, or not a whole one"
    images = {url: str(path.relative_to(output)) for url, path in wanted.items() if url not in missing}
    logger.info("%d images, %d missing", len(images), len(missing))
    if not images:
        raise io.DataError(f"none of {len(wanted)} images could be fetched; the first: {next(iter(missing.values()))}")
    io.write_json(output / MANIFEST, sources.ImageList(images=images, missing=missing).model_dump())
