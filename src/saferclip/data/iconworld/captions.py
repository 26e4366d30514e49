"""Captions of scenes, what captions mention, and scenes imagined from captions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saferclip.data.iconworld.grammar import (
    BACKGROUND_PHRASES,
    CONNECTORS,
    LEADS,
    NounPhrase,
    Sentence,
    parse_sentence,
    usual_connectors,
)
from saferclip.data.iconworld.scenes import (
    MOST_OBJECTS,
    Scene,
    SceneObject,
    pick_distinct,
    random_background,
    random_colour,
    random_layout_seed,
)
from saferclip.data.iconworld.vocabulary import common_concepts


@dataclass(frozen=True)
class Detail:
    """How much captions say: the probability that a named object's colour is said, that the
    background is, and how many objects are named at most (None: all)."""

    colour: float
    background: float
    max_objects: int | None


# Measured in DESIGN.md: near this, captions under-specify as COCO's do and retrieval is hard but possible.
DEFAULT_DETAIL = Detail(colour=0.7, background=0.5, max_objects=2)
FULL_DETAIL = Detail(colour=1.0, background=1.0, max_objects=None)


@dataclass(frozen=True)
class Mention:
    """What a caption says: (concept, colour or None) and the count of each noun phrase, background or None."""

    objects: tuple[tuple[str, str | None], ...]
    background: str | None
    counts: tuple[int, ...]

    @property
    def count(self) -> int | None:
        """How many copies, in a caption such as "three red cats"; None in any other."""
        return self.counts[0] if len(self.counts) == 1 and self.counts[0] > 1 else None


def describe(scene: Scene, rng: np.random.Generator, detail: Detail = DEFAULT_DETAIL) -> str:
    """A caption of `scene` in varied wording; equal objects are counted ("three red cats")."""
    kinds = Counter(scene.objects)
    order = [list(kinds)[i] for i in rng.permutation(len(kinds))][: detail.max_objects]
    phrases = tuple(
        NounPhrase(
            item.concept,
            item.colour if rng.random() < detail.colour else None,
            kinds[item],
        )
        for item in order
    )
    background = scene.background if rng.random() < detail.background else None
    return word(phrases, background, rng).text()


def word(objects: tuple[NounPhrase, ...], background: str | None, rng: np.random.Generator) -> Sentence:
    """A random wording of what is to be said."""
    return Sentence(
        lead=random_lead(rng),
        objects=objects,
        connectors=random_connectors(len(objects), rng),
        background_phrase=random_background_phrase(background, rng) if background else None,
        background_first=bool(rng.random() < 0.2) and background is not None,
    )


def random_lead(rng: np.random.Generator) -> str:
    """Words that open a caption; none in about a third of captions."""
    return "" if rng.random() < 0.25 else LEADS[int(rng.integers(len(LEADS)))]


def random_connectors(count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Words between `count` objects; "and" is the commonest."""
    pick = ["and" if rng.random() < 0.4 else _any(CONNECTORS, rng) for _ in range(2)]
    return usual_connectors(count, pick)


def random_background_phrase(background: str, rng: np.random.Generator) -> str:
    """One way of naming a background."""
    return _any(BACKGROUND_PHRASES[background], rng)


def _any(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def parse(caption: str) -> Mention:
    """What a caption of this grammar says; ValueError naming caption and word otherwise."""
    sentence = parse_sentence(caption)
    return Mention(
        objects=tuple((item.concept, item.colour) for item in sentence.objects),
        background=sentence.background,
        counts=tuple(item.count for item in sentence.objects),
    )


def imagine(
    caption: str,
    rng: np.random.Generator,
    style: str = "generated",
    *,
    concepts_for_extras: Sequence[str] | None = None,
    objects: tuple[int, int] = (2, 3),
    fidelity: float = 0.9,
) -> Scene:
    """A scene drawn from the caption alone, as a diffusion model would.

    What the caption leaves out is sampled anew: colours, background, and further objects from
    `concepts_for_extras` (the common ones if None; pass () for none) up to a number drawn from
    the range `objects`. Each named object is forgotten with probability 1 - fidelity, but never
    all of them, so that an image filter downstream has something to reject.
    """
    mention = parse(caption)
    named = [
        SceneObject(name, colour)
        for (name, said), count in zip(mention.objects, mention.counts, strict=True)
        for colour in (said or random_colour(rng),) * count
    ][:MOST_OBJECTS]
    kept = [item for item in named if rng.random() < fidelity]
    kept = kept or [named[int(rng.integers(len(named)))]]
    wanted = int(rng.integers(objects[0], objects[1] + 1))
    # Extras fill what the caption leaves open, not what was forgotten, and leave counts alone.
    missing = 0 if max(mention.counts) > 1 else max(0, wanted - len(named))
    pool = common_concepts() if concepts_for_extras is None else concepts_for_extras
    taken = {name for name, _ in mention.objects}
    if missing and pool:
        pool = [name for name in pool if name not in taken]
        kept += [SceneObject(name, random_colour(rng)) for name in pick_distinct(rng, pool, missing)]
    return Scene(
        objects=tuple(kept[i] for i in rng.permutation(len(kept))),
        background=mention.background or random_background(rng),
        style=style,
        layout_seed=random_layout_seed(rng),
    )
