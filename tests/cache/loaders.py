"""A loader that counts its calls, and waits or fails if the test wants it to."""

import asyncio


class Loader:
    """Return `value`, or raise `error`, once `gate` is open."""

    def __init__(self, value="loaded", *, error=None, gate_open=True):
        self.value = value
        self.error = error
        self.gate = asyncio.Event()
        if gate_open:
            self.gate.set()
        self.began = asyncio.Event()
        self.calls = 0
        self.cancelled = 0

    async def __call__(self, key):
        self.calls += 1
        self.began.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.value
