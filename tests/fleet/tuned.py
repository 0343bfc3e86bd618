"""An instance of a service that is tuned with others, in a process of its own.

It starts with a line of its input, and ends with its input.

It requests 150 keys in turn, so that an L1 with less entries hits nothing, and one with more hits all. Arguments: the
settings as JSON.
"""

import asyncio
import json
import sys
import time

from acgsperf.fleet.judging import TrialOptions
from acgsperf.service import PerformanceService
from acgsperf.service.fleet_tuning import FleetTuning
from acgsperf.settings import Settings

KEYS = 150
ROUND_S = 0.1
OPTIONS = TrialOptions(settle_rounds=1, period_rounds=2, period_requests=2 * KEYS, least_pause=1)


class QuickService(PerformanceService):
    """Has trials of some seconds."""

    def _tuning_of(self, store):
        parts = self.settings, self.cache, self.pools, self.traffic, self._reporter, self._optimizer
        return FleetTuning(store, *parts, options=OPTIONS)


async def handler(request):
    return request["id"]


async def serve(service):
    observed_at = number = 0
    while True:
        await service.process_request({"id": number % KEYS})
        number += 1
        # A hit of L1 awaits nothing.
        if number % 10 == 0:
            await asyncio.sleep(0.001)
        if time.monotonic() - observed_at > ROUND_S:
            service.observe()
            observed_at = time.monotonic()


async def main():
    async with QuickService(Settings(**json.loads(sys.argv[1])), handler=handler) as service:
        service.cache.promotion_threshold = 1
        await asyncio.to_thread(sys.stdin.readline)
        serving = asyncio.create_task(serve(service))
        await asyncio.to_thread(sys.stdin.read)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


asyncio.run(main())
