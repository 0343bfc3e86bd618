// The last weeks, hour by hour, and what became slower or faster.

import { LineChart, dayAxis } from "./charts.js";
import { byId, element } from "./elements.js";
import { milliseconds, rate } from "./format.js";

// After a failed request.
const RETRY_MS = 60000;
// The source keeps none.
const NONE_MS = 600000;
const GAP_S = 5400;
const line = (field, label, look) => ({ field, label, look });

export class Trends {
  constructor() {
    const parent = byId("trend-charts");
    this.due = 0;
    this.charts = [
      new LineChart(parent, "Latency by the hour", {
        series: [line("p50_ms", "P50", "s1"), line("p95_ms", "P95", "s2"), line("p99_ms", "P99", "s3")],
        write: milliseconds,
        log: true,
        across: dayAxis,
      }),
      new LineChart(parent, "Requests by the hour", {
        series: [line("requests", "requests", "s1")],
        write: rate,
        across: dayAxis,
      }),
    ];
  }

  // Asks the server if the last answer is old. The answer says when to ask again.
  async refresh() {
    if (Date.now() < this.due) return;
    this.due = Infinity;
    let wait = RETRY_MS;
    try {
      const response = await fetch("trends");
      const trends = response.ok ? await response.json() : null;
      if (response.ok) wait = trends ? trends.next_s * 1000 : NONE_MS;
      if (trends) this.show(trends);
    } finally {
      this.due = Date.now() + wait;
    }
  }

  show({ hours, changes, missing }) {
    const texts = [...(changes ?? []), ...missing];
    byId("trends").hidden = !hours.length && !texts.length;
    byId("trend-list").replaceChildren(...texts.map((text) => element("li", {}, text)));
    byId("trend-list").hidden = !texts.length;
    const points = [];
    for (const hour of hours) {
      const last = points.at(-1);
      if (last && hour.at - last.at > GAP_S) points.push({ at: (last.at + hour.at) / 2 });
      points.push(hour);
    }
    for (const chart of this.charts) chart.update(points);
  }

  redraw() {
    for (const chart of this.charts) chart.redraw();
  }
}
