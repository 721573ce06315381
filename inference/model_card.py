"""The texts that go with an exported model: a model card for the Hub, a Modelfile for Ollama."""

import hashlib
import json
from pathlib import Path

from trainer.checkpoint import provenance, save_json, write_atomically

MARK = "minimind.json"  # in a folder that was written here


def scores_of(path, about, lora=None):
    """{exam and scoring: score} that a checkpoint was given after it was trained, from the results beside it.

    Args:
        path: the checkpoint; about: its description; lora: the adapter that it was asked with.
    """
    found = {}
    for file in sorted(path.parent.rglob("summary.json")):
        try:
            taken = json.loads(file.read_text(encoding="utf-8"))
            own = Path(taken["model"]).name == path.name and taken["lora"] == lora
            if not own or taken["saved"] < about.get("saved", ""):
                continue
            exam = f"{Path(taken['data_dir']).name} {taken['split']}, {taken['shots']} shots"
            for scoring, s in taken["scorings"].items():
                if s["answered"]:
                    low, high = s["interval_95"]
                    found[f"{exam}, {scoring.replace('_', ' ')}"] = (
                        f"{s['accuracy']:.1%} of {s['answered']:,} questions [{low:.1%}, {high:.1%}]; guessing gives "
                        f"{taken['chance']:.0%}"
                    )
        except (ValueError, KeyError, TypeError, AttributeError):  # cut off, or of another program
            continue
    return found


def model_card(model, about, path, name, scores=None):
    """README.md of an exported folder: what it is, how it was made, what it can do, how to use it.

    Args:
        about: the checkpoint's description; keys that it lacks are left out.
        path: the checkpoint; name: the folder's name; scores: of scores_of.
    """
    cfg = model.cfg
    kind = f"{cfg.n_routed_experts} experts, {cfg.num_experts_per_tok} per token" if cfg.use_moe else "dense"
    made = {
        "stage": about.get("stage"),
        "command": f"`{about['command']}`" if "command" in about else None,
        "steps": about.get("step"),
        "tokens": f"{about['tokens']:,}" if "tokens" in about else None,
        "data": about.get("settings", {}).get("data_path"),
        "validation loss": about.get("val_loss"),
        "bits per byte": about.get("val_bits_per_byte"),
        "seed": about.get("seed"),
        "versions": json.dumps(about["versions"]) if "versions" in about else None,
        "checkpoint": path.name,
        **(scores or {}),
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in made.items() if value is not None)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
language: [zh, en]
---
# {name}

A language model of {model.n_params():,} parameters: {kind}, width {cfg.dim}, {cfg.n_layers} layers, {cfg.n_heads} query
and {cfg.n_kv_heads} key/value heads, {cfg.vocab_size:,} ids, context {cfg.max_seq_len}. It is in the format of stock
{"Qwen2-MoE" if cfg.use_moe else "Llama"}: no remote code.

| made by | |
|---|---|
{rows}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("{name}"), AutoModelForCausalLM.from_pretrained("{name}")
turns = [{{"role": "user", "content": "你好"}}]
ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**ids, max_new_tokens=100)[0], skip_special_tokens=True))
```

Write here what it was trained on and under which licences, what it is for, and what it must not be used for.
"""


def modelfile(file, tokenizer, cfg):
    """An Ollama Modelfile for a GGUF file beside it; the template writes what this project's chats look like."""
    bos, eos = (tokenizer.backend.id_to_token(i) for i in (tokenizer.bos_id, tokenizer.eos_id))
    turn = lambda role, text: f"{bos}{role}\n{text}{eos}\n"  # noqa: E731
    # the file says that a text begins with BOS, so Ollama writes the first one itself
    between = "{{ if $i }}" + bos + "{{ end }}"
    message = turn("{{ $m.Role }}", "{{ $m.Content }}").removeprefix(bos)
    template = "{{ range $i, $m := .Messages }}" + between + message + "{{ end }}" + f"{bos}assistant\n"
    return f'FROM ./{file}\nTEMPLATE """{template}"""\nPARAMETER stop "{eos}"\nPARAMETER num_ctx {cfg.max_seq_len}\n'


def read_mark(folder):
    """What `mark_as_own` wrote into a folder; {} where it was not written here."""
    file = Path(folder, MARK)
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file} is not whole ({error}); remove it, or export anew into another folder") from error


def mark_as_own(folder, about, path, **more):
    """Writes what says that a folder was written here, and from which checkpoint of which stage."""
    save_json(folder / MARK, {"stage": about.get("stage"), "checkpoint": str(path), **more, **provenance()})


def write_card(folder, card, about, path):
    """Writes README.md, unless somebody has changed it since, and what says that the folder was written here."""
    before, file = read_mark(folder), folder / "README.md"
    changed = file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != before.get("card")
    if changed:
        print(f"kept: {file}, which was changed by hand; what it says of the model may be old")
    else:
        write_atomically(file, lambda f: f.write(card))
    own = before.get("card") if changed else hashlib.sha256(card).hexdigest()
    mark_as_own(folder, about, path, card=own)
