// The plots: lines over the last two minutes in hand-made SVG, with the newest values in figures above.

import {digits, make, setText, time, whole} from "./dom.js";
import {SPAN_SECONDS} from "./status.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 480, HEIGHT = 100;
const rate = (value) => [digits(value), "tokens/s"];
const count = (value) => [whole(value), ""];
const percent = (value) => [digits(value), "%"];

const PLOTS = [
  {title: "Throughput", show: rate, quiet: "Idle: no tokens in the last two minutes.",
   lines: [["output_rate", "Generated"], ["prompt_rate", "Prompt"]]},
  {title: "Time to first token", show: time, quiet: "No request has begun in the last two minutes.",
   lines: [["first_token_50", "Median"], ["first_token_95", "95 of 100 below"]]},
  {title: "Time between tokens", show: time, quiet: "No tokens in the last two minutes.",
   lines: [["inter_token_50", "Median"], ["inter_token_95", "95 of 100 below"]]},
  {title: "Requests", show: count, quiet: "No request in the last two minutes.",
   lines: [["running", "Running"], ["waiting", "Waiting"]]},
  {title: "Time in the queue", show: time, quiet: "No request has begun in the last two minutes.",
   lines: [["queue_50", "Median"], ["queue_95", "95 of 100 below"]]},
  {title: "KV cache in use", show: percent, quiet: "No sequence holds KV blocks.", lines: [["kv_used", "Used"]]},
];

// The least of 1, 2, 5 times a power of ten that is not below `value`.
function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((bound) => bound >= value * 0.9999);
}

class Plot {
  constructor({title, show, quiet, lines}) {
    Object.assign(this, {title, show, lines});
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("class", "plot");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    for (const y of [0.5, HEIGHT / 2, HEIGHT - 0.5]) this.addPath("grid", `M0 ${y}H${WIDTH}`);
    this.paths = lines.map((_, i) => this.addPath(["first", "second"][i], ""));
    this.readings = lines.map(([, label], i) => {
      const value = make("span", {class: "value"}, "–"), unit = make("span", {class: "unit"});
      const key = make("span", {class: i === 0 ? "key" : "key second", "aria-hidden": "true"});
      return {value, unit, element: make("div", {class: "reading"},
        make("div", {class: "label"}, key, label), make("div", {}, value, unit))};
    });
    this.scales = ["top", "mid", "zero"].map((at) => make("span", {class: `scale ${at}`, "aria-hidden": "true"}));
    this.quiet = make("p", {class: "quiet"}, quiet);
    this.figure = make("figure", {},
      make("figcaption", {}, make("h3", {}, title),
        make("div", {class: "readings"}, ...this.readings.map((reading) => reading.element))),
      make("div", {class: "canvas"}, this.svg, ...this.scales, this.quiet),
      make("div", {class: "span", "aria-hidden": "true"}, make("span", {}, "2 min ago"), make("span", {}, "now")));
  }

  addPath(name, d) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    path.setAttribute("d", d);
    this.svg.append(path);
    return path;
  }

  draw(samples, now) {
    const shown = samples.filter((sample) => sample.time >= now - SPAN_SECONDS);
    let highest = 0;
    for (const sample of shown) for (const [key] of this.lines) highest = Math.max(highest, sample[key] ?? 0);
    const top = this.show === percent ? Math.min(100, niceCeiling(highest || 1)) : niceCeiling(highest || 1);
    this.quiet.hidden = highest > 0;
    const summary = this.lines.map(([key, label], i) => {
      this.paths[i].setAttribute("d", highest > 0 ? this.trace(shown, key, now, top) : "");
      const value = shown.at(-1)?.[key] ?? null;
      const [figure, unit] = value === null ? ["–", ""] : this.show(value);
      setText(this.readings[i].value, figure);
      setText(this.readings[i].unit, unit);
      return `${label}: ${value === null ? "nothing now" : `${figure} ${unit}`.trim()}`;
    });
    for (const [i, part] of [1, 0.5, 0].entries()) {
      this.scales[i].hidden = highest === 0;
      setText(this.scales[i], this.show(top * part).join(" ").trim());
    }
    if (this.show === count && top % 2 !== 0) this.scales[1].hidden = true;  // half a request is none
    const peak = highest === 0 ? "nothing" : this.show(highest).join(" ").trim();
    this.svg.setAttribute("aria-label", `${this.title}. ${summary.join(". ")}. Highest in two minutes: ${peak}.`);
  }

  // A line with gaps where nothing is known.
  trace(samples, key, now, top) {
    let d = "", pen = "M";
    for (const sample of samples) {
      if (sample[key] === null) { pen = "M"; continue; }
      const x = WIDTH * (1 - (now - sample.time) / SPAN_SECONDS);
      const y = HEIGHT - 1 - (HEIGHT - 2) * sample[key] / top;
      // A lone value still shows, as a point.
      d += pen === "M" ? `M${x.toFixed(1)} ${y.toFixed(1)}h.1` : `L${x.toFixed(1)} ${y.toFixed(1)}`;
      pen = "L";
    }
    return d;
  }
}

export function makePlots(parent) {
  const plots = PLOTS.map((description) => new Plot(description));
  parent.append(...plots.map((plot) => plot.figure));
  return (samples, now) => plots.forEach((plot) => plot.draw(samples, now));
}
