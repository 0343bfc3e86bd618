// How numbers are written. A figure that was not measured is a dash.

const DASH = "–";

export function count(value) {
  if (value == null) return DASH;
  if (value >= 1e9) return `${(value / 1e9).toPrecision(3)} G`;
  if (value >= 1e6) return `${(value / 1e6).toPrecision(3)} M`;
  if (value >= 1e4) return `${(value / 1e3).toPrecision(3)} k`;
  return Number.isInteger(value) ? String(value) : value.toPrecision(value < 1 ? 2 : 3);
}

export function rate(value) {
  return value == null ? DASH : `${count(value)}/s`;
}

export function milliseconds(value) {
  if (value == null) return DASH;
  if (value >= 1000) return `${(value / 1000).toPrecision(3)} s`;
  return value >= 1 ? `${value.toPrecision(3)} ms` : `${(value * 1000).toPrecision(3)} µs`;
}

export function seconds(value) {
  return value == null ? DASH : milliseconds(value * 1000);
}

export function duration(value) {
  if (value == null) return DASH;
  for (const [length, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (value >= length) return `${(value / length).toFixed(1)} ${unit}`;
  }
  return `${value.toFixed(0)} s`;
}

export function percent(value) {
  if (value == null) return DASH;
  const digits = value > 0.99 && value < 1 ? 2 : 1;
  return `${(value * 100).toFixed(digits)} %`;
}

export function bytes(value) {
  if (value == null) return DASH;
  const units = ["B", "KB", "MB", "GB", "TB"];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) {
    value /= 1000;
    at += 1;
  }
  return `${at ? value.toPrecision(3) : value} ${units[at]}`;
}

export function time(epochSeconds) {
  return new Date(epochSeconds * 1000).toLocaleTimeString();
}

export function day(epochSeconds) {
  return new Date(epochSeconds * 1000).toLocaleDateString(undefined, { weekday: "short", day: "numeric", month: "short" });
}
