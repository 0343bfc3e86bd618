"""Tables on terminals of every width."""

import io

import pytest
from rich.console import Console

from acgsperf.workbench.tables import print_table

COLUMNS = ("Metric", "Target", "Achieved", "Status")
ROWS = [
    ("Throughput", "> 1,000 requests/s", "39,614 requests/s", "met"),
    "a heading",
    ("L1 tier", "-", "97.50 % hits, 0 promotions, 0 demotions", ("missed", "bold red")),
    ("[bold]not markup[/]", "", "x", ""),
]


def printed(width, rows=ROWS, **options):
    file = io.StringIO()
    print_table(Console(width=width, file=file), COLUMNS, rows, **options)
    return file.getvalue()


@pytest.mark.parametrize("width", range(20, 130, 5))
def test_no_word_is_cut_and_no_line_is_too_long(width):
    found = printed(width, title="a title of some words", caption="and a caption")
    words = {word for row in ROWS if not isinstance(row, str) for cell in row for word in str(cell).split()}
    assert {word for word in words if len(word) <= 20 and "(" not in word and "'" not in word} - {"-"} <= set(
        found.split()
    )
    assert "missed" in found
    assert all(len(line) <= width for line in found.splitlines())
    assert {"title", "caption", "heading", "markup[/]"} <= set(found.split())


@pytest.mark.parametrize("width", [20, 100])
def test_control_characters_are_escaped(width):
    nasty = "\x1b[2J"
    found = printed(width, [(nasty, nasty, (nasty, "red"), "two\nlines"), nasty], title=nasty, caption=nasty)
    assert found.count(r"\x1b[2J") == 6
    assert "\x1b" not in found
    assert {"two", "lines"} <= set(found.split())


def test_a_narrow_terminal_gets_a_paragraph_for_each_row():
    assert printed(30, ROWS[:1]).splitlines() == [
        "Throughput",
        "  Target: > 1,000 requests/s",
        "  Achieved: 39,614 requests/s",
        "  Status: met",
    ]


def test_a_first_column_is_never_broken():
    lines = printed(100, [("a name of many words", "", "", "")]).splitlines()
    assert any(line.startswith("a name of many words") for line in lines)
