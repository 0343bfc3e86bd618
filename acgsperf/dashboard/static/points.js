// The points of the charts: those that the server sent at first, and one per snapshot since then.

const LONGEST_S = 28800;
const MOST = 6000;

export class Points {
  constructor() {
    this.all = [];
  }

  replace(points) {
    this.all = points.slice(-MOST);
  }

  add(point) {
    const last = this.all.at(-1);
    if (last && point.at <= last.at) return;
    this.all.push(point);
    if (this.all.length > MOST || this.all[0].at < point.at - LONGEST_S) this.all.shift();
  }

  // The points of the last seconds. A gap between two of them, as after a restart, becomes a point without values.
  within(seconds) {
    const last = this.all.at(-1);
    if (!last) return [];
    const found = [];
    let before = null;
    for (const point of this.all) {
      if (point.at < last.at - seconds) continue;
      if (before && point.at - before.at > 90) found.push({ at: (before.at + point.at) / 2 });
      found.push(point);
      before = point;
    }
    return found;
  }
}
