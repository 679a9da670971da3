// Asks /status once a second and gives it to the parts of the page.

import {age, byId, make, setBadge, setText} from "./dom.js";
import {makeFailures} from "./failures.js";
import {makeModels} from "./models.js";
import {makePlots} from "./plots.js";
import {PromptBox} from "./prompt.js";
import {fetchStatus, History} from "./status.js";

const INTERVAL_MS = 1000, TIMEOUT_MS = 5000;

const history = new History();
const drawPlots = makePlots(byId("plots"));
const showModels = makeModels(byId("models"), byId("no-models"));
const showFailures = makeFailures(byId("failures"), byId("failure-rows"), byId("no-failures"));
const prompt = new PromptBox();
const scope = byId("scope");

function stateOf(status) {
  if (!status.live) return ["bad", "Not live: an engine hangs"];
  if (status.draining) return ["warn", "Draining"];
  if (status.ready) return ["good", "Ready"];
  const failed = status.models.some((model) => model.state === "failed");
  return failed ? ["bad", "Not ready: a model failed"] : ["warn", "Loading"];
}

function showServer(status) {
  setBadge(byId("state"), ...stateOf(status));
  setText(byId("grpc"), status.grpc);
  setText(byId("version"), `${status.version} (${status.revision})`);
  setText(byId("backends"), status.backends.replaceAll(",", ", "));
  setText(byId("uptime"), age(status.uptime_seconds));
}

// With several models, one may be looked at alone.
function offerScopes(models) {
  const names = models.map((model) => model.name);
  byId("scope-field").hidden = names.length < 2;
  const offered = [...scope.options].slice(1).map((option) => option.value);
  if (scope.options.length > 0 && offered.join("\n") === names.join("\n")) return;
  const chosen = scope.value;
  scope.replaceChildren(make("option", {value: ""}, "all models"), ...names.map((name) => make("option", {value: name}, name)));
  scope.value = names.includes(chosen) ? chosen : "";
}

function draw() {
  const newest = history.statuses.at(-1);
  if (newest !== undefined) drawPlots(history.samples(scope.value), newest.time);
}

async function refresh() {
  try {
    const status = await fetchStatus(AbortSignal.timeout(TIMEOUT_MS));
    document.body.classList.remove("stale");
    history.add(status);
    showServer(status);
    showModels(status.models);
    offerScopes(status.models);
    showFailures(history.oldest(), status);
    prompt.show(status);
    draw();
  } catch (error) {
    document.body.classList.add("stale");
    setBadge(byId("state"), "bad", "No answer from the server; what is shown is old");
  }
}

async function run() {
  for (;;) {
    if (!document.hidden) await refresh();
    await new Promise((resolve) => { setTimeout(resolve, INTERVAL_MS); });
  }
}

scope.addEventListener("change", draw);
run();
