"""Starts the application of these tests in a process of its own."""

import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

APPLICATION = Path(__file__).parent / "watched.py"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Served:
    """The application in a process of its own."""

    def __init__(self, root_path=""):
        self.port = free_port()
        self.root_path = root_path
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        self.process = subprocess.Popen([sys.executable, str(APPLICATION), str(self.port), self.root_path])
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{self.url}/work?requests=1", trust_env=False).raise_for_status()
                return
            except httpx.TransportError:
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self):
        """End it as a supervisor does, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def work(self, requests=2000, keys=1000):
        httpx.get(f"{self.url}/work?requests={requests}&keys={keys}", timeout=120, trust_env=False).raise_for_status()


@contextmanager
def running(root_path=""):
    served = Served(root_path)
    served.start()
    try:
        yield served
    finally:
        if served.process.poll() is None:
            served.process.kill()
        served.process.wait(30)
