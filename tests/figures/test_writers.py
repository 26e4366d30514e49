"""Every format holds what the table holds, whatever characters are in it."""

from __future__ import annotations

import csv
import html
import re
import shutil
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saferclip.figures import registry, table
from saferclip.figures.layout import NOTHING, Column, Table, words
from saferclip.figures.results import Estimate
from saferclip.figures.writers import (
    escape_latex,
    escape_markdown,
    to_csv,
    to_html,
    to_latex,
    to_markdown,
    visible,
)

NASTY = 'a|b & 100% of $5 #1_x {y} ~ ^ \\ <b>"q" [z]* `c`'
COLUMNS = [
    Column("name", "Name", merge=True),
    Column("test/recall@1", "R@1", group="ViSU_mini", unit="%"),
    Column("n", "n"),
    Column("ok", "Within"),
    Column("note", "Note", detail=True),
]
ROWS = [
    ["first", Estimate(27.94, 0.44, 25.06, 30.71), 1000, True, NASTY],
    ["first", Estimate(-0.04, None, -1.25, 1.0), 5, False, None],
    [NASTY, None, 7, True, "x, y"],
]


@pytest.fixture
def example() -> Table:
    return Table("A & B", "Caption 100%.", COLUMNS, ROWS, ["Note_1."])


def test_words_of_cells() -> None:
    assert words(Estimate(27.94, 0.44, 25.06, 30.71)) == "27.9 ± 0.4 [25.1, 30.7]"
    assert words(Estimate(27.94)) == "27.9"
    assert words(Estimate(0.6184, digits=3), 1) == "0.618"
    assert words(-3.14159, 2) == "−3.14"
    assert words(-0.04) == "0.0"
    assert words(12345) == "12,345"
    assert (words(True), words(False), words(None), words("x")) == ("yes", "no", NOTHING, "x")


def test_rows_must_fit_the_columns() -> None:
    with pytest.raises(ValueError, match="'T': a row of 2 cells below 1 columns"):
        Table("T", "", [Column("a", "A")], [["x", "y"]])


def test_only_what_repeats_the_group_above_is_left_out() -> None:
    columns = [Column("a", "A", merge=True), Column("b", "B", merge=True), Column("c", "C")]
    rows = [["x", "u", "1"], ["x", "u", "1"], ["x", "v", "1"], ["y", "v", "1"]]
    shown = Table("T", "", columns, rows).words()
    # In the last row the second column starts a new group although its value is that above.
    assert shown == [["x", "u", "1"], ["", "", "1"], ["", "v", "1"], ["y", "v", "1"]]


def test_csv_has_every_number_in_a_cell_of_its_own(example: Table) -> None:
    rows = list(csv.reader(StringIO(to_csv(example))))
    header = ["name", "test/recall@1 [%]", "test/recall@1 sd [%]", "test/recall@1 low [%]", "test/recall@1 high [%]"]
    assert rows == [
        [*header, "n", "ok", "note"],
        ["first", "27.94", "0.44", "25.06", "30.71", "1000", "true", NASTY],
        ["first", "-0.04", "", "-1.25", "1", "5", "false", ""],
        [NASTY, "", "", "", "", "7", "true", "x, y"],
    ]


def test_csv_leaves_out_parts_that_no_estimate_has() -> None:
    only = Table("T", "", [Column("a", "A")], [[Estimate(1.5, 0.5)], [Estimate(2.5)]])
    assert to_csv(only) == "a,a sd\n1.5,0.5\n2.5,\n"


def test_csv_quotes_what_needs_it() -> None:
    awkward = Table("T", "", [Column("a", "A"), Column("b", "B")], [['say "yes", or no', "line\nbreak"]])
    assert to_csv(awkward) == 'a,b\n"say ""yes"", or no",line break\n'


