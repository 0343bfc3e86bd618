"""What the spans of a load cost. A load is a `get_or_load` that misses in L1 and in Redis, with a trivial loader.

    python bench/span_cost.py                   CPU time of a load; the variants take turns
    python bench/span_cost.py --instructions    instructions of a load, counted by valgrind

The variants:

    off         `instrument` was not called
    no SDK      `instrument` was called, but no SDK is set up
    SDK         as an application has it: batch processor, in-memory exporter; a load of less than 1 ms makes no span
    all spans   with `min_span_s=0`, every load makes a span
    bare span   `instrument` was not called, but the application makes a span of the SDK after every load

The instructions of a load over a real Redis vary by some percent, because timers run meanwhile. So the difference of
two variants is counted in loads without lower tiers, and divided by the instructions of a load over Redis. Under
valgrind, such a load may take more than 1 ms. So "SDK" then makes spans of loads of 10 s or more only.

A load of 1 ms or more makes a span also with the default `min_span_s`. Then the difference of "all spans" and "off" is
a part of at least 1 ms.
"""

import argparse
import asyncio
import gc
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer

from acgsperf import LRUCache, RedisTier, TieredCache, hooks
from acgsperf.metrics.opentelemetry import instrument
from acgsperf.workbench.embedded import embedded_servers

VARIANTS = ("off", "no SDK", "SDK", "all spans", "bare span")
ROUNDS = 30
LOADS = 200
# Instructions are counted in two runs. Their difference has neither the start nor the end of the program.
COUNTED = (200, 1_200)

numbers = count()
meters = MeterProvider()


class Sdk:
    """A tracer provider as an application has it."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(BatchSpanProcessor(self.exporter))


@contextmanager
def instrumented(variant: str, sdk: Sdk, min_span_s: float = 0.001) -> Iterator[None]:
    if variant in ("off", "bare span"):
        yield
        return
    created = instrument(
        meter_provider=meters,
        tracer_provider=None if variant == "no SDK" else sdk.provider,
        min_span_s=0 if variant == "all spans" else min_span_s,
    )
    try:
        yield
    finally:
        created.close()
        sdk.exporter.clear()


async def load(key: str) -> int:
    return 1


async def loads(cache: TieredCache[int], number: int, bare: Tracer | None = None) -> None:
    for _ in range(number):
        await cache.get_or_load(f"key {next(numbers)}", load)
        if bare is not None:
            bare.start_span("a", attributes={hooks.CACHE: "app", hooks.KEYS: 1}).end()


def opened(url: str) -> TieredCache[int]:
    return TieredCache(LRUCache(1_000), RedisTier(url, deadline=60), namespace=f"spans {os.getpid()}")


async def times(url: str) -> dict[str, list[tuple[float, float]]]:
    """Return the CPU time and the duration of a load in each round, in seconds."""
    sdk = Sdk()
    found: dict[str, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
    async with opened(url) as cache:
        await loads(cache, 5 * LOADS)
        for round_ in range(ROUNDS):
            for variant in VARIANTS[round_ % len(VARIANTS) :] + VARIANTS[: round_ % len(VARIANTS)]:
                bare = sdk.provider.get_tracer("bench") if variant == "bare span" else None
                with instrumented(variant, sdk):
                    cpu, wall = time.process_time(), time.perf_counter()
                    await loads(cache, LOADS, bare)
                    # The batch processor exports in a thread of its own, which is a part of the cost.
                    sdk.provider.force_flush()
                    found[variant].append(((time.process_time() - cpu) / LOADS, (time.perf_counter() - wall) / LOADS))
    return found


def print_times(found: dict[str, list[tuple[float, float]]]) -> None:
    print(f"{'':12}{'CPU, min':>12}{'ratio':>8}{'CPU, median':>14}{'ratio':>8}{'wall, min':>12}{'ratio':>8}")
    takes: list[Callable[[list[tuple[float, float]]], float]] = [
        lambda rounds: min(cpu for cpu, _ in rounds),
        lambda rounds: statistics.median(cpu for cpu, _ in rounds),
        lambda rounds: min(wall for _, wall in rounds),
    ]
    for variant, rounds in found.items():
        cells = [(take(rounds) * 1e6, take(rounds) / take(found["off"])) for take in takes]
        print(f"{variant:12}" + "".join(f"{us:9.1f} µs{ratio:8.3f}" for us, ratio in cells))


async def counted(url: str, variant: str, number: int) -> None:
    sdk = Sdk()
    cache = opened(url) if url else TieredCache(LRUCache(1_000), namespace="spans")
    bare = sdk.provider.get_tracer("bench") if variant == "bare span" else None
    async with cache:
        with instrumented(variant, sdk, 10):
            await loads(cache, 50)
            # The garbage collector would also visit the objects that exist so far, among them the instruments.
            gc.collect()
            gc.freeze()
            for _ in range(number // LOADS):
                await loads(cache, LOADS, bare)
                sdk.provider.force_flush()
                # Otherwise the garbage collector visits all former spans again and again.
                sdk.exporter.clear()


def instructions(url: str, variant: str) -> float:
    """Return the instructions of a load. Without a URL, it has no lower tiers."""
    totals = []
    for number in COUNTED:
        with tempfile.TemporaryDirectory() as folder:
            command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", sys.executable, __file__]
            environment = os.environ | {"PYTHONHASHSEED": "0"}
            subprocess.run(
                [*command, "--run", url, variant, str(number)], check=True, env=environment, stderr=subprocess.DEVNULL
            )
            total = re.search(r"^(?:summary|totals): (\d+)", Path(folder, "out").read_text(), re.MULTILINE)
            assert total is not None
            totals.append(int(total[1]))
    return (totals[1] - totals[0]) / (COUNTED[1] - COUNTED[0])


def print_instructions(url: str) -> None:
    off = instructions("", "off")
    print(f"without lower tiers {off:12,.0f} instructions", flush=True)
    of_redis = instructions(url, "off")
    print(f"over Redis          {of_redis:12,.0f} instructions", flush=True)
    for variant in VARIANTS[1:]:
        more = instructions("", variant) - off
        print(f"{variant:12} + {more:17,.0f} instructions, {more / of_redis:.2%} of a load over Redis", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructions", action="store_true")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        url, variant, number = arguments.run
        asyncio.run(counted(url, variant, int(number)))
        return
    with embedded_servers(postgres=False) as servers:
        assert servers.redis_url is not None
        if arguments.instructions:
            print_instructions(servers.redis_url)
        else:
            print_times(asyncio.run(times(servers.redis_url)))


if __name__ == "__main__":
    main()
