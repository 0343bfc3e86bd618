"""Fills a cache, and compares the weight of its entries with the growth of the process: `growth.py MODULE KIND`."""

import gc
import importlib
import os
import random
import sys
from pathlib import Path

import msgspec

from acgsperf import LRUCache

MAXWEIGHT = 30_000_000
source = random.Random(1)


def record(i):
    return {"id": i + 10**6, "name": f"user {i}", "roles": ["a" * source.randint(2, 9)], "score": source.random()}


def text(i):
    return "x" * source.randint(100, 3_000)


def numbers(i):
    return [source.random() for _ in range(source.randint(5, 80))]


def order(i):
    lines = [
        {"sku": f"sku-{source.random()}", "quantity": 7, "tags": [f"t{source.random()}"]} for _ in range(i % 6 + 1)
    ]
    return {"lines": lines, "total": source.random()}


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


make = {"records": record, "texts": text, "numbers": numbers, "orders": order}[sys.argv[2]]
cache = LRUCache(maxweight=MAXWEIGHT, weigher=importlib.import_module(sys.argv[1]).weigh_bytes)
for i in range(1_000):
    msgspec.json.decode(msgspec.json.encode(make(i)))
gc.collect()
before = resident()
i = 0
while cache.stats().evictions == 0:
    i += 1
    cache.set(f"document {i:09}", msgspec.json.decode(msgspec.json.encode(make(i))))
gc.collect()
ratio = cache.stats().weight / (resident() - before)
assert 0.8 <= ratio <= 1.2, ratio
