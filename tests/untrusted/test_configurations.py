"""Configurations from strangers: nothing is executed, nothing grows, and no name or path leaves its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from saferclip import cli
from saferclip.config import ConfigError, LocalData, load, parse_settings
from saferclip.config.reading import DEEPEST, read

ROOT = Path(__file__).parents[2]
MINI = (ROOT / "config/mini.yaml").read_text()

# Each level holds the one before ten times: a billion values in a few hundred bytes.
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10))


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "theirs.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['touch {marker}']\n", "line 1, column 4"),
        ("a: 1\nb: !!python/name:os.system\n", "line 2, column 4"),
        ("a: 1\nb: !!python/object/new:os.system ['touch {marker}']\n", "line 2, column 4"),
        (BOMB, r"more than 20,000 values[\s\S]*line 5, column 5"),
        (MERGED, r"more than 20,000 values"),
        ("a: &a [*a]\n", "an alias within what it stands for"),
        ("a: &a\n  b: *a\n", "an alias within what it stands for"),
        ("a: 1\na: 2\n", r"key 'a' is there twice[\s\S]*line 2, column 1"),
        ("a: {b: 1, b: 2}\n", r"key 'b' is there twice[\s\S]*line 1, column 11"),
        ("? [a, b]\n: 1\n", r"a key must be a name[\s\S]*line 1, column 3"),
        (f"a: 1\nb: {'9' * 5000}\n", r"is no int[\s\S]*line 2, column 4"),
        ("a: 2020-99-99\n", r"'2020-99-99' is no timestamp[\s\S]*line 1, column 4"),
        ("a: !!int x\n", r"'x' is no int"),
        ("a: !!float ''\n", r"'' is no float"),
        ("a: !!bool x\n", r"'x' is no bool"),
        (f"a: {'[' * 100}{']' * 100}\n", rf"more than {DEEPEST} levels[\s\S]*line 1"),
        (f"a: {'[' * 50_000}\n", rf"more than {DEEPEST} levels[\s\S]*line 1"),
        (f"a: {'{a: ' * 50_000}\n", rf"more than {DEEPEST} levels"),
        ("".join(f"{' ' * n}a:\n" for n in range(1000)), "too many sections or lists within each other"),
        ("a: '\xff'\n".encode("latin-1"), "cannot be read: 'utf-8' codec"),
        ("a: 'x\0y'\n", "special characters are not allowed"),
        ("a: \x1b[2J\n", "special characters are not allowed"),
        ("a: [1\n", "line 2, column 1"),
        ("\t a: 1\n", "line 1"),
        ("a" * 2_000_000, "larger than 1,000,000 bytes"),
        ("--- 1\n--- 2\n", "expected a single document"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(
    tmp_path: Path, marker: Path, text: str | bytes, message: str
) -> None:
    text = text.replace("{marker}", str(marker)) if isinstance(text, str) else text
    with pytest.raises(ConfigError, match=message) as found:
        load(written(tmp_path, text))
    assert "theirs.yaml" in str(found.value)


def test_a_device_without_end_is_no_configuration() -> None:
    with pytest.raises(ConfigError, match="larger than"):
        read(Path("/dev/zero"))


@pytest.mark.parametrize("text", ["", "1", "[]", "a string", "null", "- a\n- b\n", "2: 3\n", "null: 1\n", "1.5: {}\n"])
def test_other_values_than_sections_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"theirs\.yaml: \d+ problem"):
        load(written(tmp_path, text))


NAMES = ["../../x", "/abs", "", ".", "..", "-rf", "a\nb", "a\n", "a b", "a;b", "$(x)", "a\0b", "A", "é", "a/b", "*"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["name", "methods", "downloads.local"])
def test_names_cannot_leave_their_folder(tmp_path: Path, place: str, name: str) -> None:
    values = yaml.safe_load(MINI)
    if place == "name":
        values["name"] = name
    elif place == "methods":
        values["methods"][name] = values["methods"]["safer-clip"]
    else:
        values["base_model"] = {"source": f"download:{name}"}
        values["downloads"] = {
            "table": "config/versions.csv",
            "folder": "downloads",
            "local": {name: "x"},
            "connections": 1,
            "retries": 1,
        }
    with pytest.raises(ConfigError, match="theirs"):
        load(written(tmp_path, yaml.safe_dump(values)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("title", "a\n\n.. raw:: html\n\n   <script>", "not one line of text"),
        ("title", "a\x1b[2J", "control character"),
        ("title", "", "not one line of text"),
        ("data.local.train", "a\nb.csv", "control character"),
        ("data.local.train", "a\0b.csv", "control character"),
        ("data.local.train", "{wildcard}/a.csv", "holds a brace"),
        ("base_model.source", "local-dir:{x}", "holds a brace"),
        ("base_model.source", "local-dir:a\nb", "not one line of text"),
        ("base_model.source", "hf-hub:", "is not understood"),
        ("base_model.architecture", "../x", "is no name of a file or folder"),
        ("benchmark.editor", "../x", "choose one of"),
    ],
)
def test_texts_and_paths_that_would_break_what_reads_them(tmp_path: Path, key: str, value: str, message: str) -> None:
    values = yaml.safe_load(MINI)
    values["data"] = {
        "source": "local",
        "local": {"train": "a.csv", "validation": "b.csv", "test": "c.csv"},
        **{"embedded": values["data"]["embedded"]},
    }
    section: Any = values
    *parents, last = key.split(".")
    for parent in parents:
        section = section[parent]
    section[last] = value
    with pytest.raises(ConfigError, match=message):
        load(written(tmp_path, yaml.safe_dump(values)))


@pytest.mark.parametrize(
    "text",
    ["{", "1", "null", "[" * 100_000, "9" * 5000, '{"train": ' * 500 + "1" + "}" * 500, '{"train": "\\ud800"}', "NaN"],
)
def test_settings_as_json_are_read_as_carefully(text: str) -> None:
    with pytest.raises(ConfigError, match="--settings"):
        parse_settings(LocalData, text)


def test_messages_hold_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    """A stranger's name could otherwise hide the message, or write another one."""
    path = written(tmp_path, "name: x\n'\\e[2J\\e]0;owned\\a': 1\n".replace("'", '"'))
    done = CliRunner().invoke(cli.main, ["validate", "--config", str(path)])
    assert done.exit_code == 1
    assert "\\x1b[2J" in done.output
    assert not {"\x1b", "\x07"} & set(done.output)


def test_a_template_is_refused_before_snakemake_would_run_it(tmp_path: Path, marker: Path) -> None:
    """Snakemake evaluates such files; docs/security.md says to look at a stranger's file with `validate` first."""
    text = f"__use_yte__: true\nname: ?__import__('os').system('touch {marker}')\n"
    done = CliRunner().invoke(cli.main, ["validate", "--config", str(written(tmp_path, text))])
    assert done.exit_code == 1
    assert "__use_yte__: unknown key; Snakemake would run the Python in this file" in done.output


def test_a_configuration_of_ours_is_read_as_before() -> None:
    for path in sorted((ROOT / "config").glob("*.yaml")):
        assert read(path) == yaml.safe_load(path.read_text())


def test_aliases_that_stay_small_are_fine(tmp_path: Path) -> None:
    text = "a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n"
    assert read(written(tmp_path, text)) == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}
