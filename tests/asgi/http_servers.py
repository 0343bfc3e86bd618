"""Servers of ASGI applications, in threads of their own."""

import asyncio
import contextlib
import socket
import threading

import uvicorn
from hypercorn.asyncio import serve
from hypercorn.config import Config


class _Server(uvicorn.Server):
    def __init__(self, config):
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.ready.set()


@contextlib.contextmanager
def served_by_uvicorn(app):
    """The base URL of an application under uvicorn, in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = _Server(uvicorn.Config(app, log_level="critical", ws="none", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert server.ready.wait(30)
        assert server.started
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive()


@contextlib.contextmanager
def served_by_hypercorn(app):
    """The base URL of an application under hypercorn, in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.errorlog = config.accesslog = None
    config.graceful_timeout = 1
    # For so long, hypercorn keeps the connection of a response that failed midway, and the client waits.
    config.keep_alive_timeout = 1
    loop, stopped, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    async def announcing(scope, receive, send):
        async def send_and_signal(message):
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                ready.set()

        await app(scope, receive, send_and_signal if scope["type"] == "lifespan" else send)

    def run():
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve(announcing, config, shutdown_trigger=stopped.wait))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        assert ready.wait(30)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(30)
        # hypercorn has closed the socket that it was given.
        listener.detach()
    assert not thread.is_alive()
