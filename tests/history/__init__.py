"""A history checker: real processes use one cache on real servers, and a checker looks for lost writes afterwards.

    python -m tests.history --mode plain --seconds 10

Each process logs every operation with its start and its end on the machine's monotonic clock, which processes share.
The source of truth is a counter for each key that only grows; the cache stores the counter's value. After the run the
checker searches the logs for reads that are older than an acknowledged write, and for keys on which the processes and
the tiers disagree when nobody writes any more.

`test_modes` runs every mode. A cache that never answers is never wrong, so it also asks for hits.

- `history`: the events and the log files.
- `truth`: the counters.
- `worker`: one process.
- `servers`: the Redis and the proxies that faults need.
- `modes`: what a run does to processes and servers.
- `run`: starts everything, and returns the report.
- `checker`: the rules, pure functions over a history.
- `report`: the verdict.
"""
