"""The compliance gate: which requests may reach the application."""

import json
from collections.abc import Iterable
from typing import Final

from acgsperf.asgi.types import Scope
from acgsperf.validator import HASH_HEADER, ComplianceValidator

__all__ = ["Gate"]

_HASH_HEADER: Final = HASH_HEADER.lower().encode()
_MAX_SHOWN: Final = 64


class Gate:
    """Refuses requests whose constitutional hash is not accepted.

    Args:
        validator: decides which hashes are accepted.
        require_hash: also refuse requests without the header, except CORS preflights, which cannot have it.
        exempt: the paths of requests that do not need the header. If such a request has it, its hash is checked.

    Attributes:
        refused: the requests refused so far.
    """

    def __init__(self, validator: ComplianceValidator, require_hash: bool, exempt: Iterable[str]) -> None:
        self._validator = validator
        self._require_hash = require_hash
        self._exempt = frozenset(exempt)
        self.refused: int = 0

    def refusal(self, scope: Scope) -> bytes | None:
        """Return the JSON body of a refusal, or None if the request passes."""
        found = [value for name, value in scope["headers"] if name == _HASH_HEADER]
        if not found and (not self._require_hash or self._is_exempt(scope)):
            return None
        for value in found or (None,):
            text = None if value is None else value.decode("latin-1")
            if not self._validator.validate(text):
                self.refused += 1
                shown = None if text is None else text[:_MAX_SHOWN]
                # The answer does not contain the accepted hash: the client may not be allowed to know it.
                error = f"{HASH_HEADER} is {'missing' if shown is None else 'not accepted'}"
                return json.dumps({"error": error, "found": shown}).encode()
        return None

    def is_unverified(self, scope: Scope) -> bool:
        """Return whether a request has passed without the header although it is required, because it is exempt."""
        return self._require_hash and not any(name == _HASH_HEADER for name, _ in scope["headers"])

    def _is_exempt(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return (
            path in self._exempt
            or path.removeprefix(scope.get("root_path", "")) in self._exempt
            or _is_preflight(scope)
        )


def _is_preflight(scope: Scope) -> bool:
    if scope["method"] != "OPTIONS":
        return False
    names = {name for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names