def cells_of_markdown(line: str) -> list[str]:
    """Cells between bars that are not escaped, with escapes undone, as GitHub reads them."""
    parts = re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]
    return [re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", part.strip()) for part in parts]


def test_markdown_is_a_table_of_the_same_words(example: Table) -> None:
    lines = to_markdown(example).splitlines()
    assert lines[0] == "### A \\& B"
    assert lines[2] == "Caption 100%. Note\\_1."
    assert cells_of_markdown(lines[4]) == ["Name", "ViSU_mini: R@1 (%)", "n", "Within", "Note"]
    assert lines[5] == "| :-- | --: | --: | :-- | :-- |"
    assert cells_of_markdown(lines[6]) == ["first", "27.9 ± 0.4 [25.1, 30.7]", "1,000", "yes", NASTY]
    assert cells_of_markdown(lines[7]) == ["", "0.0 [−1.2, 1.0]", "5", "no", NOTHING]
    assert len(lines) == 9


@given(st.text(max_size=30))
def test_markdown_escapes_can_be_undone(text: str) -> None:
    escaped = escape_markdown(text)
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", escaped) == visible(text)
    assert not re.search(r"(?<!\\)(\\\\)*[|*_`<$]", escaped)
    assert "\n" not in escaped


def test_latex_escapes_every_special_character() -> None:
    assert escape_latex(r"\ { } & % $ # _ ~ ^") == (
        r"\textbackslash{} \{ \} \& \% \$ \# \_ \textasciitilde{} \textasciicircum{}"
    )
    assert escape_latex("T*→V∪V* ≤ −3 ± 1") == (
        r"T\textasteriskcentered{}\ensuremath{\rightarrow}V\ensuremath{\cup}V\textasteriskcentered{} "
        r"\ensuremath{\leq} \ensuremath{-}3 \ensuremath{\pm} 1"
    )
    assert escape_latex('[a] "b" <c> |d|') == (r"{[}a{]} ''b'' \textless{}c\textgreater{} \textbar{}d\textbar{}")


@given(st.text(max_size=30))
def test_latex_leaves_no_special_character_bare(text: str) -> None:
    commands = r"\\[a-zA-Z]+(?:\{\\?[a-z-]*\})?|\\[{}&%$#_]|\{\[\}|\{\]\}"
    assert not re.search(r"[\\{}&%$#_~^\n\x00-\x1f]", re.sub(commands, "", escape_latex(text)))


def test_control_characters_become_visible_or_spaces() -> None:
    assert visible("a\tb\nc\x1b[31md\x00e\u202ef\u2028g") == "a b c\\x1b[31md\\x00e\\u202ef g"
    for write in (to_csv, to_markdown, to_html, lambda shown: to_latex(shown, "t")):
        text = write(Table("T", "", [Column("a", "A")], [["x\x1b\x07y"]]))
        assert "\x1b" not in text
        assert "\x07" not in text


def test_latex_uses_booktabs_groups_and_stacked_intervals(example: Table) -> None:
    text = to_latex(example, "main")
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == r"% \usepackage{array,booktabs}"
    assert r"\caption{\textbf{A \& B.} Caption 100\%. Note\_1.}" in lines
    assert r"\label{tab:main}" in lines
    # The column of details stays out.
    assert r"\begin{tabular}{@{}lrrl@{}}" in lines
    # Columns beside each other without a group are one gap: n and Within.
    header = next(line for line in lines if "multicolumn" in line)
    assert [cell.strip() for cell in header.removesuffix(r"\\").split("&")] == [
        "",
        r"\multicolumn{1}{c}{ViSU\_mini}",
        "",
        "",
    ]
    assert r"\cmidrule(lr){2-2}" in lines
    assert r"first & \estimate{27.9{\scriptsize\,\ensuremath{\pm} 0.4}}{{[}25.1, 30.7{]}} & 1,000 & yes \\" in lines
    # The second row belongs to the first one's group; the third does not.
    assert lines[lines.index(r"\addlinespace[2pt]") - 1].startswith(
        r"& \estimate{0.0}{{[}\ensuremath{-}1.2, 1.0{]}} & 5"
    )
    assert [lines.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == sorted(
        lines.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")
    )


def test_html_shows_the_same_words_and_needs_nothing_from_outside(example: Table) -> None:
    text = to_html(example)
    cells = [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", text)]
    assert cells == [cell for row in example.words() for cell in row]
    assert '<th colspan="1">ViSU_mini</th>' in text
    assert "<b>A &amp; B.</b> Caption 100%. Note_1." in text
    assert not re.search(r"https?:|src=|<script|<link", text)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_of_every_table_compiles_and_fits_a_page(run: Any, tmp_path: Path) -> None:
    for name in registry.TABLES:
        table.write(name, run.settings, run.folder, tmp_path / name)
    nasty = Table("N", NASTY, [Column("a", NASTY, group=NASTY)], [[NASTY], ["[b]"], ["*c"]])
    (tmp_path / "nasty.tex").write_text(to_latex(nasty, "nasty"), encoding="utf-8")
    inputs = "".join(rf"\input{{{name}.tex}}\clearpage " for name in (*registry.TABLES, "nasty"))
    document = r"\documentclass[a4paper]{article}\usepackage[margin=2cm]{geometry}\usepackage{array,booktabs}"
    (tmp_path / "all.tex").write_text(document + rf"\begin{{document}}{inputs}\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "all.log").read_text(encoding="latin-1")
    assert not re.search(r"Overfull .hbox \(\d{2,}|Float too large", log.partition("nasty.tex")[0])
