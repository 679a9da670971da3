// The prompt box: sends one GenerateRequest and shows the answer as it comes.

import {byId, digits, make, setText, whole} from "./dom.js";

const ENDS = {
  FINISH_REASON_STOP: "ended by itself", FINISH_REASON_LENGTH: "cut at the most tokens asked for",
  FINISH_REASON_CONTEXT: "cut where the context is full", FINISH_REASON_TIME_LIMIT: "cut by the time limit",
};
const seconds = (duration) => Number.parseFloat(duration ?? "0");

// The events of a text/event-stream body: {name, data}.
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const event = {name: "message", data: ""};
      for (const line of block.split("\n")) {
        if (line.startsWith("event: ")) event.name = line.slice(7);
        if (line.startsWith("data: ")) event.data += line.slice(6);
      }
      yield {name: event.name, data: JSON.parse(event.data)};
    }
  }
}

async function errorOf(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return text.trim() || `the server answered ${response.status}`;
  }
}

function describe(started, finished) {
  const first = seconds(finished.timing?.time_to_first_token), decode = seconds(finished.timing?.decode);
  const tokens = finished.completion_tokens ?? 0;
  const pace = decode > 0 && tokens > 1 ? `, then ${digits((tokens - 1) / decode)} tokens/s` : "";
  return `${whole(tokens)} tokens after ${whole(started?.prompt_tokens ?? 0)} of the prompt, the first in ` +
    `${digits(first * 1000)} ms${pace}; ${ENDS[finished.reason] ?? "ended"}.`;
}

export class PromptBox {
  form = byId("prompt-form");
  text = byId("prompt-text");
  model = byId("prompt-model");
  chat = byId("prompt-chat");
  send = byId("prompt-send");
  stop = byId("prompt-stop");
  answer = byId("answer");
  state = byId("answer-state");
  running = null;    // AbortController of the answer under way
  models = new Map();

  constructor() {
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.run(); });
    this.stop.addEventListener("click", () => this.running?.abort());
    this.model.addEventListener("change", () => this.offerChat());
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.running?.abort();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && this.running === null) {
        event.preventDefault();
        this.form.requestSubmit();
      }
    });
  }

  show(status) {
    this.form.hidden = !status.prompt;
    byId("prompt-off").hidden = status.prompt;
    byId("prompt-tokens").max = status.prompt_max_tokens;
    const serving = status.models.filter((model) => model.state === "serving");
    const names = serving.map((model) => model.name);
    this.send.disabled = this.running !== null || names.length === 0;
    if (names.length === 0 && this.running === null) setText(this.state, "No model is ready to answer yet.");
    else if (this.state.textContent.startsWith("No model is ready")) setText(this.state, "Nothing asked yet.");
    if (names.join("\n") === [...this.models.keys()].join("\n")) return;
    this.models = new Map(serving.map((model) => [model.name, model.info]));
    const chosen = this.model.value;
    this.model.replaceChildren(...names.map((name) => make("option", {value: name}, name)));
    if (names.includes(chosen)) this.model.value = chosen;
    byId("prompt-model-field").hidden = names.length < 2;
    this.offerChat();
  }

  offerChat() {
    const able = this.models.get(this.model.value)?.chat ?? false;
    if (this.chat.disabled === able) this.chat.checked = able;
    this.chat.disabled = !able;
  }

  request() {
    const request = {model: this.model.value, stopping: {max_tokens: byId("prompt-tokens").valueAsNumber}};
    const temperature = byId("prompt-temperature").valueAsNumber;
    if (!Number.isNaN(temperature)) request.sampling = {temperature};
    if (this.chat.checked) request.chat = {messages: [{role: "user", content: this.text.value}]};
    else request.text = this.text.value;
    return request;
  }

  async run() {
    if (this.running !== null) return;
    const abort = this.running = new AbortController();
    this.send.disabled = true;
    this.stop.disabled = false;
    this.answer.replaceChildren();
    this.answer.setAttribute("aria-busy", "true");
    setText(this.state, "Waiting for the model.");
    try {
      await this.receive(abort.signal);
    } catch (error) {
      setText(this.state, abort.signal.aborted ? "Stopped." : `Failed: ${error.message}`);
    }
    this.running = null;
    this.answer.removeAttribute("aria-busy");
    // The focus must not vanish with the button that had it.
    if (document.activeElement === this.stop) this.text.focus();
    this.stop.disabled = true;
    this.send.disabled = false;
  }

  async receive(signal) {
    const response = await fetch("/prompt", {
      method: "POST", signal, body: JSON.stringify(this.request()),
      headers: {"Content-Type": "application/json", "X-Nibble-Prompt": "1"},
    });
    if (!response.ok) throw new Error(await errorOf(response));
    let started, finished;
    for await (const {name, data} of eventsOf(response.body)) {
      if (name === "error") throw new Error(data.error.message);
      if (data.started) {
        started = data.started;
        setText(this.state, "Answering.");
      }
      if (data.chunk) this.append(data.chunk.text ?? "");
      if (data.finished) finished = data.finished;
    }
    if (finished === undefined) throw new Error("the connection ended before the answer did");
    setText(this.state, describe(started, finished));
  }

  append(text) {
    const box = this.answer;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    box.append(document.createTextNode(text));
    if (atEnd) box.scrollTop = box.scrollHeight;
  }
}
