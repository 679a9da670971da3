// Requests that did not end well, by reason: how many in the last two minutes and since the start.

import {make, whole} from "./dom.js";

const WORDS = {
  INVALID_FIELD: "A field had a wrong value",
  MALFORMED_MESSAGE: "The message did not parse",
  CONTEXT_EXCEEDED: "The prompt was longer than the context",
  CHAT_TEMPLATE_REFUSED: "The chat template refused the messages",
  MODEL_NOT_FOUND: "No model of that name",
  NO_CHAT_TEMPLATE: "The model has no chat template",
  EXCEEDS_KV_POOL: "Could never fit into the KV pool",
  QUEUE_FULL: "The queue was full",
  MODEL_LOADING: "The model was still loading",
  DRAINING: "The server or the model was draining",
  MODEL_FAILED: "The model could not be loaded",
  DEVICE_FAULT: "The device failed",
  NAN_LOGITS: "The model computed no numbers",
  INTERNAL: "Internal error; the log says which",
  DEADLINE: "The client’s deadline passed",
  CANCELLED: "The client cancelled",
  SLOW_CONSUMER: "The client read too slowly",
  UNSUPPORTED: "Asked for what this server does not do",
  TENANT_NOT_AUTHENTICATED: "Not the tenant that the call’s metadata names, or none",
};

// "model/code/reason" -> {model, code, reason, count}
function outcomesOf(status) {
  const outcomes = new Map();
  const add = (model, list) => {
    for (const {code, reason, count} of list)
      if (code !== "OK") outcomes.set(`${model}/${code}/${reason}`, {model, code, reason, count});
  };
  for (const model of status.models) add(model.name, model.outcomes);
  add("(unknown)", status.unknown_model);
  return outcomes;
}

export function makeFailures(table, rows, empty) {
  let shown = "";
  return (oldest, newest) => {
    const before = outcomesOf(oldest);
    const failures = [...outcomesOf(newest)].map(([key, failure]) =>
      ({...failure, recent: failure.count - (before.get(key)?.count ?? 0)}));
    failures.sort((a, b) => b.recent - a.recent || b.count - a.count);
    const state = JSON.stringify(failures);
    if (state === shown) return;
    shown = state;
    rows.replaceChildren(...failures.map(({model, code, reason, count, recent}) => make("tr", {},
      make("td", {}, WORDS[reason] ?? "Another reason", make("small", {}, `${code}, ${reason}`)),
      make("td", {}, model), make("td", {class: "n"}, whole(recent)), make("td", {class: "n"}, whole(count)))));
    table.hidden = failures.length === 0;
    empty.hidden = failures.length > 0;
  };
}
