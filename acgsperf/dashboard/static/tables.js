// The tables. A column has a title, a function that writes its cell, and perhaps one that tells how the cell looks.

import { byId, element, setText } from "./elements.js";
import { count, duration, milliseconds, percent, rate, seconds } from "./format.js";

const badIf = (test) => (row) => (test(row) ? "bad" : "");

const problems = (row) => [...row.unhealthy, ...row.alerts].join(", ");
const change = (value) => (value == null ? "–" : `${value > 0 ? "+" : ""}${(value * 100).toFixed(1)} %`);

const TABLES = [
  {
    title: "Instances",
    rows: ({ instances }) => instances ?? [],
    columns: [
      ["Requests", (row) => rate(row.requests)],
      ["Failed", (row) => rate(row.errors), badIf((row) => row.errors > 0)],
      ["Hits", (row) => percent(row.hit_rate)],
      ["P50", (row) => milliseconds(row.p50_ms)],
      ["P99", (row) => milliseconds(row.p99_ms)],
      ["Lag P99", (row) => milliseconds(row.lag_ms)],
      ["State", (row) => problems(row) || "ok", badIf(problems)],
      ["Tuning", (row) => (row.arm ? `${row.revision}, ${row.arm}` : count(row.revision))],
      ["Runs", (row) => duration(row.seconds)],
      ["Last report", (row) => `${duration(row.age_s)} ago`],
      ["Version", (row) => row.version],
    ],
  },
  {
    title: "Trials",
    note: "Trials of settings on a part of the instances, the latest first. The latency is the mean.",
    rows: ({ trials }) => trials ?? [],
    head: (row) => row.setting.replaceAll("_", " "),
    columns: [
      ["From", (row) => count(row.before)],
      ["To", (row) => count(row.value)],
      ["Outcome", (row) => row.outcome],
      ["Latency", (row) => change(row.change)],
      ["p", (row) => (row.p == null ? "–" : row.p.toPrecision(2))],
      ["Instances", (row) => count(row.instances)],
    ],
  },
  {
    title: "Tiers",
    rows: ({ caches }) => caches.flatMap((cache) => cache.tiers.map((tier) => ({ cache: cache.name, ...tier }))),
    head: (row) => `${row.cache} ${row.name.toUpperCase()}`,
    columns: [
      ["Look-ups", (row) => rate(row.lookups)],
      ["Hits now", (row) => percent(row.hit_rate)],
      ["Hits since start", (row) => percent(row.total_hit_rate)],
      ["Read P99", (row) => milliseconds(row.read_p99_ms)],
      ["Circuit", (row) => row.breaker ?? "–", badIf((row) => row.breaker && row.breaker !== "closed")],
      ["Errors", (row) => rate(row.errors), badIf((row) => row.errors > 0)],
      ["Skipped", (row) => rate(row.skipped), badIf((row) => row.skipped > 0)],
    ],
  },
  {
    title: "Caches",
    rows: ({ caches }) => caches,
    columns: [
      ["Entries", (row) => count(row.entries)],
      ["Limit", (row) => count(row.max_entries)],
      ["Evictions", (row) => rate(row.evictions)],
      ["Expired", (row) => rate(row.expirations)],
      ["Loads", (row) => rate(row.loads)],
      ["Failed", (row) => rate(row.load_errors), badIf((row) => row.load_errors > 0)],
      ["Joined", (row) => rate(row.joins)],
      ["Refreshes", (row) => rate(row.refreshes)],
      ["Stale answers", (row) => rate(row.stale)],
      ["In flight", (row) => count(row.loading)],
      ["Unrepaired", (row) => count(row.unrepaired), badIf((row) => row.unrepaired > 0)],
    ],
  },
  {
    title: "Prediction",
    rows: ({ caches }) => caches.filter((row) => row.prediction).map((row) => ({ name: row.name, ...row.prediction })),
    columns: [
      ["Fetched", (row) => rate(row.issued)],
      ["Used", (row) => rate(row.used)],
      ["Useless", (row) => rate(row.wasted)],
      ["Late", (row) => rate(row.late)],
      ["Precision", (row) => percent(row.precision)],
      ["Held", (row) => count(row.held)],
      ["Active classes", (row) => count(row.classes)],
    ],
  },
  {
    title: "Backplane",
    rows: ({ caches }) => caches.filter((row) => row.backplane).map((row) => ({ name: row.name, ...row.backplane })),
    columns: [
      ["State", (row) => row.state, badIf((row) => row.state !== "following")],
      ["Applied", (row) => rate(row.applied)],
      ["Queued", (row) => count(row.queued)],
      ["Gaps", (row) => count(row.gaps)],
      ["Lag P50", (row) => milliseconds(row.lag_p50_ms)],
      ["Lag P99", (row) => milliseconds(row.lag_p99_ms)],
    ],
  },
  {
    title: "Pools",
    rows: ({ pools }) => pools,
    columns: [
      ["Health", (row) => (row.healthy ? "healthy" : "unhealthy"), badIf((row) => !row.healthy)],
      ["In use", (row) => `${row.in_use} of ${row.connections}`],
      ["Limit", (row) => count(row.max)],
      ["Waiting", (row) => count(row.waiting), badIf((row) => row.waiting > 0)],
      ["Oldest waits", (row) => (row.waiting ? seconds(row.oldest_wait_s) : "–")],
      ["Wait P99", (row) => milliseconds(row.wait_p99_ms)],
      ["Use P50", (row) => milliseconds(row.use_p50_ms)],
      ["Use P99", (row) => milliseconds(row.use_p99_ms)],
      ["Leaks", (row) => count(row.leaks), badIf((row) => row.leaks > 0)],
      ["Timeouts", (row) => count(row.timeouts)],
      ["Failed connects", (row) => count(row.connect_errors)],
    ],
  },
  {
    title: "Routes",
    rows: ({ routes }) => routes,
    columns: [
      ["Responses", (row) => rate(row.responses)],
      ["Since start", (row) => count(row.total)],
      ["P50", (row) => milliseconds(row.p50_ms)],
      ["P99", (row) => milliseconds(row.p99_ms)],
    ],
  },
  {
    title: "Hot keys",
    note: "Estimated from a sample of the reads of the last minute.",
    rows: ({ hot_keys: keys }) => keys ?? [],
    head: (row) => row.key,
    columns: [
      ["Cache", (row) => row.cache],
      ["Share of reads", (row) => percent(row.share)],
      ["At most too high by", (row) => percent(row.error)],
    ],
  },
];

