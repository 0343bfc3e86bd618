"""A network between a cache and its servers, with the faults of a network."""

import asyncio
import random
from contextlib import suppress

_READ_BYTES = 1 << 16
_DELAY_S = 0.2
_REORDERED_AFTER_S = 0.02
# The share of the pieces of data that a fault changes.
_SHARE = 0.2
_SINGLE_BYTES = 30


class Network:
    """A TCP port that passes on what it gets to the unix socket of a server, and the replies back.

    Args:
        socket: the path of the socket.

    Attributes:
        port: the port, the same all the time.
        changed: how many pieces of data a fault has changed, swallowed or delayed.
    """

    def __init__(self, socket):
        self._socket = socket
        self._random = random.Random(1)
        self._tasks = set()
        self._writers = set()
        self._fault = None
        self._silenced = asyncio.Event()
        self.port = 0
        self.changed = 0

    async def __aenter__(self):
        await self._listen()
        return self

    async def __aexit__(self, *error):
        await self.refuse()

    async def _listen(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self):
        """Close the port and all connections."""
        self._server.close()
        self.hang_up()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def heal(self):
        """Pass everything on. Connections that were silent stay so, as those that a firewall has forgotten."""
        self._fault = None
        if not self._server.is_serving():
            await self._listen()

    def hang_up(self):
        """Close all connections."""
        for writer in self._writers:
            writer.transport.abort()

    def drop(self):
        """Be silent on the connections that are open now. New ones work."""
        self._silenced.set()
        self._silenced = asyncio.Event()

    def play(self, fault):
        """Treat the replies as the method of this name says; with `swallow`, also the requests."""
        self._fault = fault
        if fault == "swallow":
            self.drop()

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        silenced = self._silenced
        server = None
        try:
            server_reader, server = await asyncio.open_unix_connection(self._socket)
            self._writers.add(server)
            ways = [
                asyncio.create_task(self._pass(reader, server, silenced, None)),
                asyncio.create_task(self._pass(server_reader, writer, silenced, _Replies(writer, self._random))),
            ]
            await asyncio.wait(ways)
        except OSError:
            pass
        finally:
            for end in (writer, server):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _pass(self, reader, writer, silenced, replies):
        # RuntimeError: replies to a connection that is half closed.
        with suppress(OSError, RuntimeError):
            while data := await reader.read(_READ_BYTES):
                if silenced.is_set() or self._fault == "swallow":
                    self.changed += 1
                elif replies is None or self._fault is None:
                    writer.write(data)
                    await writer.drain()
                elif await getattr(replies, self._fault)(data):
                    self.changed += 1
            if silenced.is_set():
                # Not even the end of the connection gets through.
                return
        writer.close()


class _Replies:
    """Replies on one connection. Each method sends data, and returns whether it has changed them."""

    def __init__(self, writer, random):
        self._writer = writer
        self._random = random
        self._held = b""

    def _chosen(self):
        return self._random.random() < _SHARE

    async def delay(self, data):
        await asyncio.sleep(_DELAY_S)
        self._writer.write(data)
        return True

    async def single_bytes(self, data):
        at = 0
        while at < len(data):
            near_an_end = at < _SINGLE_BYTES or at >= len(data) - _SINGLE_BYTES
            end = at + 1 if near_an_end else len(data) - _SINGLE_BYTES
            self._writer.write(data[at:end])
            # The client runs in the same event loop: it reads each byte by itself.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            at = end
        return True

    async def cut(self, data):
        if not self._chosen():
            self._writer.write(data)
            return False
        self._writer.write(data[: len(data) // 2])
        self._writer.close()
        return True

    async def half_close(self, data):
        if self._writer.transport.is_closing() or not self._writer.can_write_eof():
            return False
        self._writer.write(data)
        if not self._chosen():
            return False
        with suppress(OSError, RuntimeError):
            self._writer.write_eof()
        return True

    async def reorder(self, data):
        if not self._chosen():
            self._writer.write(data)
            return False
        middle = len(data) // 2
        self._writer.write(data[middle:])
        await asyncio.sleep(_REORDERED_AFTER_S)
        self._writer.write(data[:middle])
        return True

    async def swap(self, data):
        if self._held:
            self._writer.write(data + self._held)
            self._held = b""
            return True
        if not self._chosen():
            self._writer.write(data)
            return False
        # If the server sends nothing more, this reply is lost.
        self._held = data
        return True

    async def duplicate(self, data):
        chosen = self._chosen()
        self._writer.write(data * 2 if chosen else data)
        return chosen

    async def flip(self, data):
        if not self._chosen():
            self._writer.write(data)
            return False
        changed = bytearray(data)
        changed[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        self._writer.write(bytes(changed))
        return True
