"""Writes the files of the tutorial, for type checkers and tests.

python docs/tools/tutorial_files.py FOLDER
"""

import re
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "tutorial.md"


def tutorial_files() -> dict[str, str]:
    """Return the contents of the files by their names. Each block of Python begins with the name of its file."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return {block.partition("\n")[0].removeprefix("# "): block for block in blocks}


def write_files(folder: Path) -> None:
    """Write the files of the tutorial to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tutorial_files().items():
        (folder / name).write_text(content)


if __name__ == "__main__":
    write_files(Path(sys.argv[1]))
