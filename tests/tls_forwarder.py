"""A server that speaks TLS, in front of one that was built without it."""

import asyncio
from contextlib import asynccontextmanager

SSL_REQUEST = bytes.fromhex("0000000804d2162f")


class Forwarder:
    """Takes TLS off, and passes the rest to the unix socket of a server."""

    def __init__(self, kind, socket, context):
        self.kind = kind
        self.socket = socket
        self.context = context
        self.handshakes = 0
        self.plain = 0
        self._serving = set()

    @asynccontextmanager
    async def listening(self):
        """The port, on the loopback interface."""
        # PostgreSQL begins in plain text, and is asked for TLS.
        context = self.context if self.kind == "redis" else None
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        async with server:
            yield server.sockets[0].getsockname()[1]
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader, writer):
        inner = None
        self._serving.add(asyncio.current_task())
        try:
            inner_reader, inner = await asyncio.open_unix_connection(self.socket)
            if self.kind == "postgres" and self.context is not None:
                first = await reader.readexactly(len(SSL_REQUEST))
                if first != SSL_REQUEST:
                    self.plain += 1
                    return
                writer.write(b"S")
                await writer.start_tls(self.context)
            self.handshakes += self.context is not None
            await asyncio.gather(self._pass(reader, inner), self._pass(inner_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for end in (writer, inner):
                if end is not None:
                    end.transport.abort()

    async def _pass(self, reader, writer):
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()
