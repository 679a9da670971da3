// What the server says each second, kept for two minutes, and the rates and quantiles between two moments.

export const SPAN_SECONDS = 120;
const RATE_SECONDS = 3;       // rates are means over that long,
const LATENCY_SECONDS = 10;   // quantiles are of what happened in that long

const HISTOGRAMS = ["first_token", "inter_token", "queue"];
const COUNTERS = ["prompt_tokens", "cached_prompt_tokens", "output_tokens"];
const GAUGES = ["running", "waiting", "slots"];

function addHistogram(sum, part) {
  if (sum === undefined) return {le: part.le, count: part.count, cumulative: [...part.cumulative]};
  sum.count += part.count;
  part.cumulative.forEach((count, i) => { sum.cumulative[i] += count; });
  return sum;
}

// The models of a status that `scope` names ("": all), summed.
function totalsOf(status, scope) {
  const totals = {time: status.time, kv_used: 0, kv_all: 0};
  for (const key of [...COUNTERS, ...GAUGES]) totals[key] = 0;
  for (const model of status.models) {
    if (scope !== "" && model.name !== scope) continue;
    for (const key of [...COUNTERS, ...GAUGES]) totals[key] += model[key];
    for (const key of HISTOGRAMS) totals[key] = addHistogram(totals[key], model[key]);
    totals.kv_used += model.kv.used;
    totals.kv_all += model.kv.used + model.kv.cached + model.kv.free;
  }
  return totals;
}

// The value below which a share `q` of what happened between two histograms lies; null if nothing did.
// Linear within a bucket; beyond the last bound, that bound.
export function quantile(before, after, q) {
  const count = after.count - before.count;
  if (count <= 0) return null;
  const rank = q * count;
  let below = 0;
  for (let i = 0; i < after.le.length; i += 1) {
    const upTo = after.cumulative[i] - before.cumulative[i];
    if (upTo >= rank) {
      const low = i === 0 ? 0 : after.le[i - 1];
      return low + (after.le[i] - low) * (upTo === below ? 1 : (rank - below) / (upTo - below));
    }
    below = upTo;
  }
  return after.le[after.le.length - 1];
}

export class History {
  statuses = [];

  add(status) {
    const last = this.statuses.at(-1);
    // Another process answers: its counters begin anew.
    if (last !== undefined && status.uptime_seconds < last.uptime_seconds) this.statuses = [];
    this.statuses.push(status);
    while (this.statuses[0].time < status.time - SPAN_SECONDS - LATENCY_SECONDS) this.statuses.shift();
  }

  oldest() { return this.statuses[0]; }

  // One sample a status: {time, and what the plots show; null where nothing is known}.
  samples(scope) {
    const totals = this.statuses.map((status) => totalsOf(status, scope));
    return totals.map((now, i) => {
      const back = (seconds) => {
        let at = i;
        while (at > 0 && totals[at].time > now.time - seconds) at -= 1;
        return totals[at];
      };
      const recent = back(RATE_SECONDS), past = back(LATENCY_SECONDS);
      const elapsed = now.time - recent.time;
      const rate = (key) => elapsed <= 0 ? null : Math.max(0, now[key] - recent[key]) / elapsed;
      const latency = (key, q) =>
        now[key] === undefined || past[key] === undefined ? null : quantile(past[key], now[key], q);
      const prompt = rate("prompt_tokens"), cached = rate("cached_prompt_tokens");
      return {
        time: now.time,
        prompt_rate: prompt === null ? null : prompt + cached,
        output_rate: rate("output_tokens"),
        first_token_50: latency("first_token", 0.5), first_token_95: latency("first_token", 0.95),
        inter_token_50: latency("inter_token", 0.5), inter_token_95: latency("inter_token", 0.95),
        queue_50: latency("queue", 0.5), queue_95: latency("queue", 0.95),
        running: now.running, waiting: now.waiting,
        kv_used: now.kv_all === 0 ? null : 100 * now.kv_used / now.kv_all,
      };
    });
  }
}

export async function fetchStatus(signal) {
  const response = await fetch("/status", {cache: "no-store", signal});
  if (!response.ok) throw new Error(`/status answered ${response.status}`);
  return response.json();
}