class Table {
  constructor({ title, note, rows, columns, head = (row) => row.name }) {
    this.rowsOf = rows;
    this.head = head;
    this.columns = columns;
    this.body = element("tbody");
    const id = `table-${title.toLowerCase().replace(" ", "-")}`;
    const heads = ["Name", ...columns.map(([name]) => name)].map((name) => element("th", { scope: "col" }, name));
    const table = element("table", { "aria-labelledby": id }, element("thead", {}, element("tr", {}, ...heads)), this.body);
    // A keyboard can scroll what has the focus.
    const scroll = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": id }, table);
    const remark = note ? element("p", {}, note) : null;
    this.root = element("div", { class: "card", hidden: true }, element("h3", { id }, title), scroll, remark);
    byId("table-parts").append(this.root);
  }

  update(snapshot) {
    const rows = this.rowsOf(snapshot);
    this.root.hidden = !rows.length;
    while (this.body.rows.length > rows.length) this.body.deleteRow(-1);
    rows.forEach((row, at) => this.updateRow(this.body.rows[at] ?? this.addRow(), row));
  }

  addRow() {
    const cells = this.columns.map(() => element("td"));
    const added = element("tr", {}, element("th", { scope: "row" }), ...cells);
    this.body.append(added);
    return added;
  }

  updateRow(line, row) {
    setText(line.cells[0], this.head(row));
    line.cells[0].title = this.head(row);
    this.columns.forEach(([, write, look], at) => {
      setText(line.cells[at + 1], write(row));
      line.cells[at + 1].className = look ? look(row) : "";
    });
  }
}

export class Tables {
  constructor() {
    this.tables = TABLES.map((table) => new Table(table));
  }

  update(snapshot) {
    for (const table of this.tables) table.update(snapshot);
  }
}
