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

export function showAlerts(alerts) {
  const list = byId("alert-list");
  byId("alerts").hidden = !alerts?.length;
  const texts = (alerts ?? []).map(({ text, since }) => `${text} (since ${time(since)})`);
  while (list.children.length > texts.length) list.lastChild.remove();
  texts.forEach((text, at) => {
    const item = list.children[at] ?? list.appendChild(element("li"));
    item.className = alerts[at].kind;
    setText(item, text);
  });
}
