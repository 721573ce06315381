"""The chat page in a browser: what a person does, and what it looks like on a desktop, a phone, and in the dark."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import torch

from model.chat import load_tokenizer
from model.LMConfig import LMConfig
from model.model import Transformer
from tests.test_engine import large
from trainer.checkpoint import describe, save_weights

pytest.importorskip("streamlit", reason="needs pip install -r requirements-serve.txt")
playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install -r requirements-dev.txt")
ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LEARNT = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "**2**", "reasoning_content": "one and one"},
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome here; apt-get install chromium"),
]


def make_models(folder):
    """Two checkpoints: full_sft_64 has learnt one conversation, pretrain_32 nothing, and its texts do not end."""
    tokenizer = load_tokenizer()
    random = large(tokenizer.vocab_size, context=512)
    with torch.no_grad():
        random.output.weight[[0, tokenizer.eos_id, *tokenizer.tags]] = 0.0  # never the likeliest
    save_weights(folder / "pretrain_32.pth", random, describe(random.cfg, "pretrain", tokenizer))
    torch.manual_seed(0)
    shape = {"dim": 64, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 256}
    taught = Transformer(LMConfig(**shape, vocab_size=tokenizer.vocab_size))
    optimizer = torch.optim.AdamW(taught.parameters(), lr=1e-2)
    [chat] = tokenizer.encode_chats([(LEARNT, ())])
    ids, labels = (torch.from_numpy(x).unsqueeze(0) for x in (chat.ids, chat.labels))
    for _ in range(100):
        optimizer.zero_grad()
        loss = taught(ids[:, :-1], labels[:, 1:]).loss
        loss.backward()
        optimizer.step()
    assert loss < 1  # nats, of the whole answer
    path = folder / "full_sft_64.pth"
    save_weights(path, taught, describe(taught.cfg, "full_sft", tokenizer))
    os.utime(path, (time.time() + 5,) * 2)  # the newest: the page begins with it


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def started(folder, port):
    """The process that serves the page at a port, and the page's address."""
    settings = {"port": port, "address": "127.0.0.1", "headless": "true", "fileWatcherType": "none"}
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    flags = [f"--server.{name}={value}" for name, value in settings.items()]
    words = ["-m", "streamlit", "run", "web_demo.py", *flags, "--", "--out_dir", str(folder), "--device", "cpu"]
    with (folder / "log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=log, stderr=log, env=env)
    return process, f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of the page, served as the README says."""
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    for process, url in (started(folder, free_port()) for _ in range(5)):  # a port may be taken before it is used
        patience = time.monotonic() + 60
        while process.poll() is None and not answers(url + "/_stcore/health"):
            assert time.monotonic() < patience, (folder / "log").read_text(encoding="utf-8")
            time.sleep(0.1)
        if process.poll() is None:
            break
    assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
    yield url
    process.terminate()
    process.wait(20)
    assert "Traceback" not in (folder / "log").read_text(encoding="utf-8")


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except urllib.error.URLError:
        return False


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        playwright.expect.set_options(timeout=20_000)
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, address):
    """Opens the page in a browser of its own: opened(query, width, scheme) → playwright's Page, ready."""
    contexts, asked = [], set()

    def opened(query="", width=1280, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: asked.add(urllib.parse.urlsplit(request.url).hostname))
        page.goto(f"{address}/?{query}")
        page.get_by_test_id("stChatInputTextArea").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert asked - {None} == {"127.0.0.1"}  # nothing is loaded from elsewhere, nobody is told; None: data: and blob:


def ask(page, question):
    """Asks and returns the place where the answer appears."""
    page.get_by_test_id("stChatInputTextArea").fill(question)
    page.keyboard.press("Enter")
    page.get_by_test_id("stChatMessage").filter(has_text=question).last.wait_for()
    return page.get_by_test_id("stChatMessage").last


def said(page):
    """The messages when the last answer is complete and the page is drawn: parts of it may be missing before."""
    messages = page.get_by_test_id("stChatMessage")
    messages.last.get_by_role("button", name="Again").wait_for()
    playwright.expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    playwright.expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    return [text.partition("\n\nrefresh")[0] for text in messages.all_inner_texts()]  # without the button's icon


def shot(page, name):
    """A picture in the folder of $PICTURES, for a person to look at; none without it."""
    if folder := os.environ.get("PICTURES"):
        page.wait_for_timeout(500)
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_an_answer_streams_in_stops_and_is_written_anew(opened):
    page = opened("model=pretrain_32&temperature=0&max_new_tokens=1024")
    answer = ask(page, "春天")
    longer_than = "n => document.querySelectorAll('[data-testid=stChatMessage]')[1]?.innerText.length > n"
    page.wait_for_function(longer_than, arg=30)
    first = answer.inner_text().partition("▌")[0].strip()
    page.wait_for_function(longer_than, arg=len(first) + 30)
    later = answer.inner_text().partition("▌")[0].strip()
    assert later.startswith(first) and len(later) > len(first) > 0
    page.wait_for_function(longer_than, arg=200)  # far more than the 16 tokens of the second answer
    shot(page, "streaming")
    answer.get_by_role("button", name="Stop").click()
    stopped = said(page)[1]
    assert stopped.startswith(later) and "▌" not in stopped
    page.get_by_role("slider", name="max_new_tokens").press("Home")
    page.wait_for_url(re.compile("max_new_tokens=16"))
    page.get_by_role("button", name="Again").click()
    page.wait_for_function(longer_than.replace("> n", "< n"), arg=len(stopped) - 100)
    again = said(page)
    assert len(again) == 2 and 0 < len(again[1]) < len(stopped) and stopped.startswith(again[1])  # greedy


def test_reasoning_is_folded_until_it_is_opened(opened):
    page = opened("temperature=0")
    answer = ask(page, "1+1?")
    assert "reasoning" in said(page)[1] and answer.get_by_text("2", exact=True).is_visible()
    assert not answer.get_by_text("one and one").is_visible()
    answer.get_by_text("reasoning").click()
    answer.get_by_text("one and one").wait_for()
    shot(page, "desktop")


def test_what_is_set_and_said_outlives_reloading_and_another_model(opened, tmp_path):
    page = opened()
    temperature = page.get_by_test_id("stSlider").filter(has_text="temperature")
    assert "0.70" in temperature.inner_text()
    temperature.get_by_role("slider").press("Home")
    page.wait_for_url(re.compile("temperature=0"))
    page.get_by_role("textbox", name="system prompt").fill("你是一个助手。")
    page.get_by_role("textbox", name="system prompt").press("Control+Enter")
    page.wait_for_url(re.compile("system="))
    ask(page, "1+1?")
    before = said(page)
    page.reload()
    assert said(page) == before
    assert "0.00" in temperature.inner_text()
    assert page.get_by_role("textbox", name="system prompt").input_value() == "你是一个助手。"
    page.get_by_role("combobox", name="model").click()
    page.get_by_role("option", name="pretrain_32").click()
    page.get_by_text("pretrain_32: ").wait_for()
    assert said(page) == before
    ask(page, "春天")
    assert len(said(page)) == 4
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "kept.jsonl")
    [line] = (tmp_path / "kept.jsonl").read_text(encoding="utf-8").splitlines()
    turns = json.loads(line)["conversations"]
    assert turns[0] == {"role": "system", "content": "你是一个助手。"}
    assert [turn["role"] for turn in turns[1:]] == ["user", "assistant"] * 2
    page.get_by_role("button", name="New chat").click()
    page.get_by_test_id("stChatMessage").first.wait_for(state="detached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_sideways_scrolling(opened, scheme):
    page = opened("temperature=0", width=390, scheme=scheme)
    ask(page, "1+1?")
    assert len(said(page)) == 2  # of what other pages asked nothing
    ask(page, "a" * 70 + "很长的问题" * 10)
    assert len(said(page)) == 4
    paper, ink = page.get_by_test_id("stApp").evaluate(
        "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
    )
    light = lambda colour: sum(map(int, re.findall(r"\d+", colour)[:3])) > 3 * 128  # noqa: E731
    assert (light(paper), light(ink)) == (scheme == "light", scheme == "dark")
    shot(page, f"phone_{scheme}")
    fits(page)
    page.get_by_test_id("stExpandSidebarButton").click()
    page.get_by_role("slider", name="temperature").wait_for()
    shot(page, f"phone_{scheme}_settings")
    fits(page)


def fits(page):
    """Nothing that can be seen reaches past the right edge."""
    width, needed = page.evaluate("() => [innerWidth, document.documentElement.scrollWidth]")
    assert needed <= width == 390
    for part in page.get_by_test_id("stChatMessage").all():
        box = part.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert part.evaluate("e => e.scrollWidth <= e.clientWidth")
