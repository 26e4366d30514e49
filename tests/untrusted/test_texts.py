"""Captions, titles and names of strangers in everything that we write: read back by others, they are the same words."""

from __future__ import annotations

import csv
import html
import json
import math
import re
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import docutils.core
import docutils.nodes
import jinja2
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from saferclip import escaping, io
from saferclip.benchmark import datasheet
from saferclip.config import load
from saferclip.data.validation import text_problem
from saferclip.export import card
from saferclip.figures import registry, writers
from saferclip.figures.layout import Column, Table

ROOT = Path(__file__).parents[2]
QUIET = settings(
    derandomize=True, max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "&lt;b&gt; &#60; &",
    "a | b || c \\| d",
    "`code` ``` ~~~",
    "[x](javascript:alert(1)) ![y](z) <https://a> https://a",
    "# h\n- l\n1. l\n> q\n---\n| a |\n|---|",
    "\\input{/etc/passwd} \\write18{touch x} \\\\ \\end{tabular} ^^5cinput",
    "% & $ # _ { } ~ ^ [2pt] *",
    "$\\undefined{$ x_{1 $$",
    "=cmd|'/c calc'!A0",
    "+1+1",
    "-1+1",
    "@SUM(1)",
    " =1",
    "\t=1",
    "\u202etxt.exe\u202c \u2066x\u2069 \u200b",
    "a\x00b\x07\x1b[2J\x7f\x85",
    "line\nline\r\nline\u2028line\x0bline",
    "\ud800 \udfff",
    "",
    " ",
    '"quoted", \'so\', ""',
    "{{ 7 * 7 }} {% raw %} {0.__class__} {test}",
    "x\n\n.. raw:: html\n\n   <script>alert(1)</script>\n",
    ":raw-html:`<b>` |sub| ref_ `a <javascript:alert(1)>`_ `` * **",
    "été 猫 🐈‍⬛ ﷽",
]
TEXTS = st.text(st.characters(exclude_categories=[]), max_size=40) | st.sampled_from(HOSTILE)


def shown(text: str) -> str:
    """What is left of a text for people: no control characters, words apart by single spaces."""
    return " ".join(escaping.visible(text).split())


def table(*cells: str) -> Table:
    columns = [Column(f"c{place}", cell, group=cell) for place, cell in enumerate(cells)]
    return Table(cells[0], cells[-1], columns, [list(cells), ["x"] * len(cells)], [cells[0]])


def plain(rows: Any) -> list[list[str]]:
    return [[shown(cell) for cell in row] for row in rows]


@QUIET
@given(st.lists(TEXTS, min_size=2, max_size=3))
@example(HOSTILE)
def test_csv_has_these_cells_and_none_is_a_formula(cells: list[str]) -> None:
    text = writers.to_csv(table(*cells))
    text.encode()
    _, row, other = csv.reader(StringIO(text, newline=""))
    assert [shown(cell.removeprefix("'")) for cell in row] == [shown(cell.removeprefix("'")) for cell in cells]
    assert other == ["x"] * len(cells)
    assert not any(cell.lstrip()[:1] in ("=", "+", "-", "@") and cell for cell in row)
    assert len(text.splitlines()) == 3


@QUIET
@given(st.lists(TEXTS, min_size=2, max_size=3))
@example(HOSTILE)
def test_markdown_has_one_table_of_these_words(cells: list[str]) -> None:
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(writers.to_markdown(table(*cells)))
    kinds = [token.type for token in tokens]
    assert kinds.count("table_open") == 1 and not {"html_block", "fence", "code_block"} & set(kinds)
    inner = [child for token in tokens for child in token.children or []]
    assert {child.type for child in inner} <= {"text", "text_special"}
    found = [
        shown(_words(token)) for token, before in zip(tokens[1:], tokens, strict=False) if before.type == "td_open"
    ]
    assert found[: len(cells)] == [shown(cell) for cell in cells]


def _words(token: Any) -> str:
    return "".join(child.content for child in token.children)


