"""Lay out a table as CSV (for programs), Markdown, LaTeX and HTML (for people)."""

from __future__ import annotations

import csv
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from itertools import groupby

from saferclip.escaping import markdown as escape_markdown
from saferclip.escaping import spreadsheet, visible
from saferclip.figures.layout import Cell, Column, Table, parts, words
from saferclip.figures.results import Estimate


def to_csv(table: Table) -> str:
    """RFC 4180 with full precision; an estimate becomes columns for its mean, sd, low and high.

    Captions and notes stay out: every line is data. A text that a spreadsheet would take for a formula begins with an
    apostrophe.
    """
    pieces = [(place, piece) for place in range(len(table.columns)) for piece in _pieces(table, place)]
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([_csv_header(table.columns[place], piece) for place, piece in pieces])
    writer.writerows([[_csv_cell(row[place], piece) for place, piece in pieces] for row in table.rows])
    return stream.getvalue()


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured table below its title and caption."""
    header = [f"{column.group}: {column.label}" if column.group else column.label for column in table.columns]
    rule = [":--" if table.is_text(place) else "--:" for place in range(len(table.columns))]
    rows = [_markdown_row(rule), *(_markdown_row(map(escape_markdown, row)) for row in table.words())]
    head = [f"### {escape_markdown(table.title)}", "", escape_markdown(table.text), ""]
    return "\n".join([*head, _markdown_row(map(escape_markdown, header)), *rows, ""])


def to_latex(table: Table, label: str) -> str:
    """A float with booktabs rules, intervals below their means; its first line names what it needs."""
    table = table.without_details()
    places = range(len(table.columns))
    size = "footnotesize" if any(column.width for column in table.columns) else "small"
    return "\n".join(
        [
            r"% \usepackage{array,booktabs}",
            r"\providecommand{\estimate}[2]{\begin{tabular}[t]{@{}r@{}}#1\\[-2pt]{\scriptsize #2}\end{tabular}}",
            r"\providecommand{\heading}[2]{\begin{tabular}[b]{@{}#1@{}}#2\end{tabular}}",
            r"\begin{table*}[t]",
            rf"  \centering\{size}\setlength{{\tabcolsep}}{{4pt}}",
            rf"  \caption{{\textbf{{{escape_latex(table.title)}.}} {escape_latex(table.text)}}}",
            rf"  \label{{tab:{label}}}",
            rf"  \begin{{tabular}}{{@{{}}{''.join(_latex_column(table, place) for place in places)}@{{}}}}",
            r"    \toprule",
            *(f"    {line}" for line in _latex_groups(table.columns)),
            "    " + " & ".join(_latex_header(table, place) for place in places) + r" \\",
            r"    \midrule",
            *(f"    {line}" for line in _latex_rows(table)),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table*}",
            "",
        ]
    )


def to_html(table: Table) -> str:
    """A page of its own, with no outside resources, for the report."""
    groups = [(name, len(list(members))) for name, members in groupby(table.columns, key=lambda column: column.group)]
    above = "".join(f'<th colspan="{count}">{_html(name)}</th>' for name, count in groups)
    grouped = f'<tr class="groups">{above}</tr>\n' if any(name for name, _ in groups) else ""
    heads = _html_row("th", table, [column.label for column in table.columns])
    rows = "\n".join(_html_row("td", table, row) for row in table.words())
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_html(table.title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<table>\n"
        f"<caption><b>{_html(table.title)}.</b> {_html(table.text)}</caption>\n"
        f"<thead>\n{grouped}{heads}\n</thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</body>\n</html>\n"
    )


WRITERS: Mapping[str, Callable[[Table, str], str]] = {
    "csv": lambda table, _: to_csv(table),
    "md": lambda table, _: to_markdown(table),
    "tex": to_latex,
    "html": lambda table, _: to_html(table),
}

LONGEST_WORD = 24  # characters

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; margin: 2em; }
table { border-collapse: collapse; border-top: 2px solid #222; border-bottom: 2px solid #222; }
caption { text-align: left; max-width: 60em; padding-bottom: 1em; }
th, td { padding: .35em .8em; vertical-align: top; }
thead tr:last-child th { border-bottom: 1px solid #222; vertical-align: bottom; }
.groups th { text-align: center; padding-bottom: 0; }
.text, .word { text-align: left; } .number { text-align: right; } td.number, td.word { white-space: nowrap; }
tbody tr:nth-child(even) { background: #f5f5f5; }
"""

_LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # after the end of a line, LaTeX would take a bracket for an option
    "]": "{]}",
    "*": r"\textasteriskcentered{}",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "−": r"\ensuremath{-}",
    "±": r"\ensuremath{\pm}",
    "×": r"\ensuremath{\times}",
    "→": r"\ensuremath{\rightarrow}",
    "∪": r"\ensuremath{\cup}",
    "≤": r"\ensuremath{\leq}",
    "≥": r"\ensuremath{\geq}",
    "≪": r"\ensuremath{\ll}",
    "≈": r"\ensuremath{\approx}",
}


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it literally; the signs that our tables use become commands."""
    return "".join(_LATEX.get(character, character) for character in visible(text))


def _pieces(table: Table, place: int) -> list[str]:
    """Which parts of the estimates in a column have a value in some row; the mean is ``""``."""
    estimates = [cell for row in table.rows if isinstance(cell := row[place], Estimate)]
    return ["", *(part for part in ("sd", "low", "high") if any(getattr(cell, part) is not None for cell in estimates))]


def _csv_header(column: Column, piece: str) -> str:
    name = f"{column.key} {piece}" if piece else column.key
    return f"{name} [{column.unit}]" if column.unit else name


def _csv_cell(cell: Cell, piece: str) -> str:
    if isinstance(cell, Estimate):
        cell = getattr(cell, piece or "mean")
    elif piece:
        return ""
    match cell:
        case None:
            return ""
        case bool():
            return str(cell).lower()
        case float():
            return f"{cell:.10g}"
        case _:
            return spreadsheet(str(cell))


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latex_column(table: Table, place: int) -> str:
    width = table.columns[place].width
    return rf">{{\raggedright\arraybackslash}}p{{{width:.2f}\linewidth}}" if width else _latex_side(table, place)


def _latex_side(table: Table, place: int) -> str:
    return "l" if table.is_text(place) else "r"


def _latex_groups(columns: Sequence[Column]) -> list[str]:
    """The line of group headers and the rules below it, or nothing."""
    if not any(column.group for column in columns):
        return []
    cells, rules, start = [], [], 1
    for name, members in groupby(columns, key=lambda column: column.group):
        count = len(list(members))
        cells.append(rf"\multicolumn{{{count}}}{{c}}{{{escape_latex(name)}}}" if name else " & ".join([""] * count))
        rules += [rf"\cmidrule(lr){{{start}-{start + count - 1}}}"] if name else []
        start += count
    return [" & ".join(cells) + r" \\", " ".join(rules)]


def _latex_header(table: Table, place: int) -> str:
    """A header; over numbers, its words stand below each other."""
    label = table.columns[place].label
    text = r"\\".join(escape_latex(line) for line in ([label] if table.is_text(place) else label.split()))
    return rf"\heading{{{_latex_side(table, place)}}}{{{text}}}"


def _latex_rows(table: Table) -> list[str]:
    """Rows, with a little space before each new group, or between all of them if they hold running text."""
    grouped = any(column.merge or column.width for column in table.columns)
    lines: list[str] = []
    for row, repeated in zip(table.rows, table.repeated(), strict=True):
        if lines and grouped and not repeated:
            lines.append(r"\addlinespace[2pt]")
        cells = ["" if place in repeated else _latex_cell(table.columns[place], cell) for place, cell in enumerate(row)]
        lines.append(" & ".join(cells) + r" \\")
    return lines


def _latex_cell(column: Column, cell: Cell) -> str:
    """A number in full size; its interval smaller below it, its spread smaller beside it or there."""
    if not isinstance(cell, Estimate):
        return escape_latex(words(cell, column.digits))
    mean, spread, interval = (escape_latex(part) for part in parts(cell, column.digits))
    if not (spread and interval):
        return rf"\estimate{{{mean}}}{{{spread or interval}}}" if spread or interval else mean
    return rf"\estimate{{{mean}{{\scriptsize\,{spread}}}}}{{{interval}}}"


def _html(text: str) -> str:
    return html.escape(visible(text))


def _html_row(tag: str, table: Table, texts: Sequence[str]) -> str:
    cells = [f'<{tag} class="{_html_kind(table, place)}">{_html(text)}</{tag}>' for place, text in enumerate(texts)]
    return f"<tr>{''.join(cells)}</tr>"


def _html_kind(table: Table, place: int) -> str:
    """Numbers and short words are kept on one line, running text is not."""
    if not table.is_text(place):
        return "number"
    return "word" if all(len(str(row[place])) <= LONGEST_WORD for row in table.rows) else "text"
