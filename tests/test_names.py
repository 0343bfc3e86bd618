"""Looking up host names, also if the name server is silent."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from acgsperf import names


@pytest.fixture
def silent(monkeypatch):
    """A name server that gives no answer until it is told to: tests cannot change the network."""
    answer = threading.Event()
    asked = []

    def getaddrinfo(host, *arguments, **options):
        asked.append(host)
        answer.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(names.socket, "getaddrinfo", getaddrinfo)
    getaddrinfo.answer, getaddrinfo.asked = answer.set, asked
    yield getaddrinfo
    answer.set()
    for thread in threading.enumerate():
        if thread.name == "acgsperf lookup":
            thread.join()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "/var/run/postgresql", None])
async def test_a_name_that_can_be_resolved_is_no_error(host):
    await names.resolve(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "/tmp", None])
async def test_what_is_not_a_name_needs_no_lookup(silent, host):
    await names.resolve(host)
    assert silent.asked == []


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 70 + ".invalid", "bad..name"])
async def test_a_name_that_cannot_be_resolved_is_an_os_error(host):
    with pytest.raises(OSError, match=r"host name|not known"):
        await names.resolve(host)


async def test_callers_of_one_name_share_a_lookup_and_a_cancelled_one_harms_no_other(silent):
    first, second = (asyncio.create_task(names.resolve("db.example")) for _ in range(2))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await first
    silent.answer()
    with pytest.raises(socket.gaierror):
        await second
    assert silent.asked == ["db.example"]


async def test_a_silent_name_server_costs_a_bounded_number_of_threads_and_none_of_the_event_loop(silent):
    hosts = [f"host-{number}.example" for number in range(30)]
    lookups = [asyncio.create_task(names.resolve(host)) for host in hosts for _ in range(3)]
    done, pending = await asyncio.wait(lookups, timeout=0.05)
    assert len(silent.asked) == names.MAX_LOOKUPS
    assert len(pending) == 3 * names.MAX_LOOKUPS
    refusals = {str(task.exception()) for task in done}
    assert len(refusals) == 30 - names.MAX_LOOKUPS
    assert (
        "cannot look up 'host-29.example': 8 lookups of other names have no answer yet; the name server may be down"
        in refusals
    )
    assert await asyncio.to_thread(lambda: "free") == "free"
    silent.answer()
    assert {type(error) for error in await asyncio.gather(*pending, return_exceptions=True)} == {socket.gaierror}
    # And then there is room again.
    with pytest.raises(socket.gaierror):
        await names.resolve("host-29.example")


def test_the_end_of_an_event_loop_leaves_a_lookup_alone(silent, caplog):
    async def main():
        async with asyncio.timeout(0.05):
            await names.resolve("db.example")

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    silent.answer()
    with pytest.raises(socket.gaierror):
        asyncio.run(names.resolve("db.example"))
    assert caplog.text == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_starts_lookups_of_its_own(silent):
    lookups = names._lookups
    lookups.start("db.example")
    pid = os.fork()
    if pid == 0:
        os._exit(0 if names._lookups is not lookups and not names._lookups._in_flight else 1)
    assert os.waitpid(pid, 0)[1] == 0


SCRIPT = Path(__file__).parent / "silent_names.py"
_NAMESPACES = ("unshare", "--user", "--map-root-user", "--mount", "--net")


def _has_namespaces():
    try:
        return subprocess.run([*_NAMESPACES, "true"], capture_output=True, timeout=30).returncode == 0
    except OSError:
        return False


@pytest.mark.parametrize("server", ["resolver", "stand-in"])
def test_callers_of_pools_and_tiers_are_answered_in_time_while_the_name_server_is_silent(server, tmp_path):
    command = [sys.executable, str(SCRIPT), server]
    if server == "resolver":
        if not _has_namespaces():
            pytest.skip("this system gives processes no network and mount namespaces of their own")
        (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        mount = f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf"
        command = [*_NAMESPACES, "sh", "-c", f'{mount} && exec "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    ended = time.monotonic()
    assert done.returncode == 0, done.stderr
    # The lookups in flight end with the process.
    assert ended - float(done.stdout) < 2
