// How many requests took how long, over time: a column for each point, a row for each band of latency.

import { Card, color, logAxis, timeAxis } from "./charts.js";
import { milliseconds } from "./format.js";

export class HeatMap {
  constructor(parent, title) {
    this.card = new Card(parent, title);
    this.points = [];
    this.bands = [];
  }

  update(points, bands) {
    // Each with the time at which it begins: at the point before, or as usual after a gap.
    const usual = points.length > 1 ? points.at(-1).at - points.at(-2).at : 1;
    const begin = (point, before) => (before && !before.gap ? before.at : point.at - usual);
    this.points = points.map((point, at) => ({ ...point, from: begin(point, points[at - 1]) })).filter(({ heat }) => heat);
    this.bands = bands;
    this.card.root.hidden = !this.points.length;
    if (!this.points.length) return;
    const [first, last] = this.rows();
    const data = [points.map((point) => point.at), points.map(() => null)];
    this.range = [this.lower(first), this.upper(last)];
    this.card.draw(this.options(), data);
    const slowest = this.points.at(-1).heat.findLastIndex((count) => count > 0);
    const most = this.points.at(-1).heat.indexOf(Math.max(...this.points.at(-1).heat));
    this.card.describe(
      `most requests took up to ${milliseconds(this.upper(most))}, the slowest up to ${milliseconds(this.upper(slowest))}`,
    );
  }

  // The lowest and the highest band in use.
  rows() {
    let first = this.bands.length;
    let last = 0;
    for (const { heat } of this.points) {
      first = Math.min(first, heat.findIndex((count) => count > 0));
      last = Math.max(last, heat.findLastIndex((count) => count > 0));
    }
    return [Math.max(0, first), last];
  }

  upper(row) {
    return row < this.bands.length ? this.bands[row] : this.bands.at(-1) * 2;
  }

  lower(row) {
    return row > 0 ? this.bands[row - 1] : this.bands[0] / 2;
  }

  options() {
    return {
      scales: { y: { distr: 3, range: () => this.range } },
      axes: [timeAxis(), logAxis({ size: 68, values: (_, values) => values.map((v) => (v == null ? "" : milliseconds(v))) })],
      cursor: { show: false },
      series: [{}, { show: true }],
      hooks: { draw: [(plot) => this.paint(plot)] },
    };
  }

  paint(plot) {
    const { ctx, bbox } = plot;
    const tone = color("heat");
    const most = Math.log1p(Math.max(...this.points.flatMap(({ heat }) => heat)));
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    for (const { at, from, heat } of this.points) {
      const right = plot.valToPos(at, "x", true);
      const left = plot.valToPos(from, "x", true);
      heat.forEach((count, row) => {
        if (!count) return;
        const top = plot.valToPos(this.upper(row), "y", true);
        const bottom = plot.valToPos(this.lower(row), "y", true);
        ctx.fillStyle = `rgba(${tone}, ${0.15 + (0.85 * Math.log1p(count)) / most})`;
        ctx.fillRect(left, top, Math.max(1, right - left), bottom - top);
      });
    }
    ctx.restore();
  }

  redraw() {
    this.card.redraw();
  }
}
