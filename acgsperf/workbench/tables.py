"""Tables for a terminal of any width: words are never cut."""

from collections.abc import Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from acgsperf.printable import printable

__all__ = ["Cell", "print_table"]

# Text, or text and a style. Cells may hold anything: of Rich's markup and control characters, only line breaks have an
# effect.
Cell = str | tuple[str, str]


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell] | str],
    *,
    title: str = "",
    caption: str = "",
    right: Sequence[str] = (),
) -> None:
    """Print a table, or, where its longest words do not fit side by side, a paragraph for each row.

    Args:
        console: where to print.
        columns: their headings.
        rows: the cells of each row; a string alone is a heading between rows.
        title: a line above the table.
        caption: lines below the table.
        right: headings of the columns that are aligned on the right.
    """
    if title:
        console.print(_text((title, "bold")))
    if _narrowest(columns, rows) <= console.width:
        _print_wide(console, columns, rows, right)
    else:
        _print_narrow(console, columns, rows)
    if caption:
        console.print(_text((caption, "dim")))


def _text(cell: Cell) -> Text:
    text, style = (cell, "") if isinstance(cell, str) else cell
    return Text("\n".join(map(printable, text.split("\n"))), style)


def _narrowest(columns: Sequence[str], rows: Sequence[Sequence[Cell] | str]) -> int:
    """Return the width at which no word has to be cut; a first column is never broken at all."""
    width = 0
    for at, column in enumerate(columns):
        cells = [column, *(_text(row[at]).plain for row in rows if not isinstance(row, str))]
        headings = [row for row in rows if isinstance(row, str)]
        words = cells + headings if at == 0 else [word for cell in cells for word in cell.split()]
        width += max(map(len, words), default=0) + 2
    return width


def _print_wide(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[Cell] | str], right: Sequence[str]
) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    for at, column in enumerate(columns):
        justify: Literal["left", "right"] = "right" if column in right else "left"
        options: dict[str, Any] = {"no_wrap": True} if at == 0 else {}
        table.add_column(column, justify=justify, **options)
    for row in rows:
        if isinstance(row, str):
            table.add_section()
            table.add_row(_text((row, "bold")))
        else:
            table.add_row(*map(_text, row))
    console.print(table)


def _print_narrow(console: Console, columns: Sequence[str], rows: Sequence[Sequence[Cell] | str]) -> None:
    for row in rows:
        if isinstance(row, str):
            console.print(_text((row, "bold")))
            continue
        console.print(_text(row[0]))
        for column, cell in zip(columns[1:], row[1:], strict=True):
            text = _text(cell)
            if text.plain not in {"", "-"}:
                console.print(Padding(Text.assemble(f"{column}: ", text), (0, 0, 0, 2), expand=False))
