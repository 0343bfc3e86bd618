"""What several processes that share one cache may rely on, tested with real processes on real servers.

A test is a dialogue: `open_process` gives it a process with an open cache, and each call of a method of the cache runs
in that process.

    a, b = open_process("l2"), open_process("l2")
    a.set("k", "old")
    load = b.begin_load("k", "loaded")
    a.set("k", "new")
    load.finish()

Calls that take part in a race are started with `begin`, and answered later. What only time can bring about is waited
for with `wait_for`.

- `program`: what such a process runs.
- `process`: how the test talks with it.
- `link`: a proxy between a process and its Redis that a test may freeze.
- `conftest`: the fixtures.
"""
