"""A TCP proxy in front of a server, which a test can make lose connections without saying so."""

import asyncio
from contextlib import suppress


class Proxy:
    """Forwards to a unix socket. What a firewall drops is neither forwarded nor answered."""

    def __init__(self, target):
        self.accepted = 0
        self._target = target
        self._tasks = set()
        self._writers = set()
        self._dropped = asyncio.Event()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error):
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop_all(self):
        """All connections so far are silent from now on; new ones work."""
        self._dropped.set()
        self._dropped = asyncio.Event()

    async def _serve(self, reader, writer):
        self.accepted += 1
        self._tasks.add(asyncio.current_task())
        dropped = self._dropped
        inner_reader, inner_writer = await asyncio.open_unix_connection(self._target)
        self._writers |= {writer, inner_writer}
        await asyncio.gather(self._forward(reader, inner_writer, dropped), self._forward(inner_reader, writer, dropped))
        writer.close()
        inner_writer.close()

    async def _forward(self, reader, writer, dropped):
        with suppress(OSError):
            while data := await reader.read(65_536):
                if not dropped.is_set():
                    writer.write(data)
            if not dropped.is_set():
                writer.close()
