"""An instance of a service in a process of its own. It handles some requests, prints "ready", and ends with its input.

Arguments: the settings as JSON, and the number of requests.
"""

import asyncio
import json
import sys

from acgsperf.fleet import publisher
from acgsperf.service import PerformanceService
from acgsperf.settings import Settings


def patient(service):
    """Return a service whose calls for reports have a minute, because the machine may be busy with other tests."""
    if service._fleet is not None:
        service._fleet.store._timeout = 60
    return service


async def handler(request):
    return request["id"]


async def main():
    settings, count = Settings(**json.loads(sys.argv[1])), int(sys.argv[2])
    publisher.LAST_S = 60
    async with patient(PerformanceService(settings, handler=handler)) as service:
        await service.process_many({"id": number} for number in range(count))
        service.observe()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
