"""An instance of the service in the week of row 19, in a process of its own. It ends with its input.

Arguments: the settings as JSON; the length of a day in seconds; when the first day began, by the monotonic clock of the
machine. It prints a line of JSON each time an alert changes, and every hour what it uses.
"""

import asyncio
import json
import math
import os
import random
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from acgsperf import PerformanceService, Settings

# Intervals are a hundred times shorter, but there are not a hundred times more requests. An interval of 0.3 s must have
# so many requests that one slow request does not decide P99, and so few keys that new ones hardly lower the hit rate.
KEYS = 50
# A key is requested for this time only. Another one takes its place before it expires. Otherwise all keys that are
# loaded at the start would expire in the same interval, every 36 s.
LIFE_S = 20.0
# Requests per second by night and at noon: at least 120 in an interval.
NIGHT, NOON = 400, 1_200
_BATCH_S = 0.02
_PAGE = os.sysconf("SC_PAGE_SIZE")


def rate_at(day):
    """Requests per second at a time in days: the fewest at midnight, the most at noon."""
    return NIGHT + (NOON - NIGHT) * (1 - math.cos(2 * math.pi * day)) / 2


def used():
    """What this process uses now."""
    return {
        "resident": int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
    }


def say(kind, **facts):
    print(json.dumps({"kind": kind, "at": time.monotonic(), **facts}), flush=True)


class Instance:
    """A service under the load of the day.

    Attributes:
        wrong: answers to another request.
        errors: the first errors that callers got.
    """

    def __init__(self, service, day_s, began):
        self.service = service
        self.errors, self.wrong, self.answers = [], 0, 0
        self._day_s, self._began = day_s, began
        self._random = random.Random()
        self._weights = [1 / rank for rank in range(1, KEYS + 1)]

    async def work(self):
        """Send requests as many as the time of day wants."""
        due = 0.0
        while True:
            before = time.monotonic()
            await asyncio.sleep(_BATCH_S)
            # After a pause of the process, its callers do not come back all at once.
            passed = min(time.monotonic() - before, 5 * _BATCH_S)
            due += passed * rate_at((before - self._began) / self._day_s)
            count, due = int(due), due % 1
            lives = (before - self._began) / LIFE_S
            for place in self._random.choices(range(KEYS), self._weights, k=count):
                await self._ask(place + KEYS * int(lives + place / KEYS))

    async def _ask(self, number):
        try:
            answer = await self.service.process_request({"number": number})
        except Exception as error:
            if len(self.errors) < 5:
                self.errors.append(repr(error))
            return
        self.answers += 1
        self.wrong += answer != {"square": number**2}

    async def report(self):
        """Print every hour what is used."""
        while True:
            say("hour", answers=self.answers, wrong=self.wrong, errors=self.errors, **used())
            await asyncio.sleep(self._day_s / 24)


async def handler(request):
    await asyncio.sleep(0.0005)
    return {"square": request["number"] ** 2}


async def main():
    settings, day_s, began = Settings(**json.loads(sys.argv[1])), float(sys.argv[2]), float(sys.argv[3])
    uncaught = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: uncaught.append(repr(context)))
    async with PerformanceService(settings, handler=handler) as service:
        service.monitor.on_alert(
            lambda alert: say("alert", alert=str(alert.kind), subject=alert.subject, state=str(alert.state))
        )
        instance = Instance(service, day_s, began)
        async with asyncio.TaskGroup() as tasks:
            working = [tasks.create_task(instance.work()), tasks.create_task(instance.report())]
            say("ready")
            await asyncio.to_thread(sys.stdin.read)
            for task in working:
                task.cancel()
    await asyncio.sleep(0)
    say("end", answers=instance.answers, wrong=instance.wrong, errors=instance.errors, uncaught=uncaught, **used())


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
