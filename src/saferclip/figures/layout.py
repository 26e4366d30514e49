"""A table, and how its cells read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from saferclip.figures.results import Estimate

Cell = str | bool | int | float | Estimate | None

NOTHING = "–"  # a cell without a value, where people read it


@dataclass(frozen=True)
class Column:
    """One column: what programs call it, what people call it, and how its numbers look."""

    key: str
    header: str
    group: str = ""  # columns beside each other with one group share a header above
    unit: str = ""
    digits: int = 1
    width: float = 0  # of running text in print, as a share of the text's width; 0: one line
    merge: bool = False  # where people read, a value that repeats the one above is left out
    detail: bool = False  # left out in LaTeX, where width is scarce

    @property
    def label(self) -> str:
        return f"{self.header} ({self.unit})" if self.unit else self.header


@dataclass(frozen=True)
class Table:
    """Rows of cells below columns, with what a reader has to know to understand them."""

    title: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table '{self.title}': a row of {len(row)} cells below {len(self.columns)} columns")

    @property
    def text(self) -> str:
        """Caption and notes, as one paragraph."""
        return " ".join([self.caption, *self.notes])

    def is_text(self, place: int) -> bool:
        """Whether a column holds words: these stand left, numbers stand right."""
        return any(isinstance(row[place], str | bool) for row in self.rows)

    def words(self) -> list[list[str]]:
        """All cells as people read them."""
        return [
            ["" if place in repeated else words(cell, self.columns[place].digits) for place, cell in enumerate(row)]
            for row, repeated in zip(self.rows, self.repeated(), strict=True)
        ]

    def repeated(self) -> list[set[int]]:
        """Places of the cells in each row that only repeat the cell above, in columns to be merged."""
        merged = [place for place, column in enumerate(self.columns) if column.merge]
        found: list[set[int]] = [set() for _ in self.rows]
        for number in range(1, len(self.rows)):
            for place in merged:
                # A new value in one column starts a new group in the columns after it.
                if self.rows[number][place] != self.rows[number - 1][place]:
                    break
                found[number].add(place)
        return found

    def without_details(self) -> Table:
        """The table as it goes to print."""
        kept = [place for place, column in enumerate(self.columns) if not column.detail]
        rows = [[row[place] for place in kept] for row in self.rows]
        return replace(self, columns=[self.columns[place] for place in kept], rows=rows)


def words(cell: Cell, digits: int = 1) -> str:
    """A cell as people read it: ``27.9 ± 0.4 [25.1, 30.7]``."""
    match cell:
        case None:
            return NOTHING
        case bool():
            return "yes" if cell else "no"
        case Estimate():
            return " ".join(part for part in parts(cell, digits) if part)
        case float():
            return _number(cell, digits)
        case int():
            return f"{cell:,}"
        case _:
            return cell


def parts(cell: Estimate, digits: int) -> tuple[str, str, str]:
    """Mean, spread and interval of an estimate in words; empty where there is none."""
    digits = digits if cell.digits is None else cell.digits
    spread = "" if cell.sd is None else f"± {_number(cell.sd, digits)}"
    bounded = cell.low is not None and cell.high is not None
    interval = f"[{_number(cell.low, digits)}, {_number(cell.high, digits)}]" if bounded else ""
    return _number(cell.mean, digits), spread, interval


def _number(value: float | None, digits: int) -> str:
    """A number with a proper minus sign, and without one where it rounds to zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")
