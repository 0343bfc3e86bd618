"""Writes examples of the documentation to files, for type checkers and tests.

    python docs/tools/example_files.py FOLDER

`FOLDER/tutorial` gets the files of the tutorial, and `FOLDER/decorated` every other example with a cached function.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    """Return the blocks of Python of a page."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def files() -> Iterator[tuple[str, str]]:
    """Yield the path and the content of each file."""
    for block in blocks(TUTORIAL):
        # A block begins with a comment that has the name of its file.
        yield f"tutorial/{block.partition(chr(10))[0].removeprefix('# ')}", block
    for page in PAGES:
        for number, block in enumerate(blocks(page)):
            if "cached(" in block and page != TUTORIAL:
                yield f"decorated/{page.stem.lower()}_{number}.py", block


if __name__ == "__main__":
    for name, content in files():
        path = Path(sys.argv[1], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
