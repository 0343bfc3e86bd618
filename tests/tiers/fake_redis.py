"""A Redis that gives replies which no real server gives: a proxy that changes the replies of a real one."""

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

import hiredis

# A database of its own, because it is emptied.
DATABASE = 9


def bulk(value):
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def array(items):
    return b"*%d\r\n" % len(items) + b"".join(items)


class _Server:
    """A connection to the real server, which is asked one command after the other."""

    def __init__(self, url):
        self._parts = urlsplit(url)

    async def open(self):
        if self._parts.scheme == "unix":
            self._reader, self._writer = await asyncio.open_unix_connection(self._parts.path)
        else:
            self._reader, self._writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        await self.ask(b"SELECT", b"%d" % DATABASE)

    async def ask(self, *command):
        """The reply, as the server has sent it."""
        self._writer.write(array(list(map(bulk, command))))
        parser = hiredis.Reader()
        raw = b""
        while True:
            data = await self._reader.read(65_536)
            assert data
            raw += data
            parser.feed(data)
            # False is an incomplete reply.
            if parser.gets() is not False:
                return raw

    def close(self):
        self._writer.transport.abort()


class FakeRedis:
    """Answers the commands of a tier.

    `change` maps a command's name to a function that gets the right reply and returns what to send instead: bytes, or
    several parts, which go out separately; None in their place closes the connection. It is used `times` times.
    Commands whose name is in `refused` are refused and not carried out.
    """

    def __init__(self, url):
        self.change = {}
        self.times = 0
        self.accepted = 0
        self.open = 0
        self.refused = set()
        self._real_url = url
        self._real = _Server(url)
        self._tasks = set()
        self._writers = set()

    async def __aenter__(self):
        await self._real.open()
        await self._real.ask(b"FLUSHDB")
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error):
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks)
        await self._real.ask(b"FLUSHDB")
        self._real.close()

    async def stored(self, key):
        """What the server has under a key."""
        parser = hiredis.Reader()
        parser.feed(await self._real.ask(b"GET", key))
        return parser.gets()

    async def put(self, key, value):
        """Stores something under a key."""
        await self._real.ask(b"SET", key, value)

    async def _serve(self, reader, writer):
        self.accepted += 1
        self.open += 1
        self._tasks.add(asyncio.current_task())
        self._writers.add(writer)
        parser = hiredis.Reader()
        real = _Server(self._real_url)
        await real.open()
        with suppress(OSError):
            while data := await reader.read(65_536):
                parser.feed(data)
                while command := parser.gets():
                    for part in await self._answers(real, command):
                        if part is None:
                            writer.close()
                            break
                        writer.write(part)
                        await writer.drain()
                        await asyncio.sleep(0)
        self.open -= 1
        writer.close()
        real.close()

    async def _answers(self, real, command):
        name = command[0].upper().decode()
        reply = b"-NOPERM refused\r\n" if name in self.refused else await real.ask(*command)
        if name in self.change and self.times > 0:
            self.times -= 1
            changed = self.change[name](reply)
            return changed if isinstance(changed, list) else [changed]
        return [reply]
