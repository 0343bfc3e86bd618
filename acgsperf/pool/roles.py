"""What a pool does if its server turns out to be read-only although a borrower wants to write.

PostgreSQL 14 and later tell each session whether the server is a standby, and tell it again when that changes. So the
role of a server is known without a query.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from acgsperf.pool.connector import Connector
from acgsperf.pool.inventory import Inventory
from acgsperf.pool.options import CloseReason
from acgsperf.pool.slot import Slot

if TYPE_CHECKING:
    from acgsperf.pool.slot import Connection

__all__ = ["READ_ONLY_GENERATION", "Roles", "is_read_only", "is_standby", "role_of"]

_log: Final = logging.getLogger("acgsperf.pool")
# The generation of connections that must not be lent again.
READ_ONLY_GENERATION: Final = -1
# If no server accepts writes, the pool looks for one again after the first time, then later and later.
_FIRST_PAUSE_S: Final = 1.0
_LAST_PAUSE_S: Final = 30.0
# For this time, a pool to which every kind of server is right tries those first that accept writes.
_PREFER_S: Final = 30.0
# Who wants one of these does not want to write.
_READERS: Final = frozenset({"standby", "prefer-standby", "read-only"})


def _setting(connection: "Connection", name: str) -> str | None:
    if connection.is_closed():
        return None
    settings: Any = connection.get_settings()
    value: str | None = getattr(settings, name, None)
    return value


def is_standby(connection: "Connection") -> bool | None:
    """Return whether the server is a standby, as far as this session knows; None if the server does not tell."""
    value = _setting(connection, "in_hot_standby")
    return None if value is None else value == "on"


def is_read_only(connection: "Connection") -> bool | None:
    """Return whether the server refuses writes of this session; None if the server does not tell."""
    if _setting(connection, "default_transaction_read_only") == "on":
        return True
    return is_standby(connection)


def role_of(connection: "Connection") -> str | None:
    """Return `primary`, `read-only primary` or `standby`; None if the server does not tell."""
    standby = is_standby(connection)
    if standby is None:
        return None
    return "standby" if standby else "read-only primary" if is_read_only(connection) else "primary"


class Roles:
    """Leaves servers that are read-only.

    Args:
        name: the name of the pool, for log lines.
        connector: opens the connections.
        inventory: has the connections.
        clock: returns seconds.

    Attributes:
        leaving: whether the last server was read-only, and no other one has been found.
        failovers: how often a read-only server was left.
    """

    __slots__ = ("_clock", "_connector", "_inventory", "_look_at", "_name", "_pause_s", "failovers", "leaving")

    def __init__(self, name: str, connector: Connector, inventory: Inventory, clock: Callable[[], float]) -> None:
        self._name = name
        self._connector = connector
        self._inventory = inventory
        self._clock = clock
        self._look_at = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self.leaving: bool = False
        self.failovers: int = 0

    def note_refused_write(self, slot: Slot) -> None:
        """React to an error 25006 (read-only transaction) of a borrower that wanted to write.

        All connections to servers that are read-only are closed, those in use when they come back. If the session
        accepts writes, the borrower's own transaction was read-only, and nothing is closed.
        """
        wanted = self._connector.wanted
        state = is_standby(slot.connection) if wanted == "primary" else is_read_only(slot.connection)
        if wanted in _READERS or state is False:
            return
        now = self._clock()
        if self.leaving:
            if now < self._look_at:
                # Connecting again did not help.
                return
            self._pause_s = min(2 * self._pause_s, _LAST_PAUSE_S)
        else:
            self._pause_s = _FIRST_PAUSE_S
        self._look_at = now + self._pause_s
        slot.generation = READ_ONLY_GENERATION
        if wanted == "any":
            self._connector.prefer_writable(now + _PREFER_S)
        self._retire_read_only()
        if not self.leaving:
            self.leaving = True
            self.failovers += 1
            _log.warning(
                "pool %r: %s refuses to write (25006: %s); its connections are closed, and its name is looked up again",
                *(self._name, self._connector.where, role_of(slot.connection) or "read-only"),
            )

    def note_opened(self, slot: Slot) -> None:
        """Note a new connection while a server that accepts writes is looked for."""
        if is_read_only(slot.connection):
            return
        self.leaving = False
        # Others may have been opened meanwhile.
        self._retire_read_only(slot)
        _log.info("pool %r: %s accepts writes again", self._name, self._connector.where)

    def _retire_read_only(self, opened: Slot | None = None) -> None:
        """Close the connections to servers that are, or may be, read-only: idle ones now, others when they are back."""
        inventory = self._inventory
        for slot in list(inventory.slots):
            if slot is not opened and is_read_only(slot.connection) is not False:
                slot.generation = READ_ONLY_GENERATION
                if slot in inventory.idle:
                    inventory.idle.remove(slot)
                    inventory.retire(slot, CloseReason.READ_ONLY)

    def describe(self) -> str | None:
        """Return the role of the server, as one of the open connections knows it."""
        found = (role_of(slot.connection) for slot in self._inventory.slots if not slot.connection.is_closed())
        return next(found, None)
