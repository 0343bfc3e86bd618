"""Adapts what Griffe reads from the source files to the API reference.

- Griffe cannot read compiled modules and finds their pure-Python twins. The docstrings of the compiled modules say
  more, and replace those of the twins if the extension is built.
- A docstring describes arguments that belong together in one entry (`l2, l3: ...`). The reference has a row for each.
- Private base classes are not shown.
"""

import inspect
import re
from contextlib import suppress
from importlib import import_module
from typing import Any

from griffe import Class, Docstring, Extension, Object

_COMPILED = {
    "acgsperf._native.core_py": "acgsperf._core",
    "acgsperf._native.canonical_py": "acgsperf._native.canonical",
}
_SECTION = re.compile(r"^(Args|Attributes):\n((?:^ +.*\n?|^\n(?= ))*)", re.MULTILINE)
_JOINT_ENTRY = re.compile(
    r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+)(?P<text>:.*\n?(?:^(?P=indent) +.*\n?)*)", re.MULTILINE
)


class ReferenceExtension(Extension):
    """Prepares every object before the reference shows it."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Complete the docstring of an object."""
        text = _compiled_docstring(obj)
        if text is not None:
            obj.docstring = Docstring(text, parent=obj, parser="google")
        if obj.docstring is not None:
            obj.docstring.value = _SECTION.sub(_with_single_entries, obj.docstring.value)

    def on_class(self, *, cls: Class, **kwargs: Any) -> None:
        """Hide private base classes."""
        cls.bases = [base for base in cls.bases if not str(base).startswith("_")]


def _compiled_docstring(obj: Object) -> str | None:
    for twin, compiled in _COMPILED.items():
        if obj.path.startswith(f"{twin}.") and not obj.name.startswith("_"):
            with suppress(ImportError, AttributeError):
                found: Any = import_module(compiled)
                for part in obj.path.removeprefix(f"{twin}.").split("."):
                    found = getattr(found, part)
                text = found.__doc__
                # An instance of a builtin type has the docstring of its type.
                return inspect.cleandoc(text) if isinstance(text, str) and text != type(found).__doc__ else None
    return None


def _with_single_entries(section: re.Match[str]) -> str:
    return f"{section[1]}:\n" + _JOINT_ENTRY.sub(_split, section[2])


def _split(entry: re.Match[str]) -> str:
    text = entry["text"] if entry["text"].endswith("\n") else entry["text"] + "\n"
    return "".join(f"{entry['indent']}{name}{text}" for name in entry["names"].split(", "))
