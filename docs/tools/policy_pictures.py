"""Draws the pictures of docs/policy.md from real runs: the share of requests that miss, by size and policy.

    python docs/tools/policy_pictures.py FOLDER_OF_TRACES

The folder has the recorded traces that docs/policy.md names. It takes some minutes.
"""

import random
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from math import log10
from pathlib import Path

from acgsperf.workbench.simulate import Simulation, dense
from acgsperf.workbench.traces import Trace

PICTURES = Path(__file__).parents[1] / "pictures"

# Colors that are readable on a white and on a black page.
TEXT, GRID = "#7d8590", "#7d859055"
LINES = {
    "lru": ("LRU", "#d9534f", ""),
    "s3fifo": ("S3-FIFO", "#c98a00", ""),
    "adaptive": ("adaptive", "#2f81f7", ""),
    "adaptive+prediction": ("adaptive and prediction", "#2da44e", ""),
    "belady": ("Belady: the best without prediction", TEXT, "5 4"),
}
WIDTH, HEIGHT, COLUMNS = 330, 250, 2
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 30, 40
LEGEND = 46


@dataclass(frozen=True)
class Panel:
    """One trace and the sizes to try."""

    title: str
    keys: "array[int]"
    sizes: tuple[int, ...]


def recorded(folder: Path, title: str, name: str, sizes: tuple[int, ...]) -> Panel:
    """Return a panel of a recorded trace; at most 100,000 requests."""
    with Trace(str(folder / name), None) as trace:
        return Panel(title, dense(trace.head(100_000)), sizes)


def without_order() -> Panel:
    """Return a panel of keys that are equally likely."""
    chance = random.Random(1)
    keys = array("q", (chance.randrange(2_000) for _ in range(100_000)))
    return Panel("2,000 equally likely keys", keys, (100, 200, 400, 800, 1_600))


def recently_used() -> Panel:
    """Return a panel of keys from a window that moves on, so that new keys are the next to be used."""
    chance = random.Random(1)
    keys = array("q", (number // 4 + chance.randrange(500) for number in range(100_000)))
    return Panel("500 popular keys, others soon", keys, (100, 200, 400, 800, 1_600))


def curves(panel: Panel) -> dict[str, list[tuple[int, float]]]:
    """Return the size and the share of misses of each point, by policy."""
    run = Simulation(panel.title, panel.keys, panel.sizes, ("lru", "s3fifo", "adaptive", "belady"), 1, prediction=True)
    found: dict[str, list[tuple[int, float]]] = {}
    for result in run.run():
        if result.policy in LINES:
            found.setdefault(result.policy, []).append((result.size, 1 - result.mean))
    return found


def drawn(panel: Panel, left: int, top: int) -> Iterator[str]:
    """Yield the elements of a panel."""
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    low, high = log10(panel.sizes[0]), log10(panel.sizes[-1])

    def x(size: int) -> float:
        return LEFT + width * (log10(size) - low) / (high - low)

    def y(share: float) -> float:
        return TOP + height * (1 - share)

    yield f'<g transform="translate({left} {top})">'
    yield f'<text x="{LEFT}" y="18" font-weight="bold">{escape(panel.title)}</text>'
    for share in (0, 0.25, 0.5, 0.75, 1):
        yield f'<path d="M{LEFT} {y(share):.1f}h{width}" stroke="{GRID}"/>'
        yield f'<text x="{LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{100 * share:.0f} %</text>'
    for size in panel.sizes[:: 2 if len(panel.sizes) > 5 else 1]:
        yield f'<text x="{x(size):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{size:,}</text>'
    yield f'<text x="{LEFT + width / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">entries</text>'
    for policy, points in curves(panel).items():
        _, color, dashes = LINES[policy]
        path = "L".join(f"{x(size):.1f} {y(misses):.1f}" for size, misses in points)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        yield f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"{dashed}/>'
    yield "</g>"


def legend(top: int) -> Iterator[str]:
    """Yield the names of the lines."""
    left, row = LEFT, 0
    for name, color, dashes in LINES.values():
        if left + 7 * len(name) + 40 > COLUMNS * WIDTH:
            left, row = LEFT, row + 1
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        yield f'<path d="M{left} {top + 20 * row}h22" stroke="{color}" stroke-width="2"{dashed}/>'
        yield f'<text x="{left + 28}" y="{top + 4 + 20 * row}">{escape(name)}</text>'
        left += 7 * len(name) + 56


def write(name: str, panels: list[Panel]) -> None:
    """Write a picture of several panels."""
    height = HEIGHT * -(-len(panels) // COLUMNS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {COLUMNS * WIDTH} {height + LEGEND}" role="img">',
        f'<g font-family="sans-serif" font-size="12" fill="{TEXT}">',
    ]
    for number, panel in enumerate(panels):
        parts += drawn(panel, WIDTH * (number % COLUMNS), HEIGHT * (number // COLUMNS))
    parts += [*legend(height + 12), "</g>", "</svg>", ""]
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / name).write_text("\n".join(parts))
    print(PICTURES / name)


def main(folder: Path) -> None:
    """Draw both pictures."""
    write(
        "policy-helps.svg",
        [
            recorded(folder, "a web shop, December", "web12.trace.xz", (100, 200, 500, 1_000, 2_000, 4_000)),
            recorded(folder, "objects of a database", "orm-busy.trace.xz", (200, 500, 1_000, 2_000, 4_000, 8_000)),
            recorded(folder, "several programs at once", "multi2.trace.gz", (100, 200, 500, 1_000, 1_500, 2_500)),
            recorded(folder, "a loop of 1,011 keys", "loop.trace.gz", (200, 300, 400, 512, 700, 900, 1_100)),
        ],
    )
    write(
        "policy-does-not-help.svg",
        [
            without_order(),
            recently_used(),
            recorded(folder, "a ledger: each key three times", "vaultservice.trace.gz", (32, 128, 512, 2_000)),
        ],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
