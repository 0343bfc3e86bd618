"""The files of the page."""

from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Final

__all__ = ["Asset", "assets"]

_FOLDER: Final = Path(__file__).parent / "static"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file, its content type, and a tag that changes with its content."""

    body: bytes
    content_type: bytes
    etag: bytes


@cache
def assets() -> dict[str, Asset]:
    """Return all files by their path below the page. They are read once."""
    found = {}
    for path in sorted(_FOLDER.rglob("*")):
        if path.suffix in _TYPES:
            body = path.read_bytes()
            etag = f'"{blake2b(body, digest_size=12).hexdigest()}"'.encode()
            found[path.relative_to(_FOLDER).as_posix()] = Asset(body, _TYPES[path.suffix].encode(), etag)
    return found
