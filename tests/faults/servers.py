"""Proxies in front of real servers, whose replies a script changes."""

import asyncio
import socket
import struct
from collections import defaultdict, deque
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

import hiredis

from faults.replies import Do

_WAIT_S = 0.02
_FLOOD_CHUNK = 1 << 16
_FLOOD_BYTES = 512 << 20
_READ_BYTES = 1 << 16
_SINGLE_BYTES = 30


class _GoneError(Exception):
    """The script has closed the connection."""


class HostileServer:
    """Passes requests on to a real server, and its replies back, unless a script is armed.

    Attributes:
        accepted: connections so far.
        open: connections now.
        played: how many replies were changed.
    """

    def __init__(self, url):
        self._url = url
        self.accepted = self.open = self.played = 0
        self._case = None
        self._to = frozenset()
        self._times = 0
        self._executed = True
        self._tasks = set()
        self._writers = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error):
        self._server.close()
        self.hang_up()
        await asyncio.gather(*self._tasks)
        await self._server.wait_closed()

    def arm(self, script, to, times=float("inf"), *, executed=True):
        """Play a script instead of replies of some kinds, a number of times.

        Args:
            script: the parts to send.
            to: the kinds of replies.
            times: how many.
            executed: whether the real server gets the request.
        """
        self._case, self._to, self._times, self._executed = script, frozenset(to), times, executed

    def heal(self):
        """Pass everything on from now on."""
        self._times = 0

    def hang_up(self):
        """Close all connections."""
        for writer in self._writers:
            writer.transport.abort()

    def _take(self, kind):
        """Return whether the script is to be played now."""
        if self._times <= 0 or kind not in self._to:
            return False
        self._times -= 1
        self.played += 1
        return True

    async def _accept(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        self.open += 1
        self._writers.add(writer)
        inner_writer = None
        try:
            inner_reader, inner_writer = await self._connect()
            self._writers.add(inner_writer)
            await self._serve(reader, writer, inner_reader, inner_writer)
        except (OSError, EOFError, _GoneError):
            pass
        finally:
            self.open -= 1
            for each in (writer, inner_writer):
                if each is not None:
                    self._writers.discard(each)
                    each.close()
                    with suppress(OSError):
                        await each.wait_closed()

    async def _play(self, script, right, reader, writer):
        """Send the parts of a script; `right` is the right reply."""
        for part in script:
            if callable(part):
                part = part(right)
            match part:
                case Do.REPLY:
                    writer.write(right)
                case Do.HALF:
                    writer.write(right[: len(right) // 2])
                case Do.WAIT:
                    await asyncio.sleep(_WAIT_S)
                case Do.BYTES:
                    for piece in _pieces(right):
                        writer.write(piece)
                        # The client runs in the same event loop: it reads each byte by itself.
                        await asyncio.sleep(0)
                        await asyncio.sleep(0)
                case Do.SILENCE:
                    while await reader.read(_READ_BYTES):
                        pass
                    raise _GoneError
                case Do.CLOSE:
                    raise _GoneError
                case Do.RESET:
                    # Closing with unsent data allowed for 0 s sends RST.
                    raw = writer.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    writer.transport.abort()
                    raise _GoneError
                case Do.FLOOD:
                    for _ in range(_FLOOD_BYTES // _FLOOD_CHUNK):
                        writer.write(b"x" * _FLOOD_CHUNK)
                        await writer.drain()
                        await asyncio.sleep(0)
                    raise _GoneError
                case bytes():
                    writer.write(part)
                case _:
                    raise TypeError(part)
            await writer.drain()


def _pieces(data):
    """Cut data: its beginning and end into single bytes, and what is between into fifty pieces."""
    size = max(1, len(data) // 50)
    at = 0
    while at < len(data):
        end = at + (1 if at < _SINGLE_BYTES or at >= len(data) - _SINGLE_BYTES else size)
        yield data[at:end]
        at = end


class HostileRedis(HostileServer):
    """A kind of reply is the name of its command; `accept` stands for the moment before the first command."""

    def __init__(self, url):
        super().__init__(url)
        self._earlier = defaultdict(lambda: deque(maxlen=20))

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    async def _connect(self):
        parts = urlsplit(self._url)
        if parts.scheme == "unix":
            return await asyncio.open_unix_connection(parts.path)
        return await asyncio.open_connection(parts.hostname, parts.port or 6379)

    async def _serve(self, reader, writer, inner_reader, inner_writer):
        if self._take("accept"):
            await self._play(self._case, b"", reader, writer)
        parser = hiredis.Reader()
        held = b""
        while data := await reader.read(_READ_BYTES):
            parser.feed(data)
            while command := parser.gets():
                name = command[0].decode().upper()
                hostile = self._take(name)
                right = b""
                if self._executed or not hostile:
                    inner_writer.write(hiredis.pack_command(tuple(command)))
                    right = await _raw_reply(inner_reader)
                earlier = self._to_others(name, command[1:], right)
                if not hostile:
                    await self._play((right, held), right, reader, writer)
                    held = b""
                    continue
                script = self._case
                if Do.HOLD in script:
                    held += right
                script = [earlier if part is Do.EARLIER else part for part in script if part is not Do.HOLD]
                await self._play(script, right, reader, writer)

    def _to_others(self, name, arguments, right):
        """Return the last reply to a command for other keys, and remember this one."""
        keys = arguments if name in ("MGET", "UNLINK") else arguments[2:3] if name == "EVAL" else arguments[:1]
        keys, earlier = frozenset(keys), self._earlier[name]
        found = next((reply for others, reply in reversed(earlier) if others.isdisjoint(keys)), right)
        earlier.append((keys, right))
        return found


async def _raw_reply(reader):
    """Read one reply of RESP2 and return its bytes."""
    line = await reader.readline()
    if not line:
        raise EOFError
    kind, size = line[:1], line[1:-2]
    if kind == b"$" and int(size) >= 0:
        return line + await reader.readexactly(int(size) + 2)
    if kind == b"*":
        return line + b"".join([await _raw_reply(reader) for _ in range(int(size))])
    return line


class HostilePostgres(HostileServer):
    """A reply is what the client waits for: up to ReadyForQuery, an error, or the description of a statement.

    Its kind is `startup`, `prepare` or `result`.
    """

    @property
    def dsn(self):
        parts = urlsplit(self._url)
        user = f"{parts.username}@" if parts.username else ""
        return f"postgresql://{user}127.0.0.1:{self.port}{parts.path}?sslmode=disable"

    async def _connect(self):
        parts = urlsplit(self._url)
        folder = parse_qs(parts.query).get("host", [None])[0]
        if folder:
            return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{parts.port or 5432}")
        return await asyncio.open_connection(parts.hostname, parts.port or 5432)

    async def _serve(self, reader, writer, inner_reader, inner_writer):
        requests = asyncio.create_task(self._requests(reader, inner_writer))
        try:
            await self._replies(writer, inner_reader)
        finally:
            requests.cancel()
            await asyncio.gather(requests, return_exceptions=True)

    async def _requests(self, reader, inner_writer):
        try:
            while data := await reader.read(_READ_BYTES):
                inner_writer.write(data)
        finally:
            # A client that resets its connection ends the session as well.
            inner_writer.close()

    async def _replies(self, writer, inner_reader):
        messages = []
        while True:
            header = await inner_reader.readexactly(5)
            messages.append(header + await inner_reader.readexactly(int.from_bytes(header[1:], "big") - 4))
            kinds = {message[:1] for message in messages}
            prepared = not kinds.isdisjoint({b"1", b"t"})
            if header[:1] not in (b"Z", b"E") and not (prepared and header[:1] in (b"T", b"n")):
                continue
            kind = "startup" if b"R" in kinds else "prepare" if prepared else "result"
            right = b"".join(messages)
            if self._take(kind):
                await self._play(self._case(messages), right, inner_reader, writer)
            else:
                writer.write(right)
                await writer.drain()
            messages = []
