"""Fuzzes: `python tests/fuzz/run.py [TARGET ...] --seconds 60`.

With atheris, inputs that reach new branches of the Python code are kept and changed further. A compiled module has the
branches of its twin, so these guide both. Without atheris (it has no wheels for every Python) and under sanitizers,
inputs of the corpus are changed at random.

The corpus is in `corpus/TARGET/`, and `test_corpus.py` runs it. New inputs are kept in `.cache/fuzz/TARGET/`;
`--keep` adds to the corpus those that reach something new. An input that fails is written to `.cache/fuzz/`, and the
command to repeat it is printed.
"""

import argparse
import hashlib
import importlib.util
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

HERE: Final = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

CORPUS: Final = HERE / "corpus"
WORK: Final = HERE.parents[1] / ".cache" / "fuzz"
LONGEST: Final = 4_096
# Modules whose branches guide atheris.
_GUIDES: Final = (
    "acgsperf._native.hdr_codec", "acgsperf._native.histogram_py", "acgsperf._native.envelope_format",
    "acgsperf._native.envelope_py", "acgsperf._native.canonical_py", "acgsperf._native.weigh_py",
    "acgsperf._native.resp_py", "acgsperf._native.snapshot", "acgsperf._native.lru_table_py",
    "acgsperf._native.bounded_py", "acgsperf._native.fifo_py", "acgsperf._native.adaptive_py",
    "acgsperf._native.policy_py", "acgsperf._native.shadows_py", "acgsperf._native.placing_py",
    "acgsperf._native.predictor_py", "acgsperf._native.relearning", "acgsperf._native.pg_dialogue_py",
    "acgsperf.tiers.records", "acgsperf.workbench", "fuzz.values",
)  # fmt: skip
# What parsers look for.
_WORDS: Final = (
    b"\x00", b"\xff", b"\x7f", b"\x80", b"\r\n", b"\n", b"E\x02\x00\x00", b"T", b"M", b"namespce", b"key",
    b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\x7f\xff\xff\xff", b"*1000000\r\n", b"$536870913\r\n", b'{"a": ', b"[",
    b'"', b"\x93", b"\xc4", b"\xdf", b"\xdd\xff\xff\xff\xff", b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00",
)  # fmt: skip


def inputs(name: str) -> list[bytes]:
    """Return the corpus of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def mutated(data: bytes, others: list[bytes], source: random.Random) -> bytes:
    """Return data with one to eight random changes."""
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 3, 8))):
        at = source.randint(0, len(changed))
        kind = source.randrange(7)
        if kind == 0 and changed:
            changed[at % len(changed)] ^= 1 << source.randrange(8)
        elif kind == 1 and changed:
            changed[at % len(changed)] = source.randrange(256)
        elif kind == 2:
            changed[at:at] = source.choice(_WORDS)
        elif kind == 3:
            del changed[at : at + source.randint(1, 16)]
        elif kind == 4:
            changed[at:at] = source.randbytes(source.randint(1, 16))
        elif kind == 5:
            changed[at:at] = changed[at : at + source.randint(1, 64)]
        elif others:
            other = source.choice(others)
            start = source.randint(0, len(other))
            changed[at:] = other[start:]
    return bytes(changed[:LONGEST])


def mutate(name: str, target: Callable[[bytes], None], seconds: float, seed: int) -> int:
    """Run a target on changed inputs of the corpus for some time; return how many there were."""
    source = random.Random(seed)
    known = inputs(name) or [b""]
    runs = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = known[runs] if runs < len(known) else mutated(source.choice(known), known, source)
        runs += 1
        try:
            target(data)
        except Exception as error:
            raise SystemExit(f"{name}: {type(error).__name__}: {error}\n{_kept(name, data)}") from error
    return runs


def _kept(name: str, data: bytes) -> str:
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    return f"repeat it with: python {Path(__file__).relative_to(HERE.parents[1])} {name} --input {path}"


def _with_atheris(name: str, seconds: int) -> None:
    """Run a process that fuzzes one target: libFuzzer ends its process itself."""
    found = WORK / name
    found.mkdir(parents=True, exist_ok=True)
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, name, "--child"]
    options = [f"-max_len={LONGEST}", "-timeout=10", "-rss_limit_mb=4096", f"-artifact_prefix={WORK}/{name}-"]
    options.append(f"-max_total_time={seconds}")
    done = subprocess.run([*command, "-verbosity=0", *options, str(found), str(CORPUS / name)])
    if done.returncode:
        raise SystemExit(f"{name}: failed; repeat it with: python tests/fuzz/run.py {name} --input {WORK}/{name}-...")


def _branches(target: Callable[[bytes], None], data: bytes) -> set[tuple[str, int, int]]:
    """Return the steps from line to line that a target takes in the modules that guide the fuzzer."""
    found: set[tuple[str, int, int]] = set()
    files = {name.replace(".", "/") for name in _GUIDES}

    def follow(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        file = frame.f_code.co_filename
        if not any(part in file for part in files):
            return None
        before = 0

        def line(frame: FrameType, event: str, _: object) -> Callable[..., object]:
            nonlocal before
            found.add((file, before, frame.f_lineno))
            before = frame.f_lineno
            return line

        return line

    sys.settrace(follow)
    try:
        target(data)
    finally:
        sys.settrace(None)
    return found


def keep(name: str, target: Callable[[bytes], None]) -> int:
    """Add inputs of `.cache/fuzz/TARGET/` to the corpus if they take a new step; return how many. Short ones first."""
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    known: set[tuple[str, int, int]] = set()
    for data in inputs(name):
        known |= _branches(target, data)
    added = 0
    for data in sorted((path.read_bytes() for path in (WORK / name).glob("*")), key=len):
        if new := _branches(target, data) - known:
            known |= new
            (CORPUS / name / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
            added += 1
    return added


def _child(name: str, options: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=list(_GUIDES)):
        from fuzz.targets import TARGETS
    atheris.Setup([__file__, *options], TARGETS[name])
    atheris.Fuzz()


def main() -> None:
    if "--child" in sys.argv:
        _child(sys.argv[1], sys.argv[3:])
        return
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description="Fuzz the parsers and compare compiled modules with their twins.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--engine", choices=["atheris", "mutations"], help="default: atheris if it is installed")
    parser.add_argument("--keep", action="store_true", help="add inputs that reach new branches to the corpus")
    parser.add_argument("--input", type=Path, help="run one target on one file")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="of the random changes")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"unknown target {unknown.pop()}, expected one of {', '.join(TARGETS)}")
    if given.input:
        for name in given.targets:
            TARGETS[name](given.input.read_bytes())
        return
    has_atheris = importlib.util.find_spec("atheris") is not None
    engine = given.engine or ("atheris" if has_atheris else "mutations")
    print(f"{engine}, {given.seconds} s for each target, seed {given.seed}", flush=True)
    for name in given.targets or TARGETS:
        if engine == "atheris":
            _with_atheris(name, given.seconds)
            print(f"{name}: nothing found", flush=True)
        else:
            runs = mutate(name, TARGETS[name], given.seconds, given.seed)
            print(f"{name}: {runs:,} inputs, nothing found", flush=True)
        if given.keep:
            print(f"{name}: {keep(name, TARGETS[name])} inputs added to the corpus", flush=True)


if __name__ == "__main__":
    main()
