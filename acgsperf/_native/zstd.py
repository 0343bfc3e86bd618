"""Compression by zstd: the standard library's from Python 3.14 on, `backports.zstd` before, if it is installed."""

import importlib
import logging
from functools import cache
from typing import Any, Final

__all__ = ["INSTALL", "MOST_BYTES", "ZstdMissingError", "compressed", "decompressed", "is_available"]

INSTALL: Final = "Python 3.14 or later, or: pip install 'acgsperf[zstd]'"
# The limit of a value in a tier, before compression.
MOST_BYTES: Final = 512 << 20

_log: Final = logging.getLogger("acgsperf.tiers")


class ZstdMissingError(ImportError):
    """There is no module for zstd."""


@cache
def _module() -> Any:
    """Return the module; None if there is none, which is logged once."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


@cache
def _log_missing() -> None:
    _log.warning(
        "values that are compressed by zstd are misses in this process, because reading them needs %s", INSTALL
    )


def is_available() -> bool:
    """Return whether there is a module for zstd."""
    return _module() is not None


def compressed(data: bytes) -> bytes:
    """Return data as one frame of zstd, with its size."""
    frame: bytes = _module().compress(data)
    return frame


def decompressed(frame: bytes) -> bytes:
    """Return the data of one frame.

    Raises:
        ZstdMissingError: if there is no module for zstd. The first time, that is logged.
        ValueError: if the frame does not say its size, or a size above 512 MiB, or if data is missing.
        Exception: if it is not a frame.
    """
    zstd = _module()
    if zstd is None:
        _log_missing()
        raise ZstdMissingError(f"zstd needs {INSTALL}")
    size = zstd.get_frame_info(frame).decompressed_size
    if size is None or size > MOST_BYTES:
        raise ValueError(f"a frame must have at most {MOST_BYTES} bytes, got {size}")
    decompressor = zstd.ZstdDecompressor()
    data: bytes = decompressor.decompress(frame, size)
    if len(data) != size or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"a frame of {size} bytes must be complete and alone")
    return data
