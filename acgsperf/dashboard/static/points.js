// The points of the charts: those that the server sent at first, and one per snapshot since then. Older ones are coarser.

const LONGEST_S = 28800;
const MOST = 3000;
// Points older than the first number of seconds are merged to one in the second number of seconds.
const COARSER = [[3600, 60], [900, 15], [0, 0.5]];
const HIGHEST = new Set(["p50_ms", "p95_ms", "p99_ms", "in_use", "waiting", "lag_ms"]);
// Anything shorter is no gap.
const GAP_S = 100;
const NEIGHBOURS = 5;
// A clock that was set back by less is soon right again.
const JITTER_S = 1;

// One point for the time of two: the mean of rates and ratios, the highest of the others, the sum of the heat map.
function merged(first, second) {
  const [before, after] = [first.weight ?? 1, second.weight ?? 1];
  const found = { ...first, ...second, weight: before + after };
  for (const field of Object.keys(first)) {
    if (field === "at" || field === "weight" || first[field] == null || second[field] == null) continue;
    if (field === "heat") found.heat = second.heat.map((count, row) => count + (first.heat[row] ?? 0));
    else if (HIGHEST.has(field)) found[field] = Math.max(first[field], second[field]);
    else found[field] = (first[field] * before + second[field] * after) / (before + after);
  }
  return found;
}

function median(numbers) {
  return numbers.sort((one, other) => one - other)[Math.floor(numbers.length / 2)] ?? 0;
}

export class Points {
  constructor() {
    this.all = [];
  }

  // Takes what the server knows at the time `now` of its clock, and keeps what was drawn before that: a server that has
  // started again knows little.
  restore(points, now) {
    const moved = this.all.at(-1)?.at - now;
    // If the server has not noticed yet that its clock was set back, `add` moves its points, too.
    if (moved >= JITTER_S && !(points.at(-1)?.at > now)) this.setBack(moved);
    const first = points.length ? points[0].at : Infinity;
    this.all = [...this.all.filter(({ at }) => at < first), ...points];
    this.shorten();
  }

  // Adds the point of the last `seconds`.
  add(point, seconds) {
    const last = this.all.at(-1);
    if (last && point.at <= last.at) {
      if (last.at - point.at < JITTER_S) return;
      this.setBack(last.at - point.at + seconds);
    }
    this.all.push(point);
    this.shorten();
  }

  // Moves what was drawn with a clock that was set back. If the clock was ahead for a while only, there is a gap before
  // that, and the points before the gap were right.
  setBack(moved) {
    let first = this.all.length - 1;
    while (first > 0 && this.all[first].at - this.all[first - 1].at <= Math.max(moved, GAP_S)) first -= 1;
    this.all = this.all.map((point, number) => (number < first ? point : { ...point, at: point.at - moved }));
  }

  shorten() {
    const now = this.all.at(-1)?.at;
    let first = this.all.length - 1;
    let covered = 0;
    while (first > 0) {
      // Not the whole gap: while a clock is ahead, all points before that look old.
      covered += Math.min(this.all[first].at - this.all[first - 1].at, GAP_S);
      if (covered > LONGEST_S) break;
      first -= 1;
    }
    if (first > 0) this.all.splice(0, first);
    if (this.all.length <= MOST) return;
    const kept = [];
    let slot = null;
    for (const point of this.all) {
      const [, seconds] = COARSER.find(([age]) => now - point.at >= age);
      const own = `${seconds}:${Math.floor(point.at / seconds)}`;
      kept.push(own === slot ? merged(kept.pop(), point) : point);
      slot = own;
    }
    this.all = kept.slice(-MOST);
  }

  // The points of the last seconds. A gap between two of them, as after a restart, becomes a point without values.
  within(seconds) {
    const last = this.all.at(-1);
    if (!last) return [];
    const shown = this.all.filter(({ at }) => at >= last.at - seconds);
    const lengths = shown.map(({ at }, number) => (number ? at - shown[number - 1].at : 0));
    const found = [];
    shown.forEach((point, number) => {
      if (isGap(lengths, number)) found.push({ at: point.at - lengths[number] / 2, gap: true });
      found.push(point);
    });
    return found;
  }
}

// Whether much more time than usual passed before a point. What is usual depends on the interval of the source: it is
// the median of a few times before or after it.
function isGap(lengths, number) {
  if (lengths[number] <= GAP_S) return false;
  const before = lengths.slice(Math.max(1, number - NEIGHBOURS), number);
  const after = lengths.slice(number + 1, number + 1 + NEIGHBOURS);
  if (!before.length && !after.length) return false;
  return lengths[number] > 3 * Math.max(median(before), median(after));
}
