"""The page for people, in a real browser: what it shows, how it asks, and whom it refuses."""

import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
import time

import pytest

import tiny_model
from daemon import BIN, Daemon

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: tests/run does")
expect = sync_api.expect
CHROMIUM = os.environ.get("NIBBLE_CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed: tests/run installs it")

STORY = "Write a very long story about a river and all the towns along it."
MARKUP = "<img/src=x/onerror=document.title='owned'>"
REBOUND = "rebound.test"  # a name that leads to this machine, as an attacker's may


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--disable-dev-shm-usage", f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def daemon(smollm2_path, tiny_path):
    """Two models: one slow enough to be watched and stopped, and one that answers at once."""
    args = ("--http-prompt", "--threads=1", "--compute=f32", "--kv-memory=64MiB")
    with Daemon(f"slow={smollm2_path}", f"tiny={tiny_path}", args=args) as running:
        yield running


@pytest.fixture
def visit(browser):
    """visit(daemon, ...) opens the page; whatever the browser complains about fails the test."""
    complaints = []
    with contextlib.ExitStack() as stack:
        def go(daemon, *, host=None, path="/", width=1280, height=900, routes=None, **settings):
            context = browser.new_context(viewport={"width": width, "height": height}, **settings)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(15000)
            page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            for pattern, handler in (routes or {}).items():
                page.route(pattern, handler)
            page.goto(f"http://{host or daemon.http}{path}")
            return page
        go.complaints = complaints
        yield go
    assert complaints == []


def ready(page):
    expect(page.locator("#state")).to_have_text("Ready")
    return page


def ask(page, text, *, tokens=1024, model="slow"):
    page.get_by_label("Model", exact=True).select_option(model)
    page.get_by_label("Prompt", exact=True).fill(text)
    page.get_by_label("Most tokens").fill(str(tokens))
    page.get_by_role("button", name="Send").click()


