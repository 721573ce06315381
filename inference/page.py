"""The parts of the chat page: the controls, what was said, and the answer while it is written.

`st` is the streamlit module everywhere here, so that nothing needs it installed but the page itself.
"""

import argparse
import contextlib
import dataclasses
import re
import threading
import uuid
from pathlib import Path

from inference.engine import Sampling
from trainer.args import parse_seed

THOUGHT = re.compile(r"<think>\n?(.*?)(?:\n?</think>\s*|\Z)(.*)", re.DOTALL)  # either part may be unfinished
SLIDERS = {  # field of Sampling: lowest, highest, step
    "temperature": (0.0, 2.0, 0.05),
    "top_p": (0.05, 1.0, 0.05),
    "top_k": (0, 200, 1),
    "min_p": (0.0, 0.5, 0.01),
    "repetition_penalty": (1.0, 2.0, 0.05),
    "presence_penalty": (-2.0, 2.0, 0.1),
    "frequency_penalty": (-2.0, 2.0, 0.1),
    "max_new_tokens": (16, 1024, 16),
}
REMEMBERED = 1000  # conversations


def checkpoints(out_dir):
    """The .pth files of a folder, the newest first."""
    found = [p for p in Path(out_dir).glob("*.pth") if not p.stem.endswith("_resume")]
    return sorted(found, key=lambda p: -p.stat().st_mtime_ns)


@contextlib.contextmanager
def remembered_turns(st):
    """Holds the turns of the conversation that the page's address names; a new one if it names none.

    Pressing a button starts the page anew before the run that it ends has kept what was written; the new one waits.
    """

    @st.cache_resource(max_entries=REMEMBERED)
    def turns_of(chat):
        return [], threading.Lock()

    if "chat" not in st.query_params:
        st.query_params["chat"] = uuid.uuid4().hex  # cannot be guessed
    turns, lock = turns_of(st.query_params["chat"])
    with lock:
        yield turns


def parted(text):
    """What a model has written so far → (its thoughts, its answer)."""
    found = THOUGHT.match(text)
    return found.groups() if found else ("", text)


def show_turn(st, turn):
    """What was said: a person's words as they were typed, a model's as Markdown, its thoughts folded."""
    if turn["role"] == "user":
        st.text(turn["content"])
        return
    if turn.get("reasoning_content"):
        with st.expander("reasoning"):
            st.text(turn["reasoning_content"])
    st.markdown(turn["content"] or "…")
    for call in turn.get("tool_calls") or []:
        st.json(call)


def settings(st, typed):
    """The controls on the left → (path, adapter folder or None, system prompt, Sampling)."""
    paths = {p.stem: p for p in checkpoints(typed.out_dir)}
    if not paths:
        st.error(f"No checkpoint in {typed.out_dir}. Make one with: python 1-pretrain.py, or: make demo")
        st.stop()
    adapters = {p.parent.name: p.parent for p in sorted(Path(typed.out_dir).glob("*/adapter_config.json"))}
    kept = lambda key: {"key": key, "bind": "query-params"}  # noqa: E731 — in the address, so that reloading keeps it
    with st.sidebar:
        path = paths[st.selectbox("model", list(paths), **kept("model"))]
        adapter = adapters.get(st.selectbox("adapter", ["none", *adapters], **kept("adapter")))
        system = st.text_area("system prompt", "", height=80, **kept("system"))
        defaults, chosen = Sampling(), {}
        for field in dataclasses.fields(Sampling):
            if field.name in SLIDERS:
                low, high, step = SLIDERS[field.name]
                value, text = getattr(defaults, field.name), field.metadata["help"]
                chosen[field.name] = st.slider(field.name, low, high, value, step, help=text, **kept(field.name))
        seed = st.text_input("seed", "", help="a number makes answers repeatable", **kept("seed")).strip()
        try:
            chosen["seed"] = parse_seed(seed) if seed else None
        except argparse.ArgumentTypeError:
            st.error(f"{seed} is no whole number from 0 to 2^63 - 1; answers are not repeatable")
    return path, adapter, system, Sampling(**chosen)


def file_times(path, adapter):
    """When the checkpoint's file and the adapter's were written: what is trained again is another model."""
    files = [path, *(sorted(adapter.glob("*.safetensors")) if adapter else [])]
    return tuple(file.stat().st_mtime_ns for file in files)


def answer(st, conversation, question, again=False):
    """Streams the model's answer into the page; False, with what is wrong, where the question does not fit.

    `again`: it takes the place of the last question and its answer.
    """
    with st.chat_message("assistant"):
        above, place, below = st.empty(), st.empty(), st.empty()
        place.markdown("▌")
        # pressing any button ends this run of the page; what was written till then is kept
        below.button("Stop", type="tertiary", icon=":material/stop_circle:")
        text, thoughts, before = "", None, []
        if again:  # from here to where the new answer is kept, nothing ends this run
            before = conversation.turns[-2:]
            del conversation.turns[-2:]
        try:
            with contextlib.closing(conversation.ask(question)) as pieces:
                for piece in pieces:
                    text += piece
                    thought, said = parted(text)
                    if thought:
                        thoughts = thoughts or above.expander("reasoning").empty()
                        thoughts.text(thought)
                    place.markdown(said + " ▌")
        except ValueError as error:
            conversation.turns += before
            below.empty()
            place.error(str(error))
            return False
    return True
