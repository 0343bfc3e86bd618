"""The hostile servers themselves."""

import asyncio
import socket
import struct

from faults.oracle import eventually
from faults.servers import HostilePostgres


async def test_a_hostile_server_notices_that_its_client_has_reset_the_connection(servers):
    async with HostilePostgres(servers.database_url) as server:
        _reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await eventually(lambda: _has_open(server, 1))
        # Closing with unsent data allowed for 0 s sends RST.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await eventually(lambda: _has_open(server, 0))


async def _has_open(server, number):
    assert server.open == number
