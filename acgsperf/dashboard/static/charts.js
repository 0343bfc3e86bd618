// Charts over time. Each has a legend of buttons, and says its latest values as text for those who cannot see it.

import { element, setText } from "./elements.js";
import { day, time } from "./format.js";

const HEIGHT = 180;

export function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export function axis(options) {
  return {
    stroke: () => color("quiet"),
    grid: { stroke: () => color("line"), width: 1 },
    ticks: { stroke: () => color("line"), width: 1 },
    font: "12px system-ui, sans-serif",
    ...options,
  };
}

export function timeAxis() {
  return axis({ space: 90, values: (_, values) => values.map(time) });
}

export function dayAxis() {
  return axis({ space: 90, values: (_, values) => values.map(day) });
}

// The axis of a logarithmic scale: only powers of ten get a line and a value.
export function logAxis(options) {
  const filter = (_, values) => values.map((value) => (Number.isInteger(Math.round(Math.log10(value) * 1e9) / 1e9) ? value : null));
  const made = axis({ filter, ...options });
  made.grid.filter = filter;
  made.ticks.filter = filter;
  return made;
}

// A card with a title and a plot that follows the width of the card.
export class Card {
  constructor(parent, title) {
    this.plot = null;
    this.title = title;
    this.holder = element("div", { class: "plot", role: "img", "aria-label": `${title}: no values yet` });
    this.root = element("figure", { class: "card" }, element("h3", {}, title), this.holder);
    parent.append(this.root);
    new ResizeObserver(() => {
      if (this.plot && this.width() > 0) this.plot.setSize({ width: this.width(), height: HEIGHT });
    }).observe(this.holder);
  }

  width() {
    return this.holder.clientWidth;
  }

  draw(options, data) {
    if (this.plot) {
      this.plot.setData(data);
    } else if (this.width() > 0) {
      const common = { width: this.width(), height: HEIGHT, legend: { show: false } };
      this.plot = new uPlot({ ...common, ...options }, data, this.holder);
    }
  }

  describe(text) {
    this.holder.setAttribute("aria-label", `${this.title}: ${text}`);
  }

  redraw() {
    if (this.plot) this.plot.redraw();
  }
}

// The values without a neighbour, to which no line can be drawn; null without any.
export function isolated(values) {
  const found = [];
  values.forEach((value, at) => {
    if (value != null && values[at - 1] == null && values[at + 1] == null) found.push(at);
  });
  return found.length ? found : null;
}

// Lines of some fields of the points. `series` lists field, label and class (which is also the name of the color).
export class LineChart {
  constructor(parent, title, { series, write, min = 0, max = null, log = false, across = timeAxis }) {
    this.card = new Card(parent, title);
    this.series = series;
    this.write = write;
    this.scale = { min, max, log };
    this.across = across;
    this.buttons = series.map(({ label, look }, at) => {
      const button = element("button", { type: "button", class: look, "aria-pressed": "true" }, label);
      button.addEventListener("click", () => this.toggle(at));
      return button;
    });
    const items = this.buttons.map((button) => element("li", {}, button));
    this.card.root.append(element("ul", { class: "legend", "aria-label": `Lines of ${title}` }, ...items));
  }

  toggle(at) {
    const shown = this.buttons[at].getAttribute("aria-pressed") !== "true";
    this.buttons[at].setAttribute("aria-pressed", String(shown));
    if (this.card.plot) this.card.plot.setSeries(at + 1, { show: shown });
  }

  update(points) {
    const used = this.series.some(({ field }) => points.some((point) => point[field] != null));
    this.card.root.hidden = !used;
    if (!used) return;
    const data = [points.map((point) => point.at)];
    for (const { field } of this.series) data.push(points.map((point) => this.drawable(point[field])));
    this.card.draw(this.options(), data);
    const said = [];
    this.series.forEach(({ field, label }, at) => {
      const measured = points.some((point) => point[field] != null);
      this.buttons[at].parentNode.hidden = !measured;
      if (!measured) return;
      const text = `${label} ${this.write(points.at(-1)[field])}`;
      setText(this.buttons[at], text);
      said.push(text);
    });
    this.card.describe(said.join(", "));
  }

  drawable(value) {
    return value == null || (this.scale.log && value <= 0) ? null : value;
  }

  options() {
    const { min, max, log } = this.scale;
    const write = (value) => (value == null ? "" : this.write(value));
    return {
      scales: { y: log ? { distr: 3 } : { range: (_, low, high) => [min, max ?? Math.max(high * 1.1, 1e-9)] } },
      axes: [this.across(), (log ? logAxis : axis)({ size: 68, values: (_, values) => values.map(write) })],
      cursor: { drag: { x: false, y: false } },
      series: [
        {},
        ...this.series.map(({ label, look }) => ({
          label,
          stroke: () => color(look),
          width: 1.5,
          points: { filter: (plot, at, all) => (all ? null : isolated(plot.data[at])) },
        })),
      ],
    };
  }

  redraw() {
    this.card.redraw();
  }
}
