// The miss-ratio curve of each L1: what it would miss with half, twice and four times its size.

import { Card, axis, color } from "./charts.js";
import { byId, element, setText } from "./elements.js";
import { bytes, count, percent } from "./format.js";

export class Sizing {
  constructor() {
    this.curves = new Map();
  }

  update(caches) {
    const known = caches.filter((cache) => cache.sizing);
    byId("sizing").hidden = !known.length;
    for (const { name, sizing } of known) {
      if (!this.curves.has(name)) this.curves.set(name, new Curve(name));
      this.curves.get(name).update(sizing);
    }
  }

  redraw() {
    for (const curve of this.curves.values()) curve.card.redraw();
  }
}

class Curve {
  constructor(name) {
    this.card = new Card(byId("sizing-parts"), `Miss ratio of ${name} by entries of L1`);
    this.text = element("p");
    this.card.root.append(this.text);
  }

  update({ sizes, point_entries: entries, point_bytes: memory }) {
    const data = [
      sizes.map((size) => size.maxsize),
      sizes.map((size) => 1 - size.adaptive),
      sizes.map((size) => 1 - size.lru),
    ];
    this.card.draw(this.options(), data);
    const now = sizes.find((size) => size.factor === 1);
    const twice = sizes.find((size) => size.factor === 2);
    if (!now || !twice) return;
    let text = `${count(now.maxsize)} entries hit ${percent(now.adaptive)}; twice as many would hit ${percent(twice.adaptive)}.`;
    if (entries != null) {
      const cost = memory == null ? "" : ` (${bytes(memory)})`;
      text += ` One more percent takes ${count(entries)} entries${cost}.`;
    }
    text += ` LRU (dashed) would hit ${percent(now.lru)}.`;
    setText(this.text, text);
    this.card.describe(text);
  }

  options() {
    const line = (look, dash) => ({ stroke: () => color(look), width: 1.5, dash, points: { show: true, size: 6 } });
    return {
      scales: { x: { time: false, distr: 3 }, y: { range: (_, low, high) => [0, Math.max(high * 1.1, 0.001)] } },
      axes: [
        axis({ values: (_, values) => values.map((value) => (value == null ? "" : count(value))) }),
        axis({ size: 60, values: (_, values) => values.map(percent) }),
      ],
      cursor: { show: false },
      series: [{}, line("s1"), line("s2", [6, 4])],
    };
  }
}