class Page(HTMLParser):
    """Texts of cells, and every tag and attribute that a page has."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.cells: list[str] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag == "td":
            self._in_cell = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data


TAGS = {"html", "head", "meta", "title", "style", "body", "table", "caption", "b", "thead", "tr", "th", "tbody", "td"}


@QUIET
@given(st.lists(TEXTS, min_size=2, max_size=3))
@example(HOSTILE)
def test_a_page_has_no_tags_but_ours_and_these_words(cells: list[str]) -> None:
    page = Page()
    page.feed(writers.to_html(table(*cells)))
    assert page.tags <= TAGS and page.attributes <= {"lang", "charset", "colspan", "class"}
    assert plain([page.cells[: len(cells)]]) == plain([cells])


# What LaTeX does with a text: our commands stand for characters; nothing else may be a command.
COMMANDS = {command: sign for sign, command in writers._LATEX.items()}


@QUIET
@given(TEXTS)
def test_latex_has_no_commands_but_those_that_stand_for_characters(text: str) -> None:
    escaped = writers.escape_latex(text)
    pattern = "|".join(map(re.escape, sorted(COMMANDS, key=len, reverse=True)))
    rest = re.sub(pattern, "", escaped)
    assert not set(rest) & set("\\{}$&#%_^~"), rest
    assert not {"\n", "\r"} & set(escaped)
    back = re.sub(pattern, lambda found: COMMANDS[found[0]], escaped)
    # Two hyphens look like a dash, and two apostrophes like quotation marks.
    assert (
        shown(back) == shown(text.replace("''", '"').replace("---", "—").replace("--", "–"))
        or "-" in text
        or "'" in text
    )


@QUIET
@given(TEXTS)
def test_the_report_takes_a_title_for_words(text: str) -> None:
    """Snakemake renders captions as reStructuredText, in which files can be included and HTML be raw."""
    document = docutils.core.publish_doctree(
        f"The run of {escaping.restructured(text)} ends.", settings_overrides={"report_level": 5, "halt_level": 5}
    )
    kinds = {type(node) for node in document.findall()}
    assert kinds <= {docutils.nodes.document, docutils.nodes.paragraph, docutils.nodes.Text} | {
        docutils.nodes.reference  # of an address that stands as it is
    }
    assert not list(document.findall(docutils.nodes.raw))
    for reference in document.findall(docutils.nodes.reference):
        assert reference["refuri"].startswith(("http", "mailto:", "ftp:"))


def test_the_report_of_a_hostile_title(tmp_path: Path) -> None:
    """As Snakemake makes it: Jinja, then reStructuredText."""
    values = yaml.safe_load((ROOT / "config/mini.yaml").read_text())
    values["title"] = "{{ 7 * 7 }} |x| `a <javascript:alert(1)>`_ <script>alert(1)</script> *b* __import__ \\"
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(values))
    config = load(tmp_path / "a.yaml")
    text = (ROOT / "workflow/report/workflow.rst").read_text()
    rendered = jinja2.Environment().from_string(text).render(snakemake={"config": values})
    for source in (rendered, *(registry.caption(entry, config) for entry in registry.FIGURES.values())):
        page = docutils.core.publish_parts(source, writer="html", settings_overrides={"report_level": 5})["body"]
        assert "<script" not in page and "href" not in page and "49" not in page.partition("computed on")[2][:10]
        assert "problematic" not in page
    assert html.escape(values["title"], quote=False) in " ".join(
        docutils.core.publish_parts(rendered, writer="html")["body"].split()
    )


@QUIET
@given(TEXTS)
def test_figures_take_no_text_for_mathematics(text: str) -> None:
    label = Figure().text(0, 0, escaping.drawn(text))
    assert label._preprocess_math(label.get_text()) == (escaping.visible(text), False)


def test_a_title_that_is_no_mathematics_is_drawn() -> None:
    figure = Figure(figsize=(1, 1))
    figure.text(0, 0, "$\\undefined{$")
    with pytest.raises(ValueError, match=r"undefined|Expected"):
        figure.savefig(BytesIO())
    figure.texts[0].set_text(escaping.drawn("$\\undefined{$"))
    figure.savefig(BytesIO())


@QUIET
@given(st.sampled_from(HOSTILE), st.sampled_from(HOSTILE))
@example(HOSTILE[6], HOSTILE[6])
def test_a_datasheet_has_its_headings_and_tables_and_no_html(name: str, value: str) -> None:
    provenance = {"versions": {}, "commit": "0", "seed": 0, "settings_sha256": "0"}
    sheet = {"title": "T", "counts": {name: 3, "weapons": value}, "licence": value, "provenance": provenance}
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(datasheet.markdown(sheet))
    kinds = [token.type for token in tokens]
    assert kinds.count("heading_open") == 4 and kinds.count("table_open") == 1 and "html_block" not in kinds
    inner = {child.type for token in tokens for child in token.children or []}
    # The last line of a datasheet has a name in backticks.
    assert not inner & {"html_inline", "link_open", "image"}


@settings(QUIET, max_examples=25)
@given(st.sampled_from(HOSTILE), st.sampled_from(HOSTILE))
def test_a_model_card_is_the_same_document_whatever_names_are_in_it(title: str, other: str) -> None:
    front, tokens = _card(title, other)
    assert set(front) == {"license", "library_name", "pipeline_tag", "tags", "language"}
    assert front["license"] == (escaping.visible(other) or "unknown")
    ours = _card("T", "l")[1]
    assert [token.type for token in tokens if token.level == 0] == [token.type for token in ours if token.level == 0]
    inner = {child.type for token in tokens for child in token.children or []}
    assert "html_inline" not in inner and "image" not in inner
    links = [child.attrs["href"] for token in tokens for child in token.children or [] if child.type == "link_open"]
    assert links == ["https://arxiv.org/abs/2511.16743"]
    fences = [token for token in tokens if token.type == "fence" and token.info == "yaml"]
    assert yaml.safe_load(fences[0].content) == {"note": title}


def _card(title: str, licence: str) -> tuple[Any, Any]:
    """Front matter and tokens of a card; what it is made of is what `card.facts` gives."""
    note = yaml.safe_dump({"note": title}, sort_keys=False).strip()
    training = {
        "quadruples": 3,
        "inputs_sha256": {title: "0"},
        "tuned_parameters": 3,
        "seconds": 1.0,
        "device": title,
        "provenance": {"commit": licence, "settings": {"method": {}}},
    }
    known = {
        "name": f"saferclip-{title}",
        "identity": {"method": title, "seed": 0},
        "settings": {"base_model": title, "title": title, "licence": licence},
        "hub_id": None,
        "made": training,
        "training": training,
        "edit": None,
        "head": None,
        "made_with": note,
        "results": [card.Row(title, licence, "1", "2", 3)],
        "compared": True,
        "left_out": {},
        "differences": {"open_clip": {"captions": 0.0}},
        "tolerance": 1e-5,
        "commit": licence,
        "versions": {"torch": "2"},
        "model_cfg": {"text_cfg": {"context_length": 77}},
        "encoder": None,
        "pipelines": None,
    }
    with TemporaryDirectory() as folder:
        path = Path(folder, "README.md")
        card.write(path, known, "open_clip")
        _, front, body = path.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)


@pytest.mark.parametrize("text", ["a\nb", "a\tb", "a\0b", "a\x1bb", "a\x7f", "\ud800", "\ufffd", "", "  "])
def test_captions_that_cannot_be_kept_are_refused(text: str) -> None:
    assert text_problem(text) is not None


@pytest.mark.parametrize("text", [*HOSTILE[:16], "\u202eabc\u202c", "\u200d", "x" * 10_000_000])
def test_other_captions_come_back_out_of_a_table_as_they_were(text: str, tmp_path: Path) -> None:
    io.write_table(tmp_path / "t.parquet", [{"id": "a", "safe_caption": text}])
    assert io.read_table(tmp_path / "t.parquet")["safe_caption"].to_pylist() == [text]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_not_written(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        io.write_json(tmp_path / "a.json", {"value": value})
    record = {"method": "m", "seed": 0, "benchmark": "b", "counts": {}, "provenance": {}}
    (tmp_path / "a.json").write_text(json.dumps(record | {"metrics": {"x": {"value": value, "count": 1}}}))
    with pytest.raises(io.DataError, match=r"a\.json: not an evaluation record: metrics\.x\.value"):
        io.read_evaluation(tmp_path / "a.json")
