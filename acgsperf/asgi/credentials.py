"""The credentials of requests: a request with credentials gets only stored responses that are public."""

from collections.abc import Iterable
from enum import IntEnum
from typing import Final

__all__ = ["DEFAULT_CREDENTIALS", "Reach", "checked_names", "reach_of"]

DEFAULT_CREDENTIALS: Final = (
    "api-key",
    "apikey",
    "authentication",
    "cf-access-client-id",
    "cf-access-client-secret",
    "cf-access-jwt-assertion",
    "dpop",
    "job-token",
    "ocp-apim-subscription-key",
    "private-token",
    "proxy-authorization",
    "remote-user",
    "x-access-token",
    "x-amz-security-token",
    "x-amzn-oidc-accesstoken",
    "x-amzn-oidc-data",
    "x-amzn-oidc-identity",
    "x-api-key",
    "x-api-token",
    "x-apikey",
    "x-auth",
    "x-auth-key",
    "x-auth-request-access-token",
    "x-auth-request-email",
    "x-auth-request-user",
    "x-auth-token",
    "x-authorization",
    "x-client-cert",
    "x-forwarded-access-token",
    "x-forwarded-client-cert",
    "x-forwarded-email",
    "x-forwarded-user",
    "x-functions-key",
    "x-goog-api-key",
    "x-goog-authenticated-user-email",
    "x-goog-iap-jwt-assertion",
    "x-id-token",
    "x-jwt",
    "x-jwt-assertion",
    "x-rapidapi-key",
    "x-refresh-token",
    "x-remote-user",
    "x-secret-key",
    "x-session-id",
    "x-session-token",
    "x-ssl-client-cert",
    "x-token",
    "x-user",
    "x-user-id",
    "x-user-token",
    "x-vault-token",
)
"""The usual names of headers with API keys, tokens or users, as gateways, clouds and identity proxies send them."""


class Reach(IntEnum):
    """Which requests a stored response may answer; each level includes those before it."""

    ANONYMOUS = 0
    """Requests without cookies or credentials: the response has no lifetime of its own."""
    SHARED = 1
    """Also requests with cookies: the response has a lifetime."""
    PUBLIC = 2
    """Also requests with credentials: the response is `public`, or has `s-maxage` or `must-revalidate`."""


def reach_of(carried: Iterable[bytes], varying: Iterable[bytes]) -> Reach:
    """Return the lowest reach that a response needs to answer a request.

    Args:
        carried: `authorization`, `cookie` and the names of credentials that the request has.
        varying: the headers that the response depends on. Each of their values has a response of its own, so they do
            not count as credentials. `Authorization` always counts (RFC 9111, 3.5).
    """
    reach = Reach.ANONYMOUS
    for name in carried:
        if name == b"authorization":
            return Reach.PUBLIC
        if name not in varying:
            reach = max(reach, Reach.SHARED if name == b"cookie" else Reach.PUBLIC)
    return reach


def checked_names(option: str, names: Iterable[str]) -> frozenset[bytes]:
    """Return header names in lower case.

    Raises:
        TypeError: if they are a single str, or if one is not a str.
        ValueError: if one is not a header name.
    """
    found = (names,) if isinstance(names, str) else tuple(names)
    if isinstance(names, str) or not all(isinstance(name, str) for name in found):
        raise TypeError(f"{option} must be an iterable of header names, got {names!r:.100}")
    for name in found:
        if not name.isascii() or not name or any(character in name for character in " \t,:;\r\n"):
            raise ValueError(f"{option} must contain header names only, got {name!r:.100}")
    return frozenset(name.lower().encode() for name in found)
