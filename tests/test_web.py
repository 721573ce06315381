"""The chat page, driven as streamlit's own tester drives it: no browser, the same script."""

import os
import sys
import threading
import types
from pathlib import Path

import pytest

from inference.page import file_times, parted, remembered_turns
from tests.stages import make_base

testing = pytest.importorskip("streamlit.testing.v1", reason="needs pip install -r requirements-serve.txt")
PAGE = str(Path(__file__).parent.parent / "web_demo.py")


@pytest.fixture
def page(tmp_path, tokenizer_dir, monkeypatch):
    """The page over a folder with one model that has learnt nothing; greedy, so that answers repeat."""
    make_base(tmp_path, tokenizer_dir)
    monkeypatch.setattr(sys, "argv", ["web_demo.py", "--out_dir", str(tmp_path), "--device", "cpu"])
    page = testing.AppTest.from_file(PAGE, default_timeout=60).run()
    slider(page, "temperature").set_value(0.0)
    slider(page, "max_new_tokens").set_value(16)
    return page.run()


def slider(page, name):
    return next(s for s in page.sidebar.slider if s.label == name)


def button(page, name):
    return next((b for b in page.button if b.label == name), None)


def turns(page):
    return [(m.name, (m.markdown or m.text)[0].value) for m in page.chat_message]


def test_a_question_is_answered_and_asked_again(page, monkeypatch):
    assert not page.exception and not button(page, "Again")
    page.chat_input[0].set_value("春天").run()
    first = turns(page)
    assert not page.exception and [role for role, _ in first] == ["user", "assistant"] and first[0][1] == "春天"
    button(page, "Again").click().run()
    assert turns(page) == first  # greedy
    with monkeypatch.context() as patch:  # a run that is ended before it writes has taken nothing away
        patch.setattr("inference.page.show_turn", lambda *_: 1 / 0)
        button(page, "Again").click().run()
        assert page.exception
    assert turns(page.run()) == first
    slider(page, "max_new_tokens").set_value(16)
    with monkeypatch.context() as patch:  # nor has one in which the question does not fit any more
        patch.setattr("inference.chat.Conversation.prompt", lambda *_: int("too long"))
        button(page, "Again").click().run()
        assert "too long" in page.error[0].value
    assert turns(page.run()) == first
    button(page, "New chat").click().run()
    assert turns(page) == []


def test_a_run_of_the_page_waits_until_the_one_it_ends_has_kept_its_answer():
    chats, seen = {}, []
    cached = lambda **_: lambda f: lambda chat: chats.setdefault(chat, f(chat))  # noqa: E731
    page = types.SimpleNamespace(query_params={}, cache_resource=cached)

    def next_run():
        with remembered_turns(page) as turns:
            seen.extend(turns)

    with remembered_turns(page) as turns:
        later = threading.Thread(target=next_run)
        later.start()
        later.join(0.2)  # seconds; it must not end
        turns += ["question", "answer"]
    later.join(20)
    assert seen == ["question", "answer"]


def test_reasoning_is_told_from_the_answer_from_its_first_word_on():
    pieces = ["<think>", "\none ", "and one\n", "</think>", "\n\n", "2 ", "<think>"]
    told = [parted("".join(pieces[: n + 1])) for n in range(len(pieces))]
    assert [thought for thought, _ in told] == ["", "one ", "one and one\n", *["one and one"] * 4]
    assert [said for _, said in told] == ["", "", "", "", "", "2 ", "2 <think>"]
    assert parted("2 <think>no") == ("", "2 <think>no")


def test_reasoning_is_folded(page, monkeypatch):
    pieces = [("<think>", True), ("\none and one\n", False), ("</think>", True), ("\n\n2", False)]
    monkeypatch.setattr("inference.chat.stream_parts", lambda *_: iter(pieces))
    page.chat_input[0].set_value("1+1?").run()
    assert page.expander[0].label == "reasoning" and not page.expander[0].proto.expanded
    assert page.expander[0].text[0].value == "one and one"
    assert [m.value for m in page.chat_message[1].markdown] == ["2"]


def test_a_question_that_does_not_fit_is_told(page):
    page.chat_input[0].set_value("春天" * 200).run()
    assert not page.exception and "shorten it" in page.error[0].value


def test_what_is_typed_is_shown_as_text(page):
    page.chat_input[0].set_value("<b>**x**</b>").run()
    assert page.chat_message[0].text[0].value == "<b>**x**</b>"


def test_a_folder_without_models_names_the_next_step(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["web_demo.py", "--out_dir", str(tmp_path)])
    page = testing.AppTest.from_file(PAGE, default_timeout=60).run()
    assert "make demo" in page.error[0].value and not page.exception


def test_a_bad_seed_is_told_and_a_good_one_taken(page):
    seed = next(box for box in page.sidebar.text_input if box.label == "seed")
    for text in ("abc", "-1", "9" * 20):
        seed.set_value(text).run()
        assert not page.exception and f"{text} is no whole number" in page.error[0].value
    seed.set_value(" 7 ").run()
    assert not page.exception and not page.error


def test_a_model_that_knows_no_chats_is_said_to_continue_text(page, tmp_path):
    assert "was not trained on chats" in page.info[0].value
    base = next(tmp_path.glob("pretrain_*.pth"))
    for file in (base, base.with_suffix(".json")):
        chat = file.with_name(file.name.replace("pretrain", "full_sft"))
        chat.write_bytes(file.read_bytes().replace(b'"stage": "pretrain"', b'"stage": "full_sft"'))
    page.run()
    next(box for box in page.sidebar.selectbox if box.label == "model").set_value(chat.stem).run()
    assert not page.exception and not page.info


def test_what_is_trained_again_is_another_model(tmp_path):
    model, adapter = tmp_path / "m.pth", tmp_path / "lora"
    adapter.mkdir()
    files = [model, adapter / "adapter_model.safetensors"]
    for file in files:
        file.touch()
    seen = {file_times(model, adapter)}
    for file in files:
        os.utime(file, ns=(1, 1))
        seen.add(file_times(model, adapter))
    assert len(seen) == 3 and file_times(model, None) == (1,)
