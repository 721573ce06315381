"""A chat page for any checkpoint, in the browser.

reads    the checkpoints and adapters in --out_dir
writes   nothing; the conversation can be downloaded as one line of the form that data_process.py sft reads

    pip install -r requirements-serve.txt
    python -m streamlit run web_demo.py -- --out_dir out

Pick a model and an adapter on the left, set how it samples, and talk. "Again" asks the last question anew. The page's
address names what is set and the conversation, which the server remembers while it runs: the page can be reloaded.
"""

from inference.chat import Conversation
from inference.opening import add_int8_flag, open_model
from inference.page import answer, file_times, remembered_turns, settings, show_turn
from model.int8 import to_int8
from trainer import args
from trainer.checkpoint import is_chat_stage
from trainer.runtime import choose_device


def parse(argv):
    """The command line behind `streamlit run web_demo.py --` → namespace."""
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "out_dir", default="out", help="where checkpoints and adapters are (default: out)")
    args.add_flag(parser, "device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add_int8_flag(parser)
    return parser.parse_args(argv)


def main(argv=None):
    import streamlit as st

    typed = parse(argv)
    st.set_page_config(page_title="chat", page_icon="💬", initial_sidebar_state="auto")
    top = st.sidebar.container()  # filled when the conversation is known
    path, adapter, system, sampling = settings(st, typed)

    @st.cache_resource(max_entries=2, show_spinner="loading the model")
    def load(path, times, adapter, device):
        model, tokenizer, about, *_ = open_model(path, adapter, typed.out_dir, choose_device(device))
        return to_int8(model) if typed.int8 else model, tokenizer, about.get("stage", path.stem)

    try:
        model, tokenizer, stage = load(path, file_times(path, adapter), adapter, typed.device)
    except (ValueError, OSError) as error:
        st.error(str(error))
        st.stop()
    conversation = Conversation(model, tokenizer, sampling, system)
    st.sidebar.caption(f"{path.stem}: {model.n_params():,} parameters, context {model.cfg.max_seq_len}")
    notice = st.empty()  # also where nothing is said, so that what follows keeps its place in the page
    if not (adapter or is_chat_stage(stage)):
        notice.info("This model was not trained on chats: it only continues texts. 3-full_sft.py teaches it to answer.")
    with remembered_turns(st) as conversation.turns:
        talk(st, top, conversation)


def talk(st, top, conversation):
    """What was said, what can be done with it, and the answer to what is asked now."""
    turns = conversation.turns
    left, right = top.columns(2)
    # noted in the session: a run of the page that is ended before it comes here would forget which button was pressed
    note = lambda what: st.session_state.update({what: True})  # noqa: E731
    left.button("New chat", width="stretch", on_click=note, args=("new",))
    if st.session_state.pop("new", False):
        turns.clear()
    line, off = conversation.line(), not turns
    right.download_button("Download", line, "conversation.jsonl", disabled=off, on_click="ignore", width="stretch")
    question = st.chat_input("Ask something", submit_mode="disable")
    again = st.session_state.pop("again", False) and len(turns) > 0
    if again:
        question = turns[-2]["content"]
    for turn in turns[:-2] if again else turns:
        with st.chat_message(turn["role"]):
            show_turn(st, turn)
            place = st.empty()  # also where no button is, so that an earlier one goes away at once
            if turn is turns[-1] and not question:
                place.button("Again", type="tertiary", icon=":material/refresh:", on_click=note, args=("again",))
    if question:
        with st.chat_message("user"):
            st.text(question)
        if answer(st, conversation, question, again):
            st.rerun()  # the answer is now a turn


if __name__ == "__main__":
    main()