def eventually(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def sticking_out(page):
    """What is wider than the screen, so that the page would scroll sideways."""
    return page.evaluate("""() => document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll('body *')]
        .filter((element) => element.getBoundingClientRect().right > innerWidth).map((element) => element.outerHTML.slice(0, 90))""")


# ---- What it shows ------------------------------------------------------------------------------------------------------


def test_shows_what_is_loaded(daemon, visit):
    page = ready(visit(daemon))
    for name in ("slow", "tiny"):
        card = page.get_by_role("article", name=f"Model {name}")
        expect(card).to_contain_text("Serving")
        expect(card).to_contain_text("Architecturellama")
        expect(card.get_by_role("row", name="KV cache")).to_contain_text(re.compile(r"KV cache6[0-4][.\d]* MiB6[0-4][.\d]* MiB"))
    expect(page.locator("#grpc")).to_have_text(daemon.address)
    expect(page.locator("#uptime")).to_have_text(re.compile(r"^\d+ (s|min)"))
    widths = page.locator("article .bar > span").evaluate_all("spans => spans.map((span) => span.offsetWidth)")
    assert sum(width > 0 for width in widths) >= 4, "bars of plan and actual are drawn"


def test_empty_states_are_words(tiny_path, visit):
    with Daemon(f"tiny={tiny_path}") as fresh:
        page = ready(visit(fresh))
        for words in ("Idle: no tokens in the last two minutes.", "None since the server started.", "Prompts over HTTP are off."):
            expect(page.get_by_text(words)).to_be_visible()
        expect(page.get_by_role("button", name="Send")).to_be_hidden()
        fresh.stop()
        expect(page.locator("#state")).to_contain_text("No answer from the server", timeout=10000)
        visit.complaints.clear()  # the browser reports the refused connections, as it should


def test_shows_loading_failing_and_nothing(daemon, visit):
    status = json.loads(daemon.get("/status")[1])
    loading = {**status["models"][0], "name": "big", "state": "loading",
               "progress": {"stage": "weights", "done": 3 << 30, "total": 4 << 30}}
    del loading["info"]
    failed = {**loading, "name": "broken", "state": "failed", "error": f"no such file {MARKUP}"}
    del failed["progress"]
    answer = {"status": {**status, "ready": False, "models": [loading, failed]}}
    page = visit(daemon, routes={"**/status": lambda route: route.fulfill(json=answer["status"])})
    expect(page.get_by_role("article", name="Model big")).to_contain_text("Loading weights: 3.00 GiB of 4.00 GiB")
    assert page.get_by_role("progressbar", name="Loading big").evaluate("bar => bar.value") == 0.75
    expect(page.get_by_role("article", name="Model broken")).to_contain_text(f"no such file {MARKUP}")
    expect(page.locator("#state")).to_have_text("Not ready: a model failed")
    answer["status"] = {**status, "models": []}
    expect(page.get_by_text("No model is loaded.")).to_be_visible()
    expect(page.locator("article")).to_have_count(0)


def test_plots_move_under_load(daemon, visit):
    page = ready(visit(daemon))
    plot = page.locator("figure", has_text="Throughput").locator("svg")
    client, stopping = daemon.client(), threading.Event()

    def load():
        while not stopping.is_set():
            client.ask(model="slow", text="load", stopping={"max_tokens": 20, "ignore_eos": True})
    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        expect(plot).to_have_attribute("aria-label", re.compile(r"Generated: [1-9][\d,.]* tokens/s"))
        before = plot.locator("path.first").get_attribute("d")
        page.wait_for_function("d => document.querySelector('svg path.first').getAttribute('d') !== d", arg=before)
        for title in ("Time to first token", "Time between tokens"):
            expect(page.locator("figure", has_text=title).locator(".value").first).not_to_have_text("–")
        # One model alone: the other has nothing to do.
        page.get_by_label("Show").select_option("tiny")
        expect(plot).to_have_attribute("aria-label", re.compile(r"Generated: 0 tokens/s"))
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
        client.close()


def test_failures_are_listed_by_reason(daemon, visit):
    page = ready(visit(daemon))
    client = daemon.client()
    with pytest.raises(Exception):
        client.ask(model="tiny", text="x", sampling={"top_p": 7})
    row = page.get_by_role("row", name="A field had a wrong value")
    expect(row).to_contain_text("INVALID_ARGUMENT, INVALID_FIELD")
    assert int(row.locator("td").nth(2).inner_text()) >= 1
    client.close()


# ---- The prompt box -----------------------------------------------------------------------------------------------------


def test_answers_come_token_by_token(daemon, visit):
    page = ready(visit(daemon))
    page.evaluate("""() => { window.steps = []; new MutationObserver(() => window.steps.push(
        document.getElementById('answer').textContent.length)).observe(document.getElementById('answer'), {childList: true}); }""")
    ask(page, STORY, tokens=60)
    expect(page.locator("#answer-state")).to_contain_text("of the prompt, the first in")
    steps = page.evaluate("window.steps")
    assert len(steps) > 10 and steps == sorted(steps) and steps[0] < steps[-1] / 4
    # As a client of gRPC would have counted.
    assert page.locator("#answer-state").inner_text().split()[0] in {str(n) for n in range(1, 61)}


@pytest.mark.parametrize("how", ["button", "escape", "leaving"])
def test_stopping_cancels_and_frees_the_cache(daemon, visit, how):
    page = ready(visit(daemon))
    cancelled = functools.partial(daemon.metric, "nibble_requests_total", model="slow", code="CANCELLED")
    before = cancelled()
    ask(page, STORY)
    expect(page.locator("#answer")).not_to_be_empty()
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    elif how == "escape":
        page.get_by_label("Prompt", exact=True).press("Escape")
    else:
        page.goto("about:blank")
    eventually(lambda: cancelled() == before + 1)
    eventually(lambda: daemon.metric("nibble_kv_blocks", model="slow", state="used") == 0)
    if how != "leaving":
        expect(page.locator("#answer-state")).to_have_text("Stopped.")
        expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_keyboard_alone_is_enough(daemon, visit):
    page = ready(visit(daemon))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the prompt"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "prompt-text"
    page.keyboard.type(STORY)
    reached = []
    while "prompt-send" not in reached:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", f"no focus is to be seen at {reached[-1]}"
        assert len(reached) < 10
    assert {"prompt-model", "prompt-tokens", "prompt-temperature", "prompt-chat"} <= set(reached)
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).not_to_be_empty()
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.press("Escape")
    expect(page.locator("#answer-state")).to_have_text("Stopped.")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_enabled()
    page.keyboard.press("Escape")
    expect(page.get_by_role("status").nth(1)).to_have_text("Stopped.")


def test_everything_has_a_name(daemon, visit):
    page = ready(visit(daemon))
    unnamed = page.evaluate("""() => [...document.querySelectorAll('input, select, textarea, button, svg, [role=region], section')]
        .filter((element) => !element.labels?.length && !element.textContent.trim()
            && !element.getAttribute('aria-label') && !element.getAttribute('aria-labelledby'))
        .map((element) => element.outerHTML)""")
    assert unnamed == []
    for role, name in (("textbox", "Prompt"), ("spinbutton", "Most tokens"), ("combobox", "Model"), ("checkbox", "As a chat"),
                       ("region", "Answer"), ("region", "Models"), ("heading", "Requests that failed")):
        expect(page.get_by_role(role, name=name, exact=name == "Prompt").first).to_be_visible()


