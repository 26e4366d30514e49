"""The paper's own numbers, with their source."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import yaml

from saferclip.config import FigureSettings, Settings, parse


class Published(Settings):
    """Numbers as published, keyed by method and column; percent."""

    source: str
    label: str
    methods: dict[str, str]
    peers: dict[str, str]  # names in print of methods that the paper does not have
    comparison: dict[str, dict[str, float]]
    unsafe_image_to_text: dict[str, dict[str, float]]
    text_to_image: dict[str, dict[str, float]]
    columns: dict[str, str]
    paired_similarity: dict[str, float]


@cache
def read() -> Published:
    """The paper's numbers; raises ConfigError if the file is not in order."""
    text = files("saferclip.figures").joinpath("paper.yaml").read_text(encoding="utf-8")
    return parse(Published, yaml.safe_load(text), "paper.yaml")


def method_title(method: str) -> str:
    """A method's name in print; methods that no paper named keep their own."""
    return (read().methods | read().peers).get(method, method)


def reference_title(settings: FigureSettings) -> str:
    """The name in print of the method that others are compared with; empty, if the settings name none."""
    return method_title(settings.differences.reference) if settings.differences else ""
