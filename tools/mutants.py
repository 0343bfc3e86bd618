"""Changes the code in small ways, one at a time, and checks that a test fails for each change.

`mutants.py [SUBJECT ...]` runs the tests of a subject for each mutant of its module, each in a process of its own. A
mutant that no test notices survives. `survivors.txt` beside this file lists those that are accepted, with the reason:
they do the same, or only faster or slower. Any other survivor makes the run fail, and so does a line of that list whose
mutant does not survive any more.

The module is changed while it is imported; the files stay as they are. No mutants are made of texts of messages, log
calls, annotations, docstrings and type aliases.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Final

CLONE: Final = Path(__file__).parents[1]
SURVIVORS: Final = Path(__file__).with_name("survivors.txt")


@dataclass(frozen=True)
class Subject:
    """A module, and the tests that must notice each change of it.

    Attributes:
        module: the name of the module.
        tests: arguments of pytest.
    """

    module: str
    tests: tuple[str, ...]

    @property
    def path(self) -> Path:
        return CLONE / f"{self.module.replace('.', '/')}.py"


# The slow tests with thousands of callers come last, so that most mutants never get there.
_CACHE: Final = "tests/cache/test_"
SUBJECTS: Final = {
    "single-flight": Subject(
        "acgsperf.cache.single_flight",
        (
            f"{_CACHE}single_flight.py", f"{_CACHE}overlaps.py", f"{_CACHE}garbage.py", f"{_CACHE}staleness.py",
            "tests/metrics/test_spans.py",
        ),
    ),
    "ordering": Subject(
        "acgsperf.cache.ordering", (f"{_CACHE}ordering.py", f"{_CACHE}overlaps.py", f"{_CACHE}touch.py")
    ),
    "breaker": Subject("acgsperf.tiers.breaker", ("tests/tiers/test_breaker.py",)),
    "listener": Subject("acgsperf.cache.listener", (f"{_CACHE}listener.py", f"{_CACHE}coherence.py")),
    "receiver": Subject(
        "acgsperf.backplane.receiver", ("tests/backplane/test_receiver.py", "tests/backplane/test_redis_backplane.py")
    ),
    "records": Subject(
        "acgsperf.tiers.records",
        ("tests/tiers/test_records.py", "tests/backplane/test_redis_backplane.py", "tests/backplane/test_outbox.py"),
    ),
    # The comparison with the compiled predictor notices most mutants.
    "predictor": Subject(
        "acgsperf._native.predictor_py",
        ("tests/core/test_predictor.py::test_both_implementations_do_the_same", "tests/core/test_predictor.py"),
    ),
}  # fmt: skip

_COMPARED: Final = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_COMPUTED: Final = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}  # fmt: skip
# Loading all plugins that are installed takes longer than most tests.
_PLUGINS: Final = ("-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout")
_QUIET: Final = frozenset({"debug", "info", "warning", "error", "exception"})


@dataclass(frozen=True)
class Mutant:
    """One change: `where` and `change` identify it, whatever its line."""

    line: int
    where: str
    change: str
    tree: ast.Module

    def __str__(self) -> str:
        return f"{self.where}: {self.change}"


def mutants(source: str) -> Iterator[Mutant]:
    """Yield all mutants of a source."""
    tree = ast.parse(source)
    for number, (node, where) in enumerate(_places(tree)):
        for edit in _edits(node):
            changed = copy.deepcopy(tree)
            twin = next(found for at, (found, _) in enumerate(_places(changed)) if at == number)
            before = ast.unparse(twin)
            after = edit(twin)
            text = " ".join(f"{before} -> {after}".split())
            yield Mutant(getattr(node, "lineno", 0), where, text, ast.fix_missing_locations(changed))


def _places(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Yield the nodes that may be changed, with the names of the functions and classes around them."""

    def walk(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[ast.AST, str]]:
        for field, child in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "args", "type_comment") and not _is_call(
                node, field
            ):
                continue
            for one in child if isinstance(child, list) else [child]:
                if not isinstance(one, ast.AST) or _is_skipped(one):
                    continue
                inside = names
                if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    inside = (*names, one.name)
                yield one, ".".join(inside) or "module"
                yield from walk(one, inside)

    yield from walk(tree, ())


def _is_call(node: ast.AST, field: str) -> bool:
    return field == "args" and isinstance(node, ast.Call)


def _is_skipped(node: ast.AST) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.Raise):
        # What is raised is text, mostly. Whether it is raised is decided elsewhere.
        return True
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.Assign | ast.AnnAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        return ast.unparse(target) in ("__slots__", "__all__", "_log")
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _QUIET
        and ast.unparse(node.func.value) == "_log"
    )


Edit = Callable[[ast.AST], str]


