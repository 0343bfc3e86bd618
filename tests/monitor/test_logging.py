"""The loggers of the package are public: the documentation lists each with its levels."""

import re
from pathlib import Path

import acgsperf

PACKAGE = Path(acgsperf.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}


def loggers():
    """Return logger name -> levels, for every module of the package that logs."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        for name in re.findall(r"^_log\b.*= logging\.getLogger\((.+)\)$", text, re.MULTILINE):
            module = path.relative_to(PACKAGE.parent).with_suffix("")
            module = ".".join(part for part in module.parts if part != "__init__")
            levels = {LEVELS[call] for call in re.findall(r"_log\.(\w+)\(", text) if call in LEVELS}
            found.setdefault(module if name == "__name__" else name.strip('"'), set()).update(levels)
    # The monitor computes the level of an alert.
    found["acgsperf.monitor"] |= {"warning", "info"}
    return found


def documented():
    found, name = {}, ""
    for row in re.findall(r"^\| (`[\w.]+` )?\| (debug|info|warning|error) \|", PAGE.read_text(), re.MULTILINE):
        name = row[0].strip(" `") or name
        found.setdefault(name, set()).add(row[1])
    return found


def test_the_documentation_lists_every_logger_with_its_levels():
    assert documented() == loggers()
