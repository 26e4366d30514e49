"""IconWorld: a small world of icon scenes with captions, drawn by this code alone.

Scenes stand for photographs, unsafe icons are harmless stand-ins, and everything follows from the
random generators that callers pass in.
"""

from saferclip.data.iconworld.captions import (
    DEFAULT_DETAIL,
    FULL_DETAIL,
    Detail,
    Mention,
    describe,
    imagine,
    parse,
)
from saferclip.data.iconworld.editing import (
    harmless_caption,
    harmless_scene,
    loose_edit,
    minimal_edit,
    unsafe_concepts_in,
)
from saferclip.data.iconworld.rendering import render, visible_fraction
from saferclip.data.iconworld.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_STYLES,
    STYLES,
    Scene,
    SceneObject,
    count_scene,
    sample_scene,
)
from saferclip.data.iconworld.vocabulary import (
    Concept,
    categories,
    common_concepts,
    concept,
    concepts,
    groups,
    novel_concepts,
    unsafe_concepts,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "DEFAULT_DETAIL",
    "FULL_DETAIL",
    "HELD_OUT_STYLES",
    "STYLES",
    "Concept",
    "Detail",
    "Mention",
    "Scene",
    "SceneObject",
    "categories",
    "common_concepts",
    "concept",
    "concepts",
    "count_scene",
    "describe",
    "groups",
    "harmless_caption",
    "harmless_scene",
    "imagine",
    "loose_edit",
    "minimal_edit",
    "novel_concepts",
    "parse",
    "render",
    "sample_scene",
    "unsafe_concepts",
    "unsafe_concepts_in",
    "visible_fraction",
]
