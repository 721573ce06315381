"""Public data sets that people train and examine small Chinese models with: where they are, and what their pages state.

Nothing of them is in this repository. Names and licences were looked up in November 2026 without opening the hubs
themselves; what could not be confirmed says so. The hub is asked again for its licence before anything is fetched.
"""

from dataclasses import dataclass

PRETRAIN = "python data_process.py pretrain --input {folder} --output dataset/pretrain.bin"
SFT = "python data_process.py sft --input {folder} --output dataset/sft.jsonl"
STATS = "python data_process.py stats --input {folder}"
LOOK = "look at the page"


@dataclass(frozen=True)
class PublicSet:
    """One entry of the table.

    Attributes:
        name: what is typed, and the folder below --output_dir.
        use: what it is for. size: about how much is fetched, as a person reads it; "" if not known.
        licence: as the page states it.
        sources: {"huggingface" or "modelscope": "owner/name"}, the preferred one first.
        files: patterns of the files that are fetched; those that match nothing are named, one must match.
        then: the next command; {folder} is where the files lie.
        unpack: "archives", "exam" (and tables → CSV), or "".
    """

    name: str
    use: str
    size: str
    licence: str
    sources: dict
    files: tuple
    then: str
    unpack: str = ""


MINIMIND = {"huggingface": "jingyaogong/minimind_dataset", "modelscope": "gongjy/minimind_dataset"}
# Copies of the page name Apache-2.0 and CC-BY-NC (2.0 and 4.0 are both seen) side by side.
MINIMIND_LICENCE = f"Apache-2.0 and CC-BY-NC are both named: {LOOK}"

SETS = [
    # MiniMind renamed its files in 2026: *_t2t are the newer ones; an older --revision has the others.
    PublicSet(
        "minimind-pretrain",
        "pretraining",
        "1.2-1.6 GB",
        MINIMIND_LICENCE,
        MINIMIND,
        ("pretrain_hq.jsonl", "pretrain_t2t_mini.jsonl"),
        PRETRAIN,
    ),
    PublicSet(
        "minimind-sft-mini",
        "chat",
        "about 1.2 GB",
        MINIMIND_LICENCE,
        MINIMIND,
        ("sft_mini_512.jsonl", "sft_t2t_mini.jsonl"),
        SFT,
    ),
    PublicSet(
        "minimind-sft",
        "chat",
        "about 22 GB",
        MINIMIND_LICENCE,
        MINIMIND,
        ("sft_512.jsonl", "sft_1024.jsonl", "sft_2048.jsonl", "sft_t2t.jsonl"),
        SFT,
    ),
    PublicSet(
        "minimind-dpo",
        "preferences",
        "55 MB to 0.9 GB",
        MINIMIND_LICENCE,
        MINIMIND,
        ("dpo.jsonl",),
        "python data_process.py dpo --input {folder} --output dataset/dpo.jsonl",
    ),
    PublicSet(
        "minimind-lora",
        "LoRA",
        "34 MB",
        MINIMIND_LICENCE,
        MINIMIND,
        ("lora_*.jsonl",),
        "python 4-lora_sft.py --data_path {folder}/lora_identity.jsonl",
    ),
    PublicSet("minimind-r1", "reasoning chats", "340 MB", MINIMIND_LICENCE, MINIMIND, ("r1_mix_1024.jsonl",), SFT),
    PublicSet(
        "seq-monkey",
        "pretraining",
        "",
        f"Apache-2.0 for Mobvoi's corpus; this copy: {LOOK}",
        {"modelscope": "ddzhu123/seq-monkey"},
        ("mobvoi_seq_monkey_general_open_corpus.jsonl.tar.bz2",),
        PRETRAIN,
        "archives",
    ),
    PublicSet(
        "wikipedia-zh",
        "pretraining",
        "about 1 GB",
        f"CC BY-SA, as Wikipedia's text; which version: {LOOK}",
        {
            "huggingface": "pleisto/wikipedia-cn-20230720-filtered",
            "modelscope": "AI-ModelScope/wikipedia-cn-20230720-filtered",
        },
        ("wikipedia-cn-20230720-filtered.json",),
        f"{PRETRAIN} --field completion",
    ),
    PublicSet(
        "fineweb-edu-zh",
        "pretraining",
        "about 300 GB in all: choose with --files",
        "Apache-2.0",
        {"huggingface": "opencsg/chinese-fineweb-edu", "modelscope": "opencsg/chinese-fineweb-edu"},
        ("*.parquet",),
        PRETRAIN,
    ),
    PublicSet(
        "belle-0.5m",
        "chat",
        "",
        f"the page: research only, not commercial; its licence tag: {LOOK}",
        {"huggingface": "BelleGroup/train_0.5M_CN", "modelscope": "AI-ModelScope/train_0.5M_CN"},
        ("Belle_open_source_0.5M.json", "*.jsonl"),
        SFT,
    ),
    PublicSet(
        "alpaca-zh",
        "chat",
        "",
        "CC BY-NC 4.0 (the page's text; made with GPT-4)",
        {"huggingface": "shibing624/alpaca-zh"},
        ("alpaca_gpt4_data_zh.json",),
        SFT,
    ),
    PublicSet(
        "firefly",
        "instructions; its fields are kind, input, target: rename target to output for chat data",
        "about 1.1 GB",
        LOOK,
        {"huggingface": "YeungNLP/firefly-train-1.1M"},
        ("firefly-train-1.1M.jsonl",),
        STATS,
    ),
    PublicSet(
        "ceval",
        "exam",
        "2 MB",
        "CC BY-NC-SA 4.0",
        {"huggingface": "ceval/ceval-exam"},
        ("ceval-exam.zip", "*/dev-*.parquet", "*/val-*.parquet", "*/test-*.parquet"),
        "python ceval_eval.py --data_dir {folder}",
        "exam",
    ),
    PublicSet(
        "cmmlu",
        "exam",
        "1 MB",
        "CC BY-NC 4.0 (the data's page; the repository of its code: CC BY-NC-SA 4.0)",
        # before: haonan-li/cmmlu
        {"huggingface": "lmlmcat/cmmlu", "modelscope": "modelscope/cmmlu"},
        ("cmmlu_v1_0_1.zip",),
        "python ceval_eval.py --data_dir {folder} --split test",
        "exam",
    ),
]


def find_set(name):
    """The entry of that name; ValueError lists the known ones."""
    for entry in SETS:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in SETS)
    raise ValueError(f"no public set is called {name}; known: {known}. Any other: --repo OWNER/NAME")


def table():
    """All sets as lines for a person."""
    lines = []
    for entry in SETS:
        lines.append(f"{entry.name:<18} {entry.use}{f', {entry.size}' if entry.size else ''}")
        lines.append(f"{'':<18} {', '.join(f'{hub}: {repo}' for hub, repo in entry.sources.items())}")
        lines.append(f"{'':<18} licence: {entry.licence}")
    return "\n".join(lines)
