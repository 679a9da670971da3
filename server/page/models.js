// A card a model: what it is, what it does now, and its memory as planned and as it came out.

import {bytes, digits, make, parameters, setBadge, setText, whole} from "./dom.js";

const STATES = {
  serving: ["good", "Serving"], loading: ["warn", "Loading"], draining: ["warn", "Draining"], failed: ["bad", "Failed"],
};
const KINDS = [["weights", "Weights"], ["kv", "KV cache"], ["workspace", "Workspace"], ["graphs", "Graphs"], ["other", "Other"],
  ["expanded", "Expanded weights"]];
const STAGES = {
  read: "Reading the checkpoint’s headers", plan: "Planning memory", weights: "Loading weights",
  compile: "Compiling the program", "warm up": "Warming up",
};
const FACTS = [
  ["Format", (model) => model.info.format],
  ["Architecture", (model) => model.info.architecture],
  ["Parameters", (model) => parameters(model.info.parameters)],
  ["Bits a weight", (model) => digits(model.info.bits_per_weight)],
  ["Context", (model) => `${whole(model.info.context)} tokens`],
  ["Computes in", (model) => model.info.compute],
  ["Device", (model) => model.info.devices.join(", ")],
  ["Loaded in", (model) => `${digits(model.info.load_seconds)} s`],
  ["Running", (model) => `${whole(model.running)} of ${whole(model.slots)}`],
  ["Waiting", (model) => `${whole(model.waiting)} of ${whole(model.queue_limit)}`],
  ["KV holds", (model) => `${whole(model.info.kv_tokens)} tokens`],
  ["Preempted", (model) => whole(model.preemptions)],
];
const sum = (memory) => KINDS.reduce((total, [kind]) => total + memory[kind], 0);

// A labelled bar of coloured parts.
class Meter {
  constructor(label, kinds) {
    this.parts = kinds.map((kind) => make("span", {class: `kind-${kind}`}));
    this.figure = make("span");
    this.element = make("div", {class: "meter"}, make("span", {class: "label"}, label),
      make("div", {class: "bar", "aria-hidden": "true"}, ...this.parts), this.figure);
  }
  set(values, whole, text) {
    values.forEach((value, i) => { this.parts[i].style.width = whole > 0 ? `${100 * value / whole}%` : "0"; });
    setText(this.figure, text);
  }
}

class Card {
  constructor(name) {
    this.badge = make("p", {class: "badge"});
    this.stage = make("p", {class: "hint"});
    this.progress = make("progress", {max: "1", "aria-label": `Loading ${name}`});
    this.loading = make("div", {hidden: true}, this.stage, this.progress);
    this.error = make("p", {class: "error", hidden: true});
    this.values = FACTS.map(() => make("dd"));
    this.facts = make("dl", {class: "model-facts", hidden: true},
      ...FACTS.map(([label], i) => make("div", {}, make("dt", {}, label), this.values[i])));
    this.budget = make("span", {class: "label"});
    this.planned = new Meter("Planned", KINDS.map((_, i) => i + 1));
    this.actual = new Meter("Actual", KINDS.map((_, i) => i + 1));
    this.pool = new Meter("KV pool", [2, 5]);
    this.cells = KINDS.map(() => [make("td", {class: "n"}), make("td", {class: "n"})]);
    const rows = KINDS.map(([, label], i) => make("tr", {}, make("th", {scope: "row"},
      make("span", {class: `swatch kind-${i + 1}`, "aria-hidden": "true"}), label), ...this.cells[i]));
    this.ledger = make("div", {class: "ledger", hidden: true},
      make("h3", {}, "Memory ", this.budget),
      this.planned.element, this.actual.element,
      make("table", {class: "kinds"},
        make("thead", {}, make("tr", {}, make("th", {scope: "col"}, "Of it"), make("th", {scope: "col", class: "n"}, "planned"),
          make("th", {scope: "col", class: "n"}, "actual"))),
        make("tbody", {}, ...rows)),
      this.pool.element);
    this.element = make("article", {class: "card", "aria-label": `Model ${name}`},
      make("div", {class: "card-head"}, make("h3", {}, name), this.badge),
      this.error, this.loading, this.facts, this.ledger);
  }

  show(model) {
    setBadge(this.badge, ...(STATES[model.state] ?? ["warn", model.state]));
    this.error.hidden = model.error === undefined;
    setText(this.error, model.error ?? "");
    this.showLoading(model);
    this.facts.hidden = this.ledger.hidden = model.info === undefined;
    if (model.info === undefined) return;
    FACTS.forEach(([, value], i) => setText(this.values[i], value(model)));
    this.showMemory(model);
  }

  showLoading(model) {
    this.loading.hidden = model.progress === undefined && model.state !== "loading";
    if (this.loading.hidden) return;
    const {stage, done, total} = model.progress ?? {stage: "", done: 0, total: 0};
    const sized = total > 4096;  // bytes; other stages count steps
    setText(this.stage, stage === "" ? "Waiting for its turn to load"
      : `${STAGES[stage] ?? stage}${sized ? `: ${bytes(done)} of ${bytes(total)}` : ""}`);
    if (sized) this.progress.value = done / total;
    else this.progress.removeAttribute("value");
  }

  showMemory({planned, actual, info, kv}) {
    const scale = Math.max(info.budget_bytes, sum(planned), sum(actual));
    setText(this.budget, info.budget_bytes > 0 ? `of ${bytes(info.budget_bytes)} that models may take` : "");
    const values = (memory) => KINDS.map(([kind]) => memory[kind]);
    this.planned.set(values(planned), scale, bytes(sum(planned)));
    this.actual.set(values(actual), scale, bytes(sum(actual)));
    KINDS.forEach(([kind], i) => {
      setText(this.cells[i][0], bytes(planned[kind]));
      setText(this.cells[i][1], bytes(actual[kind]));
    });
    const blocks = kv.used + kv.cached + kv.free;
    const part = (count) => blocks === 0 ? 0 : Math.round(100 * count / blocks);
    this.pool.set([kv.used, kv.cached], blocks, `${part(kv.used)} % used, ${part(kv.cached)} % kept`);
    this.pool.element.title = `${whole(kv.used)} blocks used, ${whole(kv.cached)} kept for their prefix, ` +
      `${whole(kv.free)} free, of ${whole(kv.page_tokens)} tokens each`;
  }
}

export function makeModels(parent, empty) {
  const cards = new Map();
  return (models) => {
    for (const [name, card] of cards) {
      if (models.some((model) => model.name === name)) continue;
      card.element.remove();
      cards.delete(name);
    }
    for (const model of models) {
      if (!cards.has(model.name)) {
        cards.set(model.name, new Card(model.name));
        parent.append(cards.get(model.name).element);
      }
      cards.get(model.name).show(model);
    }
    empty.hidden = models.length > 0;
  };
}
