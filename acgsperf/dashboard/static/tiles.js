// The latest figures in large type, and the alerts. A figure that misses its target is red, and says so.

import { byId, element, setText } from "./elements.js";
import { count, milliseconds, percent, rate, time } from "./format.js";

const TILES = [
  ["Requests", ({ point }) => rate(point.requests)],
  ["Failed", ({ point }) => rate(point.errors), ({ point }) => point.errors > 0],
  ["Refused", ({ point }) => rate(point.violations), ({ point }) => point.violations > 0],
  ["P50", ({ point }) => milliseconds(point.p50_ms), ({ point, targets }) => targets && point.p50_ms > targets.p50_ms],
  ["P95", ({ point }) => milliseconds(point.p95_ms), ({ point, targets }) => targets && point.p95_ms > targets.p95_ms],
  ["P99", ({ point }) => milliseconds(point.p99_ms), ({ point, targets }) => targets && point.p99_ms > targets.p99_ms],
  [
    "Hits per request",
    ({ point }) => percent(point.hit_rate),
    ({ point, targets }) => targets && point.hit_rate != null && point.hit_rate < targets.hit_rate,
  ],
  ["Requests since start", ({ requests }) => count(requests)],
  ["Processes", ({ processes }) => count(processes)],
];

export class Tiles {
  constructor() {
    this.values = TILES.map(([title]) => {
      const value = element("dd", {}, "–");
      byId("tiles").append(element("div", {}, element("dt", {}, title), value));
      return value;
    });
  }

  update(snapshot) {
    TILES.forEach(([, write, isBad], at) => {
      const bad = Boolean(isBad && isBad(snapshot));
      setText(this.values[at], write(snapshot) + (bad ? " !" : ""));
      this.values[at].className = bad ? "bad" : "";
    });
  }
}

// `missing` says in words what the figures of the fleet lack.
export function showAlerts({ alerts, missing }) {
  const list = byId("alert-list");
  const raised = (alerts ?? []).map(({ kind, text, since }) => ({ kind, text: `${text} (since ${time(since)})` }));
  const shown = [...raised, ...missing.map((text) => ({ kind: "missing", text: `Fleet: ${text}` }))];
  byId("alerts").hidden = !shown.length;
  while (list.children.length > shown.length) list.lastChild.remove();
  shown.forEach(({ kind, text }, at) => {
    const item = list.children[at] ?? list.appendChild(element("li"));
    item.className = kind;
    setText(item, text);
  });
}
