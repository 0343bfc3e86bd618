"""A proxy in a process of its own: when it is frozen, what a client sends arrives late, even if the client has gone."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from history.servers import Proxy, RedisServer


class Link:
    """A proxy to a Redis.

    Args:
        server: the Redis.

    Attributes:
        url: the address of the proxy.
    """

    def __init__(self, server: RedisServer) -> None:
        path = server.socket.with_name("link.sock")
        self.url = f"unix://{path}"
        # It ends with its standard input.
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(server.socket), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the proxy during a block."""
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End the proxy."""
        self._process.kill()
        self._process.communicate()


async def main(target: Path, path: Path) -> None:
    """Run the proxy until the standard input ends."""
    async with Proxy(target, path):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
