"""Caption editors that make a safe caption unsafe, on text alone.

`minimal_edit` stands for the careful rewriting behind NSFW-Caps (safe and unsafe caption about 0.8
alike), `loose_edit` for the freer one behind ViSU (about 0.6).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from saferclip.data.iconworld.captions import (
    parse,
    random_background_phrase,
    random_connectors,
    random_lead,
)
from saferclip.data.iconworld.grammar import NounPhrase, Sentence, parse_sentence
from saferclip.data.iconworld.scenes import MOST_OBJECTS, Scene, pick_distinct, random_background, random_colour
from saferclip.data.iconworld.vocabulary import common_concepts, concept, unsafe_concepts


def unsafe_concepts_in(caption: str) -> list[str]:
    """Names of the unsafe objects that a caption mentions, in its order."""
    return [name for name, _ in parse(caption).objects if concept(name).unsafe]


def minimal_edit(
    caption: str,
    category: str,
    rng: np.random.Generator,
    objects: Sequence[str] | None = None,
) -> str:
    """The caption with one object replaced by an unsafe one of `category`, or with that added.

    Every other word stays, save the article before the new object. `objects` narrows the unsafe
    objects to choose from (default: all of the category).
    """
    sentence = parse_sentence(caption)
    return _made_unsafe(sentence, _unsafe(sentence, category, rng, objects), rng).text()


def loose_edit(
    caption: str,
    category: str,
    rng: np.random.Generator,
    objects: Sequence[str] | None = None,
    *,
    safe_objects: Sequence[str] | None = None,
    looseness: float = 0.4,
) -> str:
    """Like minimal_edit, but other parts change too, each with probability `looseness`:
    opening words, connecting words, every other object, every colour and the background.

    `safe_objects` are what other objects are replaced by (the common ones if None).
    """
    sentence = parse_sentence(caption)
    unsafe = _unsafe(sentence, category, rng, objects)
    sentence = _made_unsafe(sentence, unsafe, rng)
    pool = common_concepts() if safe_objects is None else safe_objects
    return _reworded(sentence, unsafe, pool, looseness, rng).text()


def harmless_caption(caption: str, rng: np.random.Generator, safe_objects: Sequence[str]) -> str:
    """The caption with each unsafe object replaced by one of `safe_objects` that it does not name."""
    sentence = parse_sentence(caption)
    names = _without_unsafe([item.concept for item in sentence.objects], rng, safe_objects)
    items = tuple(replace(item, concept=name) for item, name in zip(sentence.objects, names, strict=True))
    return replace(sentence, objects=items).text()


def harmless_scene(scene: Scene, rng: np.random.Generator, safe_objects: Sequence[str]) -> Scene:
    """The scene with each unsafe object replaced by one of `safe_objects` that it does not hold."""
    names = _without_unsafe(scene.concepts, rng, safe_objects)
    items = tuple(replace(item, concept=name) for item, name in zip(scene.objects, names, strict=True))
    return replace(scene, objects=items)


def _without_unsafe(names: Sequence[str], rng: np.random.Generator, safe_objects: Sequence[str]) -> list[str]:
    others = [name for name in safe_objects if name not in names]
    unsafe = [name for name in names if concept(name).unsafe]
    stand_ins = iter(pick_distinct(rng, others, len(unsafe)))
    return [next(stand_ins) if concept(name).unsafe else name for name in names]


def _unsafe(sentence: Sentence, category: str, rng: np.random.Generator, objects: Sequence[str] | None) -> str:
    named = {item.concept for item in sentence.objects}
    choice = [name for name in unsafe_concepts(category) if name not in named and (objects is None or name in objects)]
    if not choice:
        raise ValueError(f"no unsafe object of category {category!r} is left to choose from")
    return choice[int(rng.integers(len(choice)))]


def _made_unsafe(sentence: Sentence, unsafe: str, rng: np.random.Generator) -> Sentence:
    """One object replaced or, as often if there is room in a scene, one added."""
    items = list(sentence.objects)
    if sum(item.count for item in items) < MOST_OBJECTS - 1 and rng.random() < 0.5:
        colour = random_colour(rng) if rng.random() < 0.5 else None
        link = ("with", "next to", "and")[int(rng.integers(3))]
        added = NounPhrase(unsafe, colour)
        return replace(sentence, objects=(*items, added), connectors=(*sentence.connectors, link))
    at = int(rng.integers(len(items)))
    items[at] = replace(items[at], concept=unsafe)
    return replace(sentence, objects=tuple(items))


def _reworded(
    sentence: Sentence,
    unsafe: str,
    pool: Sequence[str],
    looseness: float,
    rng: np.random.Generator,
) -> Sentence:
    items = _changed_objects(sentence.objects, unsafe, pool, looseness, rng)
    sentence = replace(sentence, objects=items)
    if rng.random() < looseness:
        sentence = replace(sentence, lead=random_lead(rng))
    if rng.random() < looseness:
        sentence = replace(sentence, connectors=random_connectors(len(items), rng))
    if rng.random() < looseness:
        phrase = random_background_phrase(random_background(rng), rng) if rng.random() < 0.7 else None
        sentence = replace(
            sentence,
            background_phrase=phrase,
            background_first=sentence.background_first and phrase is not None,
        )
    return sentence


def _changed_objects(
    items: tuple[NounPhrase, ...],
    unsafe: str,
    pool: Sequence[str],
    looseness: float,
    rng: np.random.Generator,
) -> tuple[NounPhrase, ...]:
    """Each object replaced, but for the unsafe one, and each colour changed or left out, now and then."""
    changed: list[NounPhrase] = []
    taken = {item.concept for item in items}
    for item in items:
        name, colour = item.concept, item.colour
        if name != unsafe and rng.random() < looseness:
            new = pool[int(rng.integers(len(pool)))]
            name = name if new in taken else new
            taken.add(name)
        if rng.random() < looseness:
            colour = random_colour(rng) if rng.random() < 0.7 else None
        changed.append(replace(item, concept=name, colour=colour))
    return tuple(changed)
