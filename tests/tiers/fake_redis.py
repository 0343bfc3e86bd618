"""A Redis that gives replies which no real server gives: an in-memory server whose replies a test may change."""

import asyncio
from contextlib import suppress

import hiredis


def bulk(value):
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def array(items):
    return b"*%d\r\n" % len(items) + b"".join(items)


class FakeRedis:
    """Answers the commands of a tier.

    `change` maps a command's name to a function that gets the right reply and returns what to send instead: bytes, or
    several parts, which go out separately; None in their place closes the connection. It is used `times` times.
    """

    def __init__(self):
        self.data = {}
        self.change = {}
        self.times = 0
        self.accepted = 0
        self.open = 0
        self.refused = set()
        self._tasks = set()
        self._writers = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error):
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks)

    async def _serve(self, reader, writer):
        self.accepted += 1
        self.open += 1
        self._tasks.add(asyncio.current_task())
        self._writers.add(writer)
        parser = hiredis.Reader()
        with suppress(OSError):
            while data := await reader.read(65_536):
                parser.feed(data)
                while command := parser.gets():
                    for part in self._answers(command):
                        if part is None:
                            writer.close()
                            break
                        writer.write(part)
                        await writer.drain()
                        await asyncio.sleep(0)
        self.open -= 1
        writer.close()

    def _answers(self, command):
        name = command[0].upper().decode()
        reply = b"-NOPERM refused\r\n" if name in self.refused else getattr(self, f"_{name.lower()}")(*command[1:])
        if name in self.change and self.times > 0:
            self.times -= 1
            changed = self.change[name](reply)
            return changed if isinstance(changed, list) else [changed]
        return [reply]

    def _client(self, *arguments):
        return b"+OK\r\n"

    def _ping(self):
        return b"+PONG\r\n"

    def _echo(self, value):
        return bulk(value)

    def _set(self, key, value, *options):
        if b"NX" in options and key in self.data:
            return b"$-1\r\n"
        self.data[key] = value
        return b"+OK\r\n"

    def _get(self, key):
        return bulk(self.data.get(key))

    def _pexpire(self, key, ms):
        return b":%d\r\n" % (key in self.data)

    def _mget(self, *keys):
        return array([bulk(self.data.get(key)) for key in keys])

    def _unlink(self, *keys):
        return b":%d\r\n" % sum(self.data.pop(key, None) is not None for key in keys)

    def _scan(self, *arguments):
        return array([bulk(b"0"), array([bulk(key) for key in self.data])])

    def _eval(self, script, *arguments):
        return b":7\r\n"

    def _info(self, section):
        return bulk(b"redis_version:7.0.0\r\n")
