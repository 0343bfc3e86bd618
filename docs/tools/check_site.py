"""Checks the built site: it loads nothing from other hosts, and its reference has every public name.

Run after the build, as `make docs` does: `python docs/tools/check_site.py`.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SITE: Final = ROOT / "site"

# The packages whose `__all__` is documented, each under its own name.
PACKAGES: Final = (
    "acgsperf",
    "acgsperf.asgi",
    "acgsperf.backplane",
    "acgsperf.cache",
    "acgsperf.compat",
    "acgsperf.fingerprint",
    "acgsperf.metrics",
    "acgsperf.monitor",
    "acgsperf.pool",
    "acgsperf.service",
    "acgsperf.tiers",
)
# Attributes whose value a browser loads by itself. A link that a reader follows is not among them.
LOADED: Final = {
    "embed": {"src"},
    "iframe": {"src"},
    "img": {"src", "srcset"},
    "link": {"href"},
    "object": {"data"},
    "script": {"src"},
    "source": {"src", "srcset"},
}
# Relations of <link> that load nothing.
UNLOADED_LINKS: Final = {"alternate", "author", "canonical", "edit", "license", "next", "prev"}
# Parts of the theme that fetch something from outside when a page has them.
FETCHING_PARTS: Final = ('class="pyodide', 'class="glightbox', 'data-md-component="source"')
OUTSIDE: Final = re.compile(r"(?:https?:)?//", re.IGNORECASE)


class Loads(HTMLParser):
    """Collects the addresses that a page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids.add(values.get("id", ""))
        if tag == "link" and set(values.get("rel", "").split()) <= UNLOADED_LINKS:
            return
        self.addresses += [values[name] for name in LOADED.get(tag, ()) if name in values]
        if "style" in values:
            self.addresses += css_addresses(values["style"])


def css_addresses(text: str) -> list[str]:
    """The addresses that a style sheet loads."""
    return re.findall(r"""url\(\s*['"]?([^'")]+)""", text) + re.findall(r"""@import\s*['"]([^'"]+)""", text)


def outside_loads() -> Iterator[str]:
    for page in sorted(SITE.rglob("*.html")):
        text = page.read_text()
        loads = Loads()
        loads.feed(text)
        styles = " ".join(re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL))
        for address in filter(OUTSIDE.match, loads.addresses + css_addresses(styles)):
            yield f"{page.relative_to(SITE)} loads {address}"
        for part in FETCHING_PARTS:
            if part in text:
                yield f"{page.relative_to(SITE)} has {part}, for which the theme loads a script from outside"
        if 'class="mermaid"' in text and "javascripts/mermaid.js" not in text:
            yield f"{page.relative_to(SITE)} has a diagram and not our copy of Mermaid"
    for sheet in sorted(SITE.rglob("*.css")):
        for address in filter(OUTSIDE.match, css_addresses(sheet.read_text())):
            yield f"{sheet.relative_to(SITE)} loads {address}"


def missing_names() -> Iterator[str]:
    documented: set[str] = set()
    for page in (SITE / "reference").glob("*.html"):
        loads = Loads()
        loads.feed(page.read_text())
        documented |= loads.ids
    # A name that a package exports again is documented once, under `acgsperf` if it is there.
    top = import_module("acgsperf")
    for package in PACKAGES:
        for name in import_module(package).__all__:
            paths = {f"{package}.{name}"} | ({f"acgsperf.{name}"} if name in top.__all__ else set())
            # `acgsperf.fingerprint` is the function and the module that has it.
            paths.add(f"{package}.{name}.{name}")
            if not paths & documented:
                yield f"the reference has no {package}.{name}"


def main() -> int:
    if not (SITE / "index.html").exists():
        print(f"{SITE} has no index.html: run `make docs`", file=sys.stderr)
        return 2
    problems = [*outside_loads(), *missing_names()]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
