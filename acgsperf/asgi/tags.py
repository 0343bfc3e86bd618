"""The tags of responses, by which an application removes them: `Cache-Tag` and `Surrogate-Key`."""

import re
from typing import Final

from acgsperf.asgi.fields import Headers, joined

__all__ = ["tag_named", "tags_in"]

# Tags are separated by commas, or by white space.
_TAG_HEADERS: Final = ((b"cache-tag", re.compile(rb"[^,]+")), (b"surrogate-key", re.compile(rb"\S+")))
_MAX_TAGS: Final = 256
_MAX_TAG_BYTES: Final = 1_024
_MAX_TAGS_BYTES: Final = 16_384


def tags_in(headers: Headers) -> tuple[str, ...]:
    """Return the tags of a response in `Cache-Tag` and `Surrogate-Key`."""
    found: dict[str, None] = {}
    for name, pattern in _TAG_HEADERS:
        value = joined(headers, name)
        if value is not None:
            tags = (tag.strip() for tag in pattern.findall(value[:_MAX_TAGS_BYTES]))
            found |= dict.fromkeys(_own_tag(tag) for tag in tags if tag and len(tag) <= _MAX_TAG_BYTES)
    return tuple(found)[:_MAX_TAGS]


def tag_named(tag: str) -> str:
    """Return the tag of the cache for a tag of responses.

    Raises:
        ValueError: if it has lone surrogates.
    """
    try:
        # Frameworks send headers in Latin-1.
        return _own_tag(tag.encode("latin-1"))
    except UnicodeEncodeError:
        return _own_tag(tag.encode())


def _own_tag(tag: bytes) -> str:
    # The prefix keeps these tags apart from those of URIs and of other users of the cache.
    try:
        return "http-tag:" + tag.strip().decode()
    except UnicodeDecodeError:
        return "http-tag:" + tag.strip().decode("latin-1")