def test_markup_of_a_model_is_text(tmp_path, visit):
    directory = tiny_model.write(tmp_path / "hostile")
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    alphabet = tiny_model.byte_alphabet()
    for byte in range(128, 256):  # ASCII prompts do not need these
        del tokenizer["model"]["vocab"][alphabet[byte]]
        tokenizer["model"]["vocab"][f"{MARKUP}{byte}"] = byte
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    with Daemon(f"hostile={directory}", args=("--http-prompt", "--compute=f32")) as running:
        page = ready(visit(running))
        page.get_by_label("Prompt", exact=True).fill("Say something")
        page.get_by_label("Most tokens").fill("60")
        page.get_by_role("button", name="Send").click()
        expect(page.locator("#answer-state")).to_contain_text("of the prompt")
        assert MARKUP in page.locator("#answer").inner_text()
        assert page.locator("#answer *").count() == 0
        assert page.title() == "Nibble"


def test_refusals_are_shown_and_the_box_stays_usable(daemon, visit):
    page = ready(visit(daemon, routes={"**/prompt": lambda route: route.fulfill(
        status=429, json={"error": {"code": "RESOURCE_EXHAUSTED", "reason": "QUEUE_FULL", "message": "the queue is full"}})}))
    ask(page, "x")
    expect(page.locator("#answer-state")).to_have_text("Failed: the queue is full")
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    visit.complaints.clear()  # the browser reports the 429


# ---- On every screen ----------------------------------------------------------------------------------------------------

CONTRAST = """() => {
    const channels = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
        .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const light = (color) => { const [r, g, b] = channels(color); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const ground = (element) => { for (let at = element; at; at = at.parentElement) {
        const color = getComputedStyle(at).backgroundColor; if (!color.endsWith(', 0)')) return color; } };
    return [...document.querySelectorAll('p, dt, dd, th, td, h1, h2, h3, label, a:not(.skip), code, .value, .unit, .scale, .label, button:enabled')]
        .filter((element) => element.offsetParent !== null && element.textContent.trim() !== '')
        .map((element) => { const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
            return {ratio: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text: element.textContent.slice(0, 40)}; })
        .filter(({ratio}) => ratio < 4.5); }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_fits_and_can_be_read(daemon, visit, width, scheme):
    page = ready(visit(daemon, width=width, color_scheme=scheme))
    ask(page, "word " * 40 + "x" * 300, tokens=200, model="tiny")
    expect(page.locator("#answer-state")).to_contain_text("of the prompt")
    assert sticking_out(page) == []
    assert page.evaluate(CONTRAST) == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (scheme == "dark")


# ---- Whom it refuses ----------------------------------------------------------------------------------------------------


class Elsewhere(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><link rel=icon href=data:,><title>elsewhere</title>")

    def log_message(self, *_):
        pass


TRY = """async ([url, headers]) => {
    try { const answer = await fetch(url, {method: 'POST', body: '{"text": "x"}', headers}); return answer.status; }
    catch { return 'blocked'; } }"""


def test_pages_of_other_sites_cannot_ask(daemon, visit):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        page = visit(daemon, host=f"127.0.0.1:{server.server_port}")
        before = daemon.metric("nibble_requests_total"), daemon.metric("nibble_output_tokens_total")
        url = f"http://{daemon.http}/prompt"
        for headers in ({"Content-Type": "application/json", "X-Nibble-Prompt": "1"}, {"Content-Type": "application/json"},
                        {"Content-Type": "text/plain"}, {}):
            assert page.evaluate(TRY, [url, headers]) == "blocked"
        assert before == (daemon.metric("nibble_requests_total"), daemon.metric("nibble_output_tokens_total"))
        visit.complaints.clear()  # the browser says what it blocked
    finally:
        server.shutdown()
        server.server_close()


def test_names_that_were_made_to_point_here_cannot_ask(daemon, visit):
    page = ready(visit(daemon, host=f"{REBOUND}:{daemon.http.rsplit(':', 1)[1]}"))
    ask(page, "x")
    expect(page.locator("#answer-state")).to_contain_text(f"--http-prompt-hosts {REBOUND}")
    visit.complaints.clear()  # the browser reports the 403


def test_the_page_cannot_be_framed_and_runs_no_inline_script(daemon, visit):
    page = ready(visit(daemon))
    page.evaluate("""() => { const script = document.createElement('script'); script.textContent = 'document.title = "owned"';
        document.body.append(script); document.body.insertAdjacentHTML('beforeend', '<button onclick="document.title=1">press</button>');
        document.body.lastElementChild.click(); }""")
    assert page.title() == "Nibble"
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)
    visit.complaints.clear()


def test_prompts_are_off_unless_asked_for(tiny, visit):
    page = ready(visit(tiny))
    expect(page.get_by_text("--http-prompt")).to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_be_hidden()
    assert page.evaluate(TRY, ["/prompt", {"Content-Type": "application/json", "X-Nibble-Prompt": "1"}]) == 404
    visit.complaints.clear()  # the browser reports the 404


def test_client_certificates_exclude_prompts(tiny_path):
    done = subprocess.run([str(BIN), "serve", str(tiny_path), "--http-prompt", "--tls-cert", "c", "--tls-key", "k",
                           "--tls-client-ca", "ca"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert "--http-prompt" in done.stderr and "--tls-client-ca" in done.stderr
