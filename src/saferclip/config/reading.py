"""Read settings from YAML and JSON, and say what is wrong with them."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from saferclip.config.base import ConfigError, SectionT, Settings
from saferclip.config.run import Config
from saferclip.config.training import KINDS_OF_METHOD


def load(path: Path) -> Config:
    """Read and validate a run's configuration file.

    Raises ConfigError listing every problem with its key and what would be right.
    """
    return validate(read(path), origin=str(path))


def read(path: Path) -> Any:
    """Read a configuration file as plain values; raises ConfigError, also for a repeated key.

    Nothing in the file is executed: no tags but YAML's own are known. Aliases may not make much of little.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ConfigError(f"{path}: larger than {LARGEST:,} bytes, which no configuration is")
        return yaml.load(data.decode("utf-8"), _Plain)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path}: cannot be read: too many sections or lists within each other") from None


TEMPLATE = "__use_yte__"  # asks Snakemake's reader to evaluate expressions in a configuration
LARGEST = 1_000_000  # bytes of a file
MOST_VALUES = 20_000  # keys and values of a file, with aliases written out
DEEPEST = 30  # sections and lists within each other


class _Plain(yaml.SafeLoader):
    """Reads YAML but refuses a repeated key, of which PyYAML silently takes the last, and files that grow."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        # Here already, as each further bracket costs more than the one before.
        if self.flow_level > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"more than {DEEPEST} levels", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(token)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a name", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        _written_out(node, {}, 0)
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        # A number, date or the like that is none, or too long; PyYAML lets Python's own errors through.
        except Exception as error:
            text = f"'{str(node.value)[:40]}' is no {node.tag.rpartition(':')[2]}"
            raise yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark) from error


def _written_out(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many keys and values a node stands for, with aliases written out; 0 marks a node that is looked at."""
    if depth > DEEPEST:
        raise yaml.MarkedYAMLError(problem=f"more than {DEEPEST} levels", problem_mark=node.start_mark)
    if id(node) not in known:
        known[id(node)] = 0
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        pairs = (part if isinstance(part, tuple) else (part,) for part in parts)
        known[id(node)] = 1 + sum(_written_out(inner, known, depth + 1) for pair in pairs for inner in pair)
    if not 0 < known[id(node)] <= MOST_VALUES:
        reason = f"more than {MOST_VALUES:,} values" if known[id(node)] else "an alias within what it stands for"
        raise yaml.MarkedYAMLError(problem=reason, problem_mark=node.start_mark)
    return known[id(node)]


def validate(values: Any, origin: str = "config") -> Config:
    """Validate settings that were already read, for example by Snakemake."""
    return parse(Config, values, origin)


def parse(section: type[SectionT], values: Any, origin: str) -> SectionT:
    """Build one section from plain values, or raise ConfigError naming every wrong key."""
    if _depth(values) > DEEPEST:
        raise ConfigError(f"{origin}: more than {DEEPEST} sections or lists within each other")
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = [f"  {_explain(section, problem)}" for problem in error.errors()]
        raise ConfigError("\n".join([f"{origin}: {len(lines)} problem(s) in the settings", *lines])) from error


def parse_settings(section: type[SectionT], text: str) -> SectionT:
    """Build one section from JSON text, as rules pass it on the command line."""
    try:
        values = json.loads(text)
    # Of a number with thousands of digits, and of lists within lists without end.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--settings: not JSON: {error}") from error
    return parse(section, values, "--settings")


def _depth(values: Any) -> int:
    """How many sections and lists lie within each other; no more are counted than matter."""
    depth, level = 0, [values]
    while depth <= DEEPEST and (level := [value for value in level if isinstance(value, dict | list)]):
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
        depth += 1
    return depth


# What to write instead, by pydantic's error type; for the others its own message will do.
ADVICE = {
    "int_type": "write a whole number",
    "int_parsing": "write a whole number",
    "int_from_float": "write a whole number",
    "float_type": "write a number",
    "float_parsing": "write a number",
    "string_type": "write text; quotes make text of a number",
    "path_type": "write a path",
    "tuple_type": "write a list, as in [a, b]",
    "dict_type": "write a section: 'key: value' lines",
    "model_type": "write a section: 'key: value' lines",
    "string_pattern_mismatch": "use small letters, digits, '.', '_' and '-', beginning with a letter or digit",
}


def _explain(section: type[Settings], problem: Any) -> str:
    """Say which key is wrong, why, and what to write instead."""
    location = tuple(part for part in problem["loc"] if part != "[key]")
    key = _dotted(tuple(part for part in location if part not in KINDS_OF_METHOD))
    found = repr(problem["input"])
    found = f"(found: {found if len(found) <= 60 else found[:57] + '...'})"
    known = _fields_at(section, location[:-1])
    match problem["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(str(location[-1]), known, n=1)
            advice = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(known))}"
            advice = (
                "Snakemake would run the Python in this file; do not give it to Snakemake"
                if key == TEMPLATE
                else advice
            )
            return f"{key}: unknown key; {advice}"
        case "invalid_key":
            return f"{key}: not the name of a setting; known keys: {', '.join(sorted(known))}"
        case "missing":
            description = known[str(location[-1])].description
            return f"{key}: missing; add it" + (f" ({description})" if description else "")
        case "literal_error":
            choices = [choice.strip("'") for choice in problem["ctx"]["expected"].replace(" or ", ", ").split(", ")]
            near = difflib.get_close_matches(str(problem["input"]), choices, n=1)
            advice = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(choices)}"
            return f"{key}: {advice} {found}"
        case "value_error":
            return f"{key}: {problem['msg'].removeprefix('Value error, ')}"
        case kind:
            return f"{key}: {ADVICE.get(kind, problem['msg'].replace('Input should', 'must'))} {found}"


def _dotted(location: tuple[str | int, ...]) -> str:
    """A location as one would say it: phases[0].samples."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".") or "(top level)"


def _fields_at(section: type[Settings], path: tuple[str | int, ...]) -> dict[str, Any]:
    """Fields of the section that ``path`` leads to, through optional sections, lists and mappings."""
    current: Any = section
    for part in path:
        if part in KINDS_OF_METHOD:
            current = KINDS_OF_METHOD[str(part)]
            continue
        fields = _fields(current)
        # In a list or mapping the last type argument, but for the dots of tuple[x, ...], is the item's.
        items = [kind for kind in get_args(current) if kind is not Ellipsis]
        current = _bare(fields[str(part)].annotation if part in fields else items[-1] if items else None)
    return _fields(current)


def _fields(kind: Any) -> dict[str, Any]:
    return dict(kind.model_fields) if isinstance(kind, type) and issubclass(kind, Settings) else {}


def _bare(annotation: Any) -> Any:
    """An annotation without ``Annotated`` and ``| None``."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not NoneType)
    return annotation
