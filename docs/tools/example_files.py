"""Writes examples of the documentation to files, for type checkers and tests.

    python docs/tools/example_files.py FOLDER

`FOLDER/tutorial` gets the files of the tutorial and its tests, and a configuration with which pyright is strict.
`FOLDER/decorated` gets every other example with a cached function.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
TESTING = ROOT / "docs" / "testing.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    """Return the blocks of Python of a page."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def file_name(block: str) -> str | None:
    """Return the name of the file that a block is, which is a comment in its first line; None for other blocks."""
    found = re.match(r"# (\w+\.py)\n", block)
    return found and found[1]


def files() -> Iterator[tuple[str, str]]:
    """Yield the path and the content of each file."""
    yield "tutorial/pyrightconfig.json", json.dumps({"typeCheckingMode": "strict"})
    for block in [*blocks(TUTORIAL), *blocks(TESTING)]:
        if name := file_name(block):
            yield f"tutorial/{name}", block
    for page in PAGES:
        for number, block in enumerate(blocks(page)):
            if "cached(" in block and file_name(block) is None:
                yield f"decorated/{page.stem.lower()}_{number}.py", block


if __name__ == "__main__":
    for name, content in files():
        path = Path(sys.argv[1], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
