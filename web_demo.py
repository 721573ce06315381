"""A chat page for any checkpoint, in the browser.

reads    the checkpoints and adapters in --out_dir
writes   nothing; the conversation can be downloaded as one line of the form that data_process.py sft reads

    pip install -r requirements-serve.txt
    python -m streamlit run web_demo.py -- --out_dir out

Pick a model and an adapter on the left, set how it samples, and talk. "Again" asks the last question anew.
"""

import dataclasses
import json
import re
from pathlib import Path

from inference.chat import Conversation
from inference.engine import Sampling
from inference.opening import open_model
from trainer import args
from trainer.runtime import choose_device

THOUGHT = re.compile(r"<think>.*?(?:</think>\s*|\Z)", re.DOTALL)  # folded when it is complete
SLIDERS = {  # field of Sampling: lowest, highest, step
    "temperature": (0.0, 2.0, 0.05),
    "top_p": (0.05, 1.0, 0.05),
    "top_k": (0, 200, 1),
    "repetition_penalty": (1.0, 2.0, 0.05),
    "max_new_tokens": (16, 1024, 16),
}


def parse(argv):
    """The command line behind `streamlit run web_demo.py --` → namespace."""
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "out_dir", default="out", help="where checkpoints and adapters are (default: out)")
    args.add_flag(parser, "device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    return parser.parse_args(argv)


def checkpoints(out_dir):
    """The .pth files of a folder, the newest first."""
    found = [p for p in Path(out_dir).glob("*.pth") if not p.stem.endswith("_resume")]
    return sorted(found, key=lambda p: -p.stat().st_mtime_ns)


def show_turn(st, turn):
    """What was said: a person's words as they were typed, a model's as Markdown, its thoughts folded."""
    if turn["role"] == "user":
        st.text(turn["content"])
        return
    if turn.get("reasoning_content"):
        with st.expander("reasoning", expanded=False):
            st.text(turn["reasoning_content"])
    st.markdown(turn["content"] or "…")
    for call in turn.get("tool_calls") or []:
        st.code(json.dumps(call, ensure_ascii=False), language="json")


def settings(st, typed):
    """The controls on the left → (path, adapter folder or None, system prompt, Sampling)."""
    paths = checkpoints(typed.out_dir)
    if not paths:
        st.error(f"No checkpoint in {typed.out_dir}. Make one with: python 1-pretrain.py, or: make demo")
        st.stop()
    with st.sidebar:
        path = st.selectbox("model", paths, format_func=lambda p: p.stem)
        adapters = sorted(p.parent for p in Path(typed.out_dir).glob("*/adapter_config.json"))
        adapter = st.selectbox("adapter", [None, *adapters], format_func=lambda p: p.name if p else "none")
        system = st.text_area("system prompt", "", height=80)
        defaults, chosen = Sampling(), {}
        for field in dataclasses.fields(Sampling):
            if field.name in SLIDERS:
                low, high, step = SLIDERS[field.name]
                value, text = getattr(defaults, field.name), field.metadata["help"]
                chosen[field.name] = st.slider(field.name, low, high, value, step, help=text)
        seed = st.text_input("seed", "", help="a number makes answers repeatable")
        chosen["seed"] = int(seed) if seed.strip().isdecimal() else None
    return path, adapter, system, Sampling(**chosen)


def answer(st, conversation, question):
    """Streams the model's answer into the page; False, with what is wrong, where the question does not fit."""
    with st.chat_message("assistant"):
        place, text = st.empty(), ""
        try:
            for piece in conversation.ask(question):
                text += piece
                place.markdown(THOUGHT.sub("", text) + " ▌")
        except ValueError as error:
            place.error(str(error))
            return False
        place.empty()
        return True


def main(argv=None):
    import streamlit as st

    typed = parse(argv)
    st.set_page_config(page_title="chat", page_icon="💬", initial_sidebar_state="auto")
    path, adapter, system, sampling = settings(st, typed)

    @st.cache_resource(max_entries=2, show_spinner="loading the model")
    def load(path, changed, adapter, device):
        return open_model(path, adapter, typed.out_dir, choose_device(device))[:2]

    try:
        model, tokenizer = load(path, path.stat().st_mtime_ns, adapter, typed.device)
    except (ValueError, OSError) as error:
        st.error(str(error))
        st.stop()
    conversation = Conversation(model, tokenizer, sampling, system)
    conversation.turns = st.session_state.setdefault("turns", [])
    with st.sidebar:
        left, right = st.columns(2)
        if left.button("New chat", width="stretch"):
            conversation.turns.clear()
        again = right.button("Again", width="stretch", disabled=not conversation.turns)
        line = json.dumps({"conversations": conversation.turns}, ensure_ascii=False) + "\n"
        st.download_button("Download", line, "conversation.jsonl", disabled=not conversation.turns, width="stretch")
        st.caption(f"{path.stem}: {model.n_params():,} parameters, context {model.cfg.max_seq_len}")
    question = st.chat_input("Ask something")
    if again:
        question = conversation.turns[-2]["content"]
        del conversation.turns[-2:]
    for turn in conversation.turns:
        with st.chat_message(turn["role"]):
            show_turn(st, turn)
    if question:
        with st.chat_message("user"):
            st.text(question)
        if answer(st, conversation, question):
            st.rerun()  # the answer is now a turn, and the buttons on the left know of it


if __name__ == "__main__":
    main()
