"""The rules of PostgreSQL's protocol 3.0 that both implementations of `Dialogue` share.

See https://www.postgresql.org/docs/current/protocol-flow.html and PostgresMain() in PostgreSQL's postgres.c.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

__all__ = [
    "ANSWERS",
    "ANYTIME",
    "DESCRIBE",
    "NOTHING",
    "OWED",
    "OWED_FOR_STATEMENT",
    "SIGN_IN",
    "STATEMENT",
    "SYNC",
    "SYNCED",
    "UPGRADE_REQUESTS",
    "refusal",
]

# What a server may owe.
NOTHING: Final = 0
SIGN_IN: Final = 1
PARSED: Final = 2
BOUND: Final = 3
CLOSED: Final = 4
PARAMETERS: Final = 5
COLUMNS: Final = 6
EXECUTED: Final = 7
QUERIED: Final = 8
CALLED: Final = 9
READY_AFTER_CALL: Final = 10
SYNCED: Final = 11
COPIED: Final = 12
COPIED_IN_QUERY: Final = 13

DESCRIBE: Final = ord("D")
STATEMENT: Final = ord("S")
SYNC: Final = ord("S")

# What the server owes for each type of message of a client, in order; nothing for other types.
OWED: Final[dict[int, tuple[int, ...]]] = {
    ord("P"): (PARSED,),
    ord("B"): (BOUND,),
    DESCRIBE: (COLUMNS,),
    ord("E"): (EXECUTED,),
    ord("C"): (CLOSED,),
    SYNC: (SYNCED,),
    ord("Q"): (QUERIED,),
    ord("F"): (CALLED, READY_AFTER_CALL),
}
OWED_FOR_STATEMENT: Final = (PARAMETERS, COLUMNS)

# The codes of SSLRequest and GSSENCRequest. A message with any other code instead is the start-up message.
UPGRADE_REQUESTS: Final = (80877103, 80877104)

# Notices, notifications and the values of parameters.
ANYTIME: Final = b"NAS"


class Answer(NamedTuple):
    """The messages that answer something that is due.

    If none of these has 'E', an error answers everything up to the next Sync.

    Attributes:
        name: how a refusal names it.
        more: the types of messages after which it is still due.
        last: the types of messages that complete it.
        next_due: for the types of messages after which something else is due instead, what that is.
    """

    name: str
    more: bytes
    last: bytes
    next_due: Mapping[int, int] = MappingProxyType({})


ANSWERS: Final[Mapping[int, Answer]] = {
    # An error while nothing is due: the server ends the session.
    NOTHING: Answer("nothing", b"E", b""),
    SIGN_IN: Answer("'R' or 'Z'", b"RKvE", b"Z"),
    PARSED: Answer("'1'", b"", b"1"),
    BOUND: Answer("'2'", b"", b"2"),
    CLOSED: Answer("'3'", b"", b"3"),
    PARAMETERS: Answer("'t'", b"", b"t"),
    COLUMNS: Answer("'T' or 'n'", b"", b"Tn"),
    EXECUTED: Answer("'C', 'I' or 's'", b"D", b"CIs", dict.fromkeys(b"GHW", COPIED)),
    # An error ends a query or a call, but does not replace its 'Z'.
    QUERIED: Answer("the reply to a query", b"TDCIE", b"Z", dict.fromkeys(b"GHW", COPIED_IN_QUERY)),
    CALLED: Answer("'V'", b"", b"VE"),
    READY_AFTER_CALL: Answer("'Z'", b"E", b"Z"),
    SYNCED: Answer("'Z'", b"E", b"Z"),
    # After G, H or W, data is copied until the command ends.
    COPIED: Answer("'C'", b"dc", b"C"),
    COPIED_IN_QUERY: Answer("'C'", b"dc", b"", dict.fromkeys(b"CE", QUERIED)),
}


def refusal(due: int, kind: int, length: int) -> str:
    """Return what is wrong with a message of the server.

    Args:
        due: what is due, a key of ANSWERS.
        kind: the type of the message, a byte.
        length: the length in the header of the message.
    """
    if length < 4:
        return f"a length of {length} instead of at least 4"
    return f"{chr(kind)!a} where {ANSWERS[due].name} was due"
