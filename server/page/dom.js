// Elements and numbers as text. Whatever comes from the server enters the page as text, never as markup.

export const byId = (id) => document.getElementById(id);

// make("p", {class: "hint", hidden: true}, "text", child)
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== false) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// Touches the page only when something changes, so that screen readers and selections are left alone.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setBadge(element, kind, text) {
  setText(element, text);
  if (element.className !== `badge ${kind}`) element.className = `badge ${kind}`;
}

// Three significant digits: 0.123, 1.23, 12.3, 123, 1,234.
export function digits(value) {
  if (value === 0) return "0";
  const places = Math.max(0, Math.min(3, 2 - Math.floor(Math.log10(Math.abs(value)))));
  return value.toLocaleString("en-US", {minimumFractionDigits: places, maximumFractionDigits: places});
}

export const whole = (value) => Math.round(value).toLocaleString("en-US");

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${digits(count)} ${units[unit]}`;
}

// [value, unit] of a time in seconds.
export const time = (seconds) => seconds < 1 ? [digits(seconds * 1000), "ms"] : [digits(seconds), "s"];

export function age(seconds) {
  const [days, hours, minutes] = [86400, 3600, 60].map((unit) => Math.floor(seconds / unit));
  if (days > 0) return `${days} d ${hours % 24} h`;
  if (hours > 0) return `${hours} h ${minutes % 60} min`;
  if (minutes > 0) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds)} s`;
}

export function parameters(count) {
  if (count >= 1e9) return `${digits(count / 1e9)} B`;
  if (count >= 1e6) return `${digits(count / 1e6)} M`;
  return whole(count);
}
