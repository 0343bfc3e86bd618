"""The source of truth: a counter for each key that only grows, shared by processes without a server."""

import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

__all__ = ["Truth"]

_VALUE: Final = b"v"
_NO_VALUE: Final = b"-"


class Truth:
    """Counters in files: the length of a key's file is its version.

    Raising a counter appends one byte, which the system does atomically. No lock is held, so that a process may be
    frozen or killed at any time. The byte says whether the key has a value in this version.

    Args:
        folder: where the files are; all processes name the same one.
        keys: the keys.
    """

    def __init__(self, folder: Path, keys: Iterable[str]) -> None:
        self._files = {key: os.open(folder / key, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644) for key in keys}
        self._claimed: set[str] = set()

    def current(self, key: str) -> int:
        """Return the version of a key."""
        return os.fstat(self._files[key]).st_size

    def exists(self, key: str, version: int) -> bool:
        """Return whether the key has a value in a version. It has none before the first write."""
        return version > 0 and os.pread(self._files[key], 1, version - 1) == _VALUE

    def raise_version(self, key: str, *, exists: bool = True) -> int:
        """Raise the counter of a key, and return the new version. No other caller gets the same one."""
        file = self._files[key]
        os.write(file, _VALUE if exists else _NO_VALUE)
        # The position after an append is the end of what this call has written.
        return os.lseek(file, 0, os.SEEK_CUR)

    def claim(self, keys: Iterable[str]) -> list[str]:
        """Reserve keys for one writer, and return those that no other writer has, in this process or another."""
        claimed = []
        for key in keys:
            if key not in self._claimed:
                try:
                    fcntl.flock(self._files[key], fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                self._claimed.add(key)
                claimed.append(key)
        return claimed

    def release(self, keys: Sequence[str]) -> None:
        """Give claimed keys back."""
        for key in keys:
            self._claimed.remove(key)
            fcntl.flock(self._files[key], fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the files, which gives back what is claimed."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()
