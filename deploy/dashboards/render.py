#!/usr/bin/env python3
"""Writes the Grafana dashboards beside it: overview.json, model.json, slo.json. Needs nothing but Python.

A dashboard is a list of rows, a row a list of panels, a panel a few queries; places, ids and colours follow from that.
`render.py --check` changes nothing and exits 1 when a file is not what would be written.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
SOURCE = {"type": "prometheus", "uid": "$datasource"}
# Every series of a panel is picked by these; models of instances that are not picked stay out.
PROCESS = 'job=~"$job",instance=~"$instance"'
MODEL = PROCESS + ',model=~"$model"'
VLLM = PROCESS + ',model_name=~"$model"'
SERVICE = 'job=~"$job",model=~"$model"'  # recording rules have summed the instances


def panel(kind, title, queries, unit, width, height=8, about="", options=None, custom=None, **defaults):
    """`queries`: one expression, or (expression, legend) pairs."""
    pairs = [(queries, "")] if isinstance(queries, str) else queries
    targets = [{"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expr, "legendFormat": legend or "__auto"}
               for i, (expr, legend) in enumerate(pairs)]
    return {"type": kind, "title": title, "description": about, "datasource": SOURCE, "targets": targets,
            "gridPos": {"w": width, "h": height}, "options": options or {},
            "fieldConfig": {"defaults": {"unit": unit, "custom": custom or {}, **defaults}, "overrides": []}}


def lines(title, queries, unit="short", width=8, about="", stack=False, limit=None, **defaults):
    custom = {"lineWidth": 1, "fillOpacity": 25 if stack else 6, "showPoints": "never",
              "stacking": {"mode": "normal" if stack else "none"}}
    if limit is not None:
        custom["thresholdsStyle"] = {"mode": "dashed"}
        defaults["thresholds"] = steps((None, "transparent"), (limit, "red"))
    return panel("timeseries", title, queries, unit, width, about=about, custom=custom, min=0,
                 options={"legend": {"displayMode": "list", "placement": "bottom"},
                          "tooltip": {"mode": "multi", "sort": "desc"}}, **defaults)


def number(title, query, unit="short", width=3, about="", thresholds=None, **defaults):
    return panel("stat", title, query, unit, width, height=4, about=about,
                 options={"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "value"},
                 thresholds=thresholds or steps((None, "text")), **defaults)


def heat(title, metric, unit="s", width=8, pick=MODEL, about=""):
    made = panel("heatmap", title, f"sum by (le) (increase({metric}_bucket{{{pick}}}[$__rate_interval]))", unit, width,
                 about=about, options={"calculate": False, "yAxis": {"unit": unit}, "color": {"scheme": "Blues", "mode": "scheme"},
                                       "cellGap": 0, "tooltip": {"show": True}})
    made["targets"][0] |= {"format": "heatmap", "legendFormat": "{{le}}"}
    return made


def table(title, queries, width=12, about="", hide=()):
    made = panel("table", title, queries, "short", width, about=about)
    for target in made["targets"]:
        target |= {"format": "table", "instant": True}
    hidden = {name: True for name in ("Time", "__name__", *hide)}
    made["transformations"] = [{"id": "merge", "options": {}}, {"id": "organize", "options": {"excludeByName": hidden}}]
    return made


def steps(*pairs):
    return {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in pairs]}


def rate(metric, pick=MODEL, extra=""):
    return f"rate({metric}{{{pick}{extra}}}[$__rate_interval])"


def quantiles(metric, pick=MODEL, by=""):
    return [(f"histogram_quantile({q / 100:g}, sum by (le{by}) ({rate(metric + '_bucket', pick)}))", f"p{q}") for q in (50, 90, 99)]


def average(metric, by):
    return f"sum by ({by}) ({rate(metric + '_sum')}) / sum by ({by}) ({rate(metric + '_count')})"


OK, NOT_OK, QUEUE_FULL = ',code="OK"', ',code!="OK"', ',reason="QUEUE_FULL"'
SERVING, PLANNED, ACTUAL = ',state="serving"', ',source="planned"', ',source="actual"'
BAD = steps((None, "green"), (0.001, "orange"), (0.01, "red"))
FULL = steps((None, "green"), (0.8, "orange"), (0.98, "red"))
ZERO = steps((None, "red"), (1, "green"))

THROUGHPUT = [
    lines("Tokens in", [(f"sum by (source) ({rate('nibble_prompt_tokens_total')})", "{{source}}")], "short", stack=True,
          about="Prompt tokens a second of requests that started; cached ones were in the prefix cache."),
    lines("Tokens out", [(f"sum by (model) ({rate('nibble_output_tokens_total')})", "{{model}}")], "short", stack=True,
          about="Tokens a second handed to clients."),
    lines("Requests by outcome", [(f"sum by (code) ({rate('nibble_requests_total')}) > 0"
                                   f" or sum by (code) ({rate('nibble_requests_total', extra=OK)})", "{{code}}")],
          "reqps", stack=True)]
LATENCY = [
    lines("Time to first token", quantiles("nibble_time_to_first_token_seconds"), "s", about="From the queue to an output's first token."),
    lines("Time between tokens", quantiles("nibble_inter_token_seconds"), "s"),
    lines("Whole request", quantiles("nibble_request_seconds"), "s", about="From the queue to the end of the stream, however it ended."),
    lines("In the queue", quantiles("nibble_queue_seconds"), "s"),
    lines("Prefill", quantiles("nibble_prefill_seconds"), "s", about="From the first prefill to the first token."),
    lines("Decode", quantiles("nibble_decode_seconds"), "s", about="From an output's first token to its last.")]
SCHEDULER = [
    lines("Requests", [(f"sum(nibble_requests_running{{{MODEL}}})", "running"), (f"sum(nibble_requests_waiting{{{MODEL}}})", "waiting")]),
    lines("Queue, of its limit", [(f"max by (model) (instance_model:nibble_queue_usage:ratio{{{MODEL}}})", "{{model}}")], "percentunit", limit=0.8,
          about="The fullest instance; at 1 requests are refused with RESOURCE_EXHAUSTED."),
    lines("Batch size", [(average("nibble_step_tokens", "phase"), "{{phase}}")], about="Tokens of a step, on average: sequences in decode, prompt tokens in prefill."),
    lines("Step time", [(f"histogram_quantile(0.99, sum by (le, phase) ({rate('nibble_step_seconds_bucket')}))", "{{phase}} p99"),
                        (average("nibble_step_seconds", "phase"), "{{phase}} average")], "s"),
    lines("Time by phase", [(f"sum by (phase) ({rate('nibble_step_seconds_sum')}) / scalar(count(nibble_build_info{{{PROCESS}}}))", "{{phase}}")],
          "percentunit", stack=True, about="Of one daemon's time, the share in prefill and in decode; what is missing to 100% is idle or host work."),
    lines("Computed again", [(f"sum({rate('nibble_recomputed_tokens_total')})", "tokens"), (f"sum({rate('nibble_preemptions_total')})", "preemptions")], "short",
          about="After preemptions, a second.")]
KV = [
    lines("KV pool", [(f"sum by (state) (nibble_kv_blocks{{{MODEL}}})", "{{state}}")], stack=True, about="Blocks; cached ones are kept for their prefix and freed on demand."),
    lines("KV pool used, of all", [(f"max by (model) (instance_model:nibble_kv_usage:ratio{{{MODEL}}})", "{{model}}")], "percentunit", limit=0.8, max=1,
          about="The fullest instance."),
    lines("Prompt tokens found in the prefix cache", [(f"sum by (model_name) ({rate('vllm:prefix_cache_hits_total', VLLM)}) / sum by (model_name) ({rate('vllm:prefix_cache_queries_total', VLLM)})",
                                                      "{{model_name}}")], "percentunit", max=1)]
MEMORY = [
    lines("Memory, planned", [(f"sum by (kind) (nibble_memory_bytes{{{MODEL}{PLANNED}}})", "{{kind}}")], "bytes", stack=True),
    lines("Memory, as it came out", [(f"sum by (kind) (nibble_memory_bytes{{{MODEL}{ACTUAL}}})", "{{kind}}")], "bytes", stack=True,
          about="Counted where it was allocated. Of `other` only the tokenizer is counted; the plan's also holds headroom."),
    lines("Host memory", [(f"sum by (instance) (process_resident_anonymous_memory_bytes{{{PROCESS}}})", "{{instance}} anonymous"),
                          (f"sum by (instance) (process_resident_memory_bytes{{{PROCESS}}})", "{{instance}} resident")], "bytes")]
ERRORS = [
    lines("Requests that did not end well, by reason",
          [(f"sum by (reason) ({rate('nibble_requests_total', PROCESS, NOT_OK)}) > 0"
            f" or sum({rate('nibble_requests_total', PROCESS, NOT_OK)})", "{{reason}}")],
          "reqps", 12, stack=True, about="Without a name: none in that time. Requests that name no model of ours are among them."),
    lines("Outputs by finish reason", [(f"sum by (finished_reason) ({rate('vllm:request_success_total', VLLM)})", "{{finished_reason}}")], "short", 12, stack=True)]
PROCESSES = [
    lines("CPU", [(f"{rate('process_cpu_seconds_total', PROCESS)} and on (job, instance) nibble_build_info", "{{instance}}")], "short", 6, about="Cores."),
    lines("Uptime", [(f"time() - (process_start_time_seconds{{{PROCESS}}} and on (job, instance) nibble_build_info)", "{{instance}}")], "s", 6),
    lines("File descriptors, of the limit", [(f"process_open_fds{{{PROCESS}}} / process_max_fds and on (job, instance) nibble_build_info", "{{instance}}")], "percentunit", 6, limit=0.8),
    lines("Threads", [(f"process_threads{{{PROCESS}}} and on (job, instance) nibble_build_info", "{{instance}}")], "short", 6),
    table("Builds", f"nibble_build_info{{{PROCESS}}}", hide=("Value", "job")),
    table("Models", [(f"nibble_model_state{{{MODEL}}} == 1", "")], hide=("Value", "job"))]

OVERVIEW = [
    ("Now", [
        number("Daemons", f"count(nibble_build_info{{{PROCESS}}})", thresholds=ZERO),
        number("Ready", f"sum(nibble_ready{{{PROCESS}}})", thresholds=ZERO),
        number("Running", f"sum(nibble_requests_running{{{MODEL}}})"),
        number("Waiting", f"sum(nibble_requests_waiting{{{MODEL}}})"),
        number("Tokens out a second", f"sum({rate('nibble_output_tokens_total')})"),
        number("First token, p99", quantiles("nibble_time_to_first_token_seconds")[2][0], "s"),
        number("KV used, fullest", f"max(instance_model:nibble_kv_usage:ratio{{{MODEL}}})", "percentunit", thresholds=FULL),
        number("Failing, 5 min", f"max(job_model:nibble_unavailable:ratio_rate5m{{{SERVICE}}})", "percentunit", thresholds=BAD,
               about="Share of the requests that failed through no fault of the client, of the worst model.")]),
    ("Throughput", THROUGHPUT), ("Latency", LATENCY), ("Scheduler", SCHEDULER), ("KV cache", KV), ("Memory", MEMORY),
    ("Errors", ERRORS), ("Processes", PROCESSES)]

BY_MODEL = [
    ("Now", [
        number("Serving", f"sum(nibble_model_state{{{MODEL}{SERVING}}})", width=4, thresholds=ZERO, about="Instances."),
        number("Load time", f"max(nibble_model_load_seconds{{{MODEL}}})", "s", 4),
        number("Sequences at once", f"sum(nibble_slots{{{MODEL}}})", width=4),
        number("Queue limit", f"sum(nibble_queue_limit{{{MODEL}}})", width=4),
        number("KV blocks", f"sum(nibble_kv_blocks{{{MODEL}}})", width=4),
        number("Memory planned", f"sum(nibble_memory_bytes{{{MODEL}{PLANNED}}})", "bytes", 4)]),
    ("Requests", [
        heat("Time to first token", "nibble_time_to_first_token_seconds"), heat("Time between tokens", "nibble_inter_token_seconds"),
        heat("Whole request", "nibble_request_seconds"), heat("Prompt length", "vllm:request_prompt_tokens", "short", pick=VLLM),
        heat("Answer length", "vllm:request_generation_tokens", "short", pick=VLLM),
        heat("max_tokens asked for", "vllm:request_params_max_tokens", "short", pick=VLLM),
        lines("Time a token of an answer", quantiles("vllm:request_time_per_output_token_seconds", VLLM), "s", about="Decode time by tokens after the first."),
        lines("Outputs a request", [(f"sum({rate('vllm:request_params_n_sum', VLLM)}) / sum({rate('vllm:request_params_n_count', VLLM)})", "n")]),
        lines("Requests by outcome", THROUGHPUT[2]["targets"][0]["expr"], "reqps", stack=True)]),
    ("By instance", [
        lines("Tokens out", [(f"sum by (instance) ({rate('nibble_output_tokens_total')})", "{{instance}}")], stack=True),
        lines("Running", [(f"sum by (instance) (nibble_requests_running{{{MODEL}}})", "{{instance}}")], stack=True),
        lines("Waiting", [(f"sum by (instance) (nibble_requests_waiting{{{MODEL}}})", "{{instance}}")], stack=True),
        lines("First token, p99", [(quantiles("nibble_time_to_first_token_seconds", by=", instance")[2][0], "{{instance}}")], "s"),
        lines("Between tokens, p99", [(quantiles("nibble_inter_token_seconds", by=", instance")[2][0], "{{instance}}")], "s"),
        lines("KV used", [(f"max by (instance) (instance_model:nibble_kv_usage:ratio{{{MODEL}}})", "{{instance}}")], "percentunit", limit=0.8)]),
    ("Steps", [heat("Tokens of a decode step", "nibble_step_tokens", "short", 12, MODEL + ',phase="decode"'),
               heat("Tokens of a prefill step", "nibble_step_tokens", "short", 12, MODEL + ',phase="prefill"')]),
    ("Scheduler", SCHEDULER), ("KV cache", KV),
    ("Memory", [*MEMORY, table("Ledger", f"sum by (instance, device, kind, source) (nibble_memory_bytes{{{MODEL}}})", 24)])]


def objective(title, name, allowed, about):
    ratio = f"job_model:nibble_{name}:ratio_rate"
    return (title, [
        number("Worst of 3 days", f"max({ratio}3d{{{SERVICE}}})", "percentunit", 4, about, steps((None, "green"), (allowed, "red"))),
        number("Budget left, at the rate of 3 days", f"1 - max({ratio}3d{{{SERVICE}}}) / {allowed}", "percentunit", 4, "Negative: the objective is missed.",
               steps((None, "red"), (0, "green"))),
        lines("Share of bad ones", [(f"{ratio}{window}{{{SERVICE}}}", "{{model}} " + window) for window in ("5m", "1h")], "percentunit", limit=allowed, about=about),
        lines("Burn rate", [(f"{ratio}{window}{{{SERVICE}}} / {allowed}", "{{model}} " + window) for window in ("1h", "6h", "3d")], "short", limit=1,
              about="1: the budget of 30 days lasts 30 days. Alerts at 14.4 in an hour, 6 in six hours, 1 in three days.")])


SLO = [
    objective("Availability: 99.9% of the requests", "unavailable", 0.001, "Requests that ended with INTERNAL, UNKNOWN, DATA_LOSS, UNAVAILABLE or RESOURCE_EXHAUSTED, but for those a draining daemon sent elsewhere."),
    objective("First token: 99% within 2.5 s", "first_token_late", 0.01, "First tokens later than 2.5 s after the request came into the queue."),
    objective("Cadence: 99% of the tokens within 100 ms", "next_token_late", 0.01, "Tokens later than 100 ms after the one before."),
    ("What burns the budgets", [ERRORS[0], lines("Refused for a full queue", [(f"sum by (model) ({rate('nibble_requests_total', extra=QUEUE_FULL)})", "{{model}}")], "reqps", 12)])]


def choice(name, label, metric, picked=""):
    query = f"label_values({metric}{{{picked}}}, {name})" if picked else f"label_values({metric}, {name})"
    return {"type": "query", "name": name, "label": label, "datasource": SOURCE, "definition": query, "refresh": 2, "sort": 1,
            "query": {"query": query, "refId": f"{name}"}, "includeAll": True, "multi": True, "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]}}


def dashboard(uid, title, about, rows):
    panels, y = [], 0
    for name, row in rows:
        panels.append({"type": "row", "title": name, "collapsed": False, "panels": [], "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        x, y = 0, y + 1
        for item in row:
            width, height = item["gridPos"]["w"], item["gridPos"]["h"]
            if x + width > 24:
                x, y = 0, y + tallest
            tallest = height if x == 0 else max(tallest, height)
            panels.append({**item, "gridPos": {"x": x, "y": y, "w": width, "h": height}})
            x += width
        y += tallest
    for i, item in enumerate(panels):
        item["id"] = i + 1
    return {
        "uid": uid, "title": title, "description": about, "tags": ["nibble"], "schemaVersion": 39, "version": 1, "editable": True,
        "graphTooltip": 1, "refresh": "30s", "time": {"from": "now-1h", "to": "now"}, "timezone": "",
        "links": [{"type": "dashboards", "title": "Nibble", "tags": ["nibble"], "asDropdown": False, "keepTime": True, "includeVars": True}],
        "annotations": {"list": [{"name": "Restarts", "enable": True, "iconColor": "orange", "datasource": SOURCE,
                                  "expr": f"changes(process_start_time_seconds{{{PROCESS}}}[$__rate_interval]) > 0 and on (job, instance) nibble_build_info",
                                  "titleFormat": "{{instance}} restarted"}]},
        "templating": {"list": [
            {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "current": {}},
            choice("job", "Job", "nibble_build_info"), choice("instance", "Instance", "nibble_build_info", 'job=~"$job"'),
            choice("model", "Model", "nibble_model_state", PROCESS)]},
        "panels": panels}


DASHBOARDS = {
    "overview.json": dashboard("nibble-overview", "Nibble / Overview", "All daemons: load, latency, memory, errors.", OVERVIEW),
    "model.json": dashboard("nibble-model", "Nibble / Model", "One model closely, and its instances side by side.", BY_MODEL),
    "slo.json": dashboard("nibble-slo", "Nibble / Objectives", "Objectives, error budgets and what burns them; needs recording.yaml.", SLO)}


def main():
    stale = []
    for name, content in DASHBOARDS.items():
        text, path = json.dumps(content, indent=1) + "\n", HERE / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv[1:]:
                path.write_text(text)
    if "--check" in sys.argv[1:] and stale:
        sys.exit(f"run deploy/dashboards/render.py: {', '.join(stale)} stale")


if __name__ == "__main__":
    main()
