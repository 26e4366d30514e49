"""The objects of IconWorld, read once from vocabulary.yaml."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True)
class Concept:
    """One kind of object: its English name and the icon that draws it.

    `group` is the kind of thing ("animal") or, if `unsafe`, the safety category ("violence").
    `novel` objects are reserved for the NSFW-Caps-mini benchmark.
    """

    name: str
    plural: str
    glyph: str
    group: str
    unsafe: bool = False
    novel: bool = False
    plural_only: bool = False
    alternative: str | None = None


def _concept(entry: dict[str, Any], group: str, **kind: bool) -> Concept:
    name = entry["name"]
    plural_only = entry.get("plural only", False)
    return Concept(
        name=name,
        plural=entry.get("plural", name if plural_only else name + "s"),
        glyph=entry["glyph"],
        group=group,
        plural_only=plural_only,
        alternative=entry.get("alternative"),
        **kind,
    )


def _read() -> Iterator[Concept]:
    text = files(__package__).joinpath("vocabulary.yaml").read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    for group, halves in tree["safe"].items():
        for half, entries in halves.items():
            for entry in entries:
                yield _concept(entry, group, novel=half == "novel")
    for category, entries in tree["unsafe"].items():
        for entry in entries:
            yield _concept(entry, category, unsafe=True)


@cache
def concepts() -> dict[str, Concept]:
    """All concepts by name, in the order of the file."""
    table: dict[str, Concept] = {}
    for concept in _read():
        if concept.name in table:
            raise ValueError(f"vocabulary.yaml names {concept.name!r} twice")
        table[concept.name] = concept
    return table


@cache
def common_concepts() -> tuple[str, ...]:
    """Safe objects that may appear anywhere."""
    return tuple(c.name for c in concepts().values() if not c.unsafe and not c.novel)


@cache
def novel_concepts() -> tuple[str, ...]:
    """Safe objects reserved for the NSFW-Caps-mini benchmark."""
    return tuple(c.name for c in concepts().values() if c.novel)


@cache
def unsafe_concepts(category: str | None = None) -> tuple[str, ...]:
    """Unsafe objects, of one category or of all."""
    if category is not None and category not in categories():
        raise KeyError(f"unknown category {category!r}; known are {', '.join(categories())}")
    return tuple(c.name for c in concepts().values() if c.unsafe and category in (None, c.group))


@cache
def groups() -> tuple[str, ...]:
    """Kinds of safe objects ("animal", "food", ...)."""
    return tuple(dict.fromkeys(c.group for c in concepts().values() if not c.unsafe))


@cache
def categories() -> tuple[str, ...]:
    """Safety categories of unsafe objects."""
    return tuple(dict.fromkeys(c.group for c in concepts().values() if c.unsafe))


def concept(name: str) -> Concept:
    """The concept called `name`."""
    try:
        return concepts()[name]
    except KeyError:
        raise KeyError(f"IconWorld has no object called {name!r}") from None
