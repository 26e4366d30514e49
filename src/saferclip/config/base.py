"""What every section of settings is made of."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator


class ConfigError(Exception):
    """A setting is missing, unknown or out of range; the message names the key and the remedy."""


class Settings(BaseModel):
    """Base of every section: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any) -> Any:
        """No setting is a switch, but true (in YAML also: yes, on) would pass for 1."""
        if isinstance(value, bool):
            raise ValueError("true, false, yes, no, on and off are no values here; write a number, or text in quotes")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _printable(cls, value: Any) -> Any:
        for inner in _texts(value):
            if problem := _text_problem(inner):
                raise ValueError(problem)
        return value

    def named_downloads(self) -> tuple[str, ...]:
        """Names in ``downloads.table`` that are part of a longer value; whole values are marked ``Download``."""
        return ()


def _texts(value: Any) -> Iterable[str | Path]:
    """Texts and paths that a setting is or holds; sections look at their own."""
    if isinstance(value, str | Path):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (*_texts(key), *_texts(inner))
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _texts(inner)


def _text_problem(value: str | Path) -> str | None:
    """What keeps a text from being a setting: prompts may have several lines, paths no braces."""
    shown = repr(str(value))
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    allowed = "" if isinstance(value, Path) else "\n\t"
    for character in str(value):
        if unicodedata.category(character) in ("Cc", "Cs") and character not in allowed:
            return f"{shown} holds the control character {character!r}; remove it"
        if isinstance(value, Path) and character in "{}":
            return f"{shown} holds a brace, which Snakemake would take for a wildcard; rename the file or folder"
    return None


def _line(value: str) -> str:
    if len(value.splitlines()) != 1 or "\t" in value:
        raise ValueError(f"{value[:60]!r} is not one line of text; write one")
    return value


def _part(value: str) -> str:
    if value in ("", ".", "..") or "/" in value or "\\" in value:
        raise ValueError(f"'{value}' is no name of a file or folder; write one, without '/'")
    return value


def _some(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("empty; write at least one")
    return values


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} more than once; write each once")
    return values


SectionT = TypeVar("SectionT", bound=Settings)
ItemT = TypeVar("ItemT")
Some = Annotated[tuple[ItemT, ...], AfterValidator(_some)]
Distinct = Annotated[Some[ItemT], AfterValidator(_distinct)]
Share = Annotated[float, Field(ge=0, le=1)]
Line = Annotated[str, AfterValidator(_line)]
PathPart = Annotated[str, AfterValidator(_part)]
Positive = Annotated[int, Field(gt=0)]
RunName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]


class _Downloaded:
    """Marks a setting as the name of something in ``downloads.table``."""


Download = Annotated[RunName, _Downloaded()]


def downloads_of(section: Settings | None) -> list[str]:
    """Names of all downloads that a section speaks of, at whatever depth, sorted."""
    return sorted(set(_downloads(section)))


def _downloads(value: Any) -> Iterable[str]:
    """Names of downloads in a section, or in sections within lists and mappings."""
    if isinstance(value, Settings):
        yield from value.named_downloads()
        for name, field in type(value).model_fields.items():
            inner = getattr(value, name)
            if any(isinstance(mark, _Downloaded) for mark in _marks(field)):
                yield from (
                    [inner] if isinstance(inner, str) else inner.values() if isinstance(inner, dict) else inner or ()
                )
            else:
                yield from _downloads(inner)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _downloads(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _downloads(inner)


def _marks(field: Any) -> Iterable[Any]:
    """Annotations of a field and of its type's arguments: those of ``Download`` in ``dict[str, Download]``."""
    yield from field.metadata
    queue = [field.annotation]
    while queue:
        kind = queue.pop()
        yield from getattr(kind, "__metadata__", ())
        queue += get_args(kind)
