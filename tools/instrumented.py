"""Builds instrumented modules in a copy of the tree. The modules of the clone stay as they are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

CLONE = Path(__file__).parents[1]
_COPIED = ("acgsperf", "tests", "docs", "examples")
_FILES = (
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "MANIFEST.in",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Makefile",
    "mkdocs.yml",
)
_BUILT = ("*.so", "*.c", "*.html", "__pycache__", "built_pure.py")


def build(name: str, **switches: str) -> Path:
    """Copy the tree to `build/NAME`, compile it there, and return that folder.

    Files that did not change keep their times, so that a second run compiles only what changed.

    Args:
        name: of the folder.
        switches: the environment variables of `setup.py`.
    """
    target = CLONE / "build" / name
    for folder in _COPIED:
        _mirror(CLONE / folder, target / folder)
    for file in _FILES:
        if (CLONE / file).exists():
            shutil.copy2(CLONE / file, target / file)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=target, env=os.environ | switches, check=True)
    return target


def _mirror(source: Path, target: Path) -> None:
    """Copy a folder with the times of its files, and remove what the source does not have, except what was built."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_BUILT), dirs_exist_ok=True)
    for path in sorted(target.rglob("*"), reverse=True):
        built = "__pycache__" in path.parts or any(path.match(pattern) for pattern in _BUILT)
        if path.is_file() and not built and not (source / path.relative_to(target)).exists():
            path.unlink()


def library(name: str) -> str:
    """Return the path of a runtime library of gcc, which must be loaded before the interpreter's own memory.

    Raises:
        SystemExit: if gcc or the library is missing.
    """
    compiler = os.environ.get("CC", "gcc").split()[0]
    found = ""
    if shutil.which(compiler):
        command = [compiler, f"-print-file-name={name}"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    # gcc prints the bare name of what it does not have.
    if not Path(found).is_absolute():
        raise SystemExit(f"{name} was not found: install gcc with its sanitizers")
    return str(Path(found).resolve())