def _edits(node: ast.AST) -> list[Edit]:
    """Return functions that change a node in place, and return its new text."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARED:
        return [_compared]
    if isinstance(node, ast.BoolOp):
        return [_joined]
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _COMPUTED:
        return [_computed]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return [_not_negated]
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        return [] if isinstance(node.test, ast.Compare | ast.BoolOp | ast.UnaryOp) else [_negated]
    if isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        return [_other_constant]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await):
        call = node.value.value if isinstance(node.value, ast.Await) else node.value
        return [] if _is_skipped(call) else [_left_out]
    if isinstance(node, ast.Continue):
        return [_broken]
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        return [_returns_none]
    return []


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _compared(node: ast.AST) -> str:
    assert isinstance(node, ast.Compare)
    node.ops = [_COMPARED[type(node.ops[0])]()]
    return ast.unparse(node)


def _joined(node: ast.AST) -> str:
    assert isinstance(node, ast.BoolOp)
    node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    return ast.unparse(node)


def _computed(node: ast.AST) -> str:
    assert isinstance(node, ast.BinOp | ast.AugAssign)
    node.op = _COMPUTED[type(node.op)]()
    return ast.unparse(node)


def _not_negated(node: ast.AST) -> str:
    assert isinstance(node, ast.UnaryOp)
    # Twice negated is the truth of what was negated once.
    node.operand = ast.UnaryOp(ast.Not(), node.operand)
    return ast.unparse(node)


def _negated(node: ast.AST) -> str:
    assert isinstance(node, ast.If | ast.While | ast.IfExp)
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return ast.unparse(node)


def _other_constant(node: ast.AST) -> str:
    assert isinstance(node, ast.Constant)
    node.value = not node.value if isinstance(node.value, bool) else node.value + 1  # type: ignore[operator]
    return ast.unparse(node)


def _left_out(node: ast.AST) -> str:
    assert isinstance(node, ast.Expr)
    node.value = ast.Constant(None)
    return "None"


def _broken(node: ast.AST) -> str:
    node.__class__ = ast.Break  # type: ignore[assignment]
    return "break"


def _returns_none(node: ast.AST) -> str:
    assert isinstance(node, ast.Return)
    node.value = ast.Constant(None)
    return "return None"


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed tree."""

    def __init__(self, subject: Subject, tree: ast.Module) -> None:
        self._subject, self._tree = subject, tree

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._subject.module:
            return None
        return importlib.util.spec_from_file_location(
            name, self._subject.path, loader=_Changed(self._tree, self._subject)
        )


class _Changed(importlib.abc.Loader):
    def __init__(self, tree: ast.Module, subject: Subject) -> None:
        self._tree, self._subject = tree, subject

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._tree, str(self._subject.path), "exec"), module.__dict__)


def tested(subject: Subject, tree: ast.Module | None, seconds: float) -> str:
    """Run the tests of a subject in a new process, with a changed tree; return "passed", "failed" or "timeout"."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        with Path(os.devnull).open("w") as nowhere:
            if tree is not None or not os.environ.get("MUTANTS_VERBOSE"):
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            if tree is not None:
                sys.meta_path.insert(0, _Finder(subject, tree))
            import pytest

            status = pytest.main(["-x", "-q", *_PLUGINS, "--timeout=60", *subject.tests])
            os._exit(int(status))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return "passed" if code == 0 else "failed"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def accepted() -> dict[str, set[str]]:
    """Return the survivors that are accepted, for each subject."""
    found: dict[str, set[str]] = {}
    for line in SURVIVORS.read_text().splitlines():
        if line and not line.startswith("#"):
            subject, mutant, _ = line.split(" | ")
            found.setdefault(subject, set()).add(mutant)
    return found


def run(name: str, *, only: str | None) -> bool:
    """Run the mutants of a subject; return whether all are killed or accepted."""
    subject = SUBJECTS[name]
    began = time.monotonic()
    if tested(subject, None, 1_200) != "passed":
        raise SystemExit(f"{name}: the tests fail without a change: {' '.join(subject.tests)}")
    # An endless loop is noticed as well. The first run also imports what later ones have in memory.
    patience = 10 + 4 * (time.monotonic() - began)
    known = accepted().get(name, set())
    killed, survived = 0, []
    for mutant in mutants(subject.path.read_text()):
        if only and only not in str(mutant):
            continue
        if tested(subject, mutant.tree, patience) == "passed":
            survived.append(str(mutant))
            if str(mutant) not in known:
                print(f"{name}: line {mutant.line} survived: {mutant}", flush=True)
        else:
            killed += 1
    gone = set() if only else known - set(survived)
    for mutant_text in sorted(gone):
        print(f"{name}: is accepted as a survivor, but does not survive: {mutant_text}")
    new = [mutant_text for mutant_text in survived if mutant_text not in known]
    total = killed + len(survived)
    print(
        f"{name}: {total} mutants, {killed} killed, {len(survived) - len(new)} accepted, {len(new)} survived",
        flush=True,
    )
    return not new and not gone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"default: all of {', '.join(SUBJECTS)}")
    parser.add_argument("--only", help="mutants whose description contains this")
    given = parser.parse_args()
    if unknown := set(given.subjects) - set(SUBJECTS):
        parser.error(f"unknown subject {unknown.pop()}, expected one of {', '.join(SUBJECTS)}")
    os.chdir(CLONE)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.path[:0] = [str(CLONE), str(CLONE / "tests")]
    # What every process needs is imported once. Nothing of the package is: it must be imported changed.
    for module in ("pytest", "asyncpg", "msgspec", "redis.asyncio", "xxhash"):
        importlib.import_module(module)
    # Each subject is run, whatever happened to the ones before.
    outcomes = [run(name, only=given.only) for name in given.subjects or SUBJECTS]
    if not all(outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
