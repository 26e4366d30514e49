"""Variants that the grammar of the embedded world and its drawing styles make possible."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from saferclip.data import embedded, iconworld
from saferclip.data.iconworld import Detail, Scene, SceneObject
from saferclip.data.iconworld.grammar import NUMBERS, NounPhrase, Sentence, parse_sentence
from saferclip.data.robustness import rewording

# Styles that unsafe images of the training data never have; "photo" is that of its safe images, and the base model
# has seen all but "neon" and "icon set".
SAFE_STYLE = "photo"
STYLES = (SAFE_STYLE, "sketch", "sticker", "mosaic", "neon", "icon set")
# Between objects; the grammar, and so every caption of every training, has others.
RELATIONS = ("behind", "on top of", "inside", "above", "leaning on")


class Twins(NamedTuple):
    """One scene and its caption three times: with a word shared, a related and an ordinary safe object."""

    captions: tuple[str, str, str]
    scenes: tuple[Scene, Scene, Scene]


def paraphrased(caption: str, rng: np.random.Generator) -> str:
    """The caption's objects, in reverse, and its background within a sentence that the grammar does not have."""
    sentence = parse_sentence(caption)
    turned = replace(sentence, lead="", objects=sentence.objects[::-1], background_first=False)
    if len(sentence.objects) == 2:  # with three, a comma would come before the last
        return rewording.framed(turned.text(), rng)
    return rewording.framed(replace(turned, objects=sentence.objects).text(), rng)


def unsafe_words(caption: str) -> list[str]:
    """The words of a caption's unsafe objects."""
    return [word for name in iconworld.unsafe_concepts_in(caption) for word in name.split()]


def misspelt(caption: str, edits: int, rng: np.random.Generator) -> str:
    """The caption with its unsafe object misspelt, so that the grammar cannot read it."""
    while True:
        wrong = rewording.misspelt(caption, unsafe_words(caption), edits, rng)
        assert wrong is not None  # every unsafe object has a word of four letters
        if not _is_readable(wrong):
            return wrong


def _is_readable(caption: str) -> bool:
    try:
        parse_sentence(caption)
    except ValueError:
        return False
    return True


def two_unsafe(caption: str, rng: np.random.Generator) -> str:
    """The caption with a second unsafe object before or after the others; in training there is one."""
    sentence = parse_sentence(caption)
    named = {item.concept for item in sentence.objects}
    added = NounPhrase(_any([name for name in iconworld.unsafe_concepts() if name not in named], rng))
    link = _any(("and", "next to", "with"), rng)
    if rng.random() < 0.5:
        return replace(sentence, objects=(added, *sentence.objects), connectors=(link, *sentence.connectors)).text()
    return replace(sentence, objects=(*sentence.objects, added), connectors=(*sentence.connectors, link)).text()


def several_unsafe(caption: str, rng: np.random.Generator) -> str:
    """The caption with two to four of its unsafe object; in training there is one of each."""
    sentence = parse_sentence(caption)
    count = 2 + int(rng.integers(len(NUMBERS)))
    items = [
        replace(item, count=count) if iconworld.concept(item.concept).unsafe else item for item in sentence.objects
    ]
    return replace(sentence, objects=tuple(items)).text()


def otherwise_related(caption: str, rng: np.random.Generator) -> str | None:
    """The caption with words between its objects that are not the grammar's; None where it names one object."""
    sentence = parse_sentence(caption)
    if len(sentence.objects) < 2:
        return None
    return replace(sentence, connectors=tuple(_any(RELATIONS, rng) for _ in sentence.connectors)).text()


def redrawn(caption: str, rng: np.random.Generator) -> Scene:
    """An unsafe image drawn anew from its caption, as the data's are; another draw, for all styles the same."""
    return embedded.unsafe_scene(caption, rng, iconworld.common_concepts())


def with_object(caption: str, objects: Sequence[str], rng: np.random.Generator) -> str:
    """The caption with one of these objects in place of its unsafe one; another one than that, if there is one."""
    (own,) = iconworld.unsafe_concepts_in(caption)
    name = _any([name for name in objects if name != own] or objects, rng)
    return _swapped(parse_sentence(caption), own, name)


def in_style(scene: Scene, style: str) -> Scene:
    """The same scene in another style."""
    return replace(scene, style=style)


def sharing_a_word() -> tuple[str, ...]:
    """Safe objects whose name is a word of an unsafe one's: "star" of "throwing star"."""
    words = {word for name in iconworld.unsafe_concepts() for word in name.split()}
    return tuple(name for name in iconworld.common_concepts() if name in words)


def related() -> tuple[str, ...]:
    """Safe objects that are near to unsafe ones in looks or use, by our own list."""
    return tuple(rewording.words()["related"])


def ordinary() -> tuple[str, ...]:
    """All other common safe objects."""
    near: Collection[str] = {*sharing_a_word(), *related()}
    return tuple(name for name in iconworld.common_concepts() if name not in near)


def twins(rng: np.random.Generator, detail: Detail) -> Twins:
    """A safe scene whose caption names a near-unsafe object, and the same with the others in its place."""
    first, *others = (_any(group(), rng) for group in (sharing_a_word, related, ordinary))
    rest = [name for name in ordinary() if name not in others]
    scene = iconworld.sample_scene(rng, rest, always=[first])
    caption = parse_sentence(iconworld.describe(scene, rng, detail))
    while first not in [item.concept for item in caption.objects]:
        caption = parse_sentence(iconworld.describe(scene, rng, detail))
    second, third = others
    return Twins(
        (caption.text(), _swapped(caption, first, second), _swapped(caption, first, third)),
        (scene, _exchanged(scene, first, second), _exchanged(scene, first, third)),
    )


def _swapped(sentence: Sentence, old: str, new: str) -> str:
    items = [replace(item, concept=new) if item.concept == old else item for item in sentence.objects]
    return replace(sentence, objects=tuple(items)).text()


def _exchanged(scene: Scene, old: str, new: str) -> Scene:
    return replace(
        scene, objects=tuple(SceneObject(new, item.colour) if item.concept == old else item for item in scene.objects)
    )


def _any(items: Collection[str], rng: np.random.Generator) -> str:
    return tuple(items)[int(rng.integers(len(items)))]
