// Connects to the server, and shows each snapshot.

import { LineChart } from "./charts.js";
import { byId, setText } from "./elements.js";
import { count, milliseconds, percent, rate } from "./format.js";
import { HeatMap } from "./heatmap.js";
import { prepareInvalidation } from "./invalidate.js";
import { Points } from "./points.js";
import { Sizing } from "./sizing.js";
import { Tables } from "./tables.js";
import { Tiles, showAlerts } from "./tiles.js";
import { Trends } from "./trends.js";

const RETRY_MS = 2000;
const line = (field, label, look) => ({ field, label, look });

const parent = byId("charts");
const points = new Points();
const tiles = new Tiles();
const latency = new LineChart(parent, "Latency", {
  series: [line("p50_ms", "P50", "s1"), line("p95_ms", "P95", "s2"), line("p99_ms", "P99", "s3")],
  write: milliseconds,
  log: true,
});
const heat = new HeatMap(parent, "Requests by latency");
const others = [
  new LineChart(parent, "Throughput", {
    series: [line("requests", "requests", "s1"), line("errors", "failed", "s2"), line("violations", "refused", "s3")],
    write: rate,
  }),
  new LineChart(parent, "Hit ratio", {
    series: [line("hit_rate", "request", "s1"), line("l1", "L1", "s2"), line("l2", "L2", "s3"), line("l3", "L3", "s4")],
    write: percent,
    max: 1,
  }),
  new LineChart(parent, "Evictions, loads and stale answers", {
    series: [line("evictions", "evictions", "s1"), line("loads", "loads", "s2"), line("stale", "stale answers", "s3")],
    write: rate,
  }),
  new LineChart(parent, "Connections of the pools", {
    series: [line("in_use", "in use", "s1"), line("waiting", "waiting callers", "s2")],
    write: count,
  }),
  new LineChart(parent, "Lag of the backplane", {
    series: [line("lag_ms", "P99", "s1")],
    write: milliseconds,
  }),
];
const sizing = new Sizing();
const tables = new Tables();
const trends = new Trends();
// What the server knew when it was connected. The first snapshot says what time that was.
let known = null;
let latest = null;
let wanted = false;

function status(text, look) {
  setText(byId("status"), text);
  byId("status").className = look;
}

// Charts are drawn once per frame at most, and not while the page is hidden.
function draw() {
  if (wanted) return;
  wanted = true;
  requestAnimationFrame(() => {
    wanted = false;
    if (!latest) return;
    const shown = points.within(Number(byId("window").value));
    if (!shown.length) return;
    latency.update(shown);
    heat.update(shown, latest.bands_ms);
    for (const chart of others) chart.update(shown);
    sizing.update(latest.caches);
  });
}

function show(snapshot) {
  latest = snapshot;
  setText(byId("name"), snapshot.name);
  document.title = `${snapshot.name} - acgsperf`;
  if (known) points.restore(known, snapshot.point.at);
  known = null;
  // The first snapshot has no interval yet.
  if (snapshot.seconds) points.add(snapshot.point, snapshot.seconds);
  tiles.update(snapshot);
  tables.update(snapshot);
  showAlerts(snapshot);
  trends.refresh().catch(() => {});
  draw();
}

function connect() {
  const events = new EventSource("events");
  events.addEventListener("history", (event) => (known = JSON.parse(event.data)));
  events.addEventListener("snapshot", (event) => {
    status("Live", "live");
    show(JSON.parse(event.data));
  });
  events.addEventListener("problem", (event) => status(`No figures: ${JSON.parse(event.data)}`, "lost"));
  // Another viewer has taken the place of this one. If all came back at once, nobody could view anything.
  events.addEventListener("ended", (event) => {
    events.close();
    status(`Ended: ${JSON.parse(event.data)}`, "lost");
  });
  events.addEventListener("error", () => {
    status("No connection; trying again", "lost");
    // The browser itself tries again after a lost connection, but not after an error of a proxy.
    if (events.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
  });
}

byId("range").addEventListener("submit", (event) => event.preventDefault());
byId("window").addEventListener("change", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of [latency, heat, sizing, trends, ...others]) chart.redraw();
});
prepareInvalidation().catch(() => {});
connect();
