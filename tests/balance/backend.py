"""An HTTP server that answers after a pause. It prints its port.

Usage: backend.py SECONDS
"""

import asyncio
import sys

import uvicorn


async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = b""
    while (message := await receive()).get("more_body"):
        body += message["body"]
    body += message["body"]
    await asyncio.sleep(float(sys.argv[1]))
    status = int(scope["path"].rpartition("/")[2]) if scope["path"].startswith("/status/") else 200
    await send({"type": "http.response.start", "status": status, "headers": [(b"x-method", scope["method"].encode())]})
    await send({"type": "http.response.body", "body": dict(scope["headers"])[b"host"] + b" " + body})


class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)


if __name__ == "__main__":
    Server(uvicorn.Config(app, port=0, log_level="critical", ws="none", lifespan="off", timeout_keep_alive=60)).run()
