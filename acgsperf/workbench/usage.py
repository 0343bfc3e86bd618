"""Checks what the user typed; a message names the option, the value and what was expected.

Options reach the commands as text and are checked here, because the messages of the library that parses the command
line differ from version to version and do not name the value.
"""

import math
from collections.abc import Iterable

from acgsperf.errors import AcgsperfError

__all__ = ["UsageError", "choice", "counted", "explained", "listed", "number", "shown", "subset", "whole_number"]

_HELP = " (--help shows what is possible)"


class UsageError(AcgsperfError, ValueError):
    """The command line cannot be used as it is."""


def whole_number(option: str, text: str, low: int, high: int) -> int:
    """Parse `text` as an integer between `low` and `high`."""
    try:
        found = int(text) if len(text) <= 100 else None
    except ValueError:
        found = None
    if found is None or not low <= found <= high:
        raise UsageError(f"{option} must be a whole number from {low:,} to {high:,}, got {shown(text)}")
    return found


def number(option: str, text: str, low: float, high: float) -> float:
    """Parse `text` as a number between `low` and `high`."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    # NaN fails this comparison.
    if not low <= found <= high:
        raise UsageError(f"{option} must be a number from {low:,g} to {high:,.15g}, got {shown(text)}")
    return found


def choice(option: str, text: str, choices: Iterable[str]) -> str:
    """One of the choices."""
    choices = list(choices)
    if text not in choices:
        raise UsageError(f"{option} must be {listed(choices)}, got {shown(text)}")
    return text


def subset(option: str, text: str, required: str, others: Iterable[str]) -> frozenset[str]:
    """Return the names in a list that is separated by commas: the required one, and any of the others."""
    others = list(others)
    names = [name.strip() for name in text.lower().split(",")]
    found = frozenset(names)
    if not {required} <= found <= {required, *others}:
        raise UsageError(f"{option} must be {required}, or {required} with {', '.join(others)}, got {shown(text)}")
    if len(names) > len(found):
        raise UsageError(f"{option} must have each name once, got {shown(text)}")
    return found


def counted(count: int, noun: str) -> str:
    """A number and its noun: `1 line`, `1,000 lines`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def explained(error: Exception, commands: Iterable[str]) -> str:
    """Our message for an error of the library that parses the command line.

    Args:
        error: a usage error of click, or of what typer has in its place.
        commands: the names of all commands.
    """
    kind = type(error).__name__
    message = str(getattr(error, "message", "") or error)
    quoted = message.split("'")[1] if message.count("'") >= 2 else ""
    parameter = getattr(error, "param", None)
    if kind == "NoSuchOption":
        name = str(getattr(error, "option_name", "") or quoted)
        similar = list(getattr(error, "possibilities", None) or ())
        return f"there is no option {shown(name)}{_perhaps(similar)}"
    if kind == "MissingParameter":
        return f"the argument {_name_of(parameter)} is missing{_HELP}"
    if kind == "BadOptionUsage":
        name = str(getattr(error, "option_name", "") or quoted)
        if "does not take" in message:
            return f"the option {name} takes no value{_HELP}"
        return f"the option {name} needs a value{_HELP}"
    if "command" in message.lower() and quoted:
        return f"there is no command {shown(quoted)}, expected {listed(sorted(commands))}"
    if "missing command" in message.lower():
        return f"a command is missing, expected {listed(sorted(commands))}{_HELP}"
    if "extra argument" in message.lower():
        extra = message[message.rfind("(") + 1 : message.rfind(")")]
        return f"there is one argument too many, {shown(extra)}{_HELP}"
    return f"the command line cannot be used: {message}{_HELP}"


def _name_of(parameter: object) -> str:
    metavar = getattr(parameter, "metavar", None) or getattr(parameter, "name", None)
    return str(metavar or "").upper()


def _perhaps(similar: list[str]) -> str:
    return f", perhaps {listed(similar)}" if similar else _HELP


def listed(names: list[str]) -> str:
    """Return names for a sentence: `a, b or c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def shown(text: str) -> str:
    """Return a text in quotes, shortened if it is long."""
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}..."
