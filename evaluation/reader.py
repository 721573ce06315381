"""One face for every model that takes an exam: a checkpoint of this project, or a folder of Hugging Face's.

`read` returns the logits at the positions that predict something; `evaluation/likelihood.py` decides which.
"""

from pathlib import Path

import torch

from inference.opening import open_model
from model.kv_cache import KVCache
from model.tree import lay_out

UNLIMITED = 2048  # positions, where a folder's config names no limit


class Reader:
    """This project's Transformer, behind what `log_probs` needs.

    Args:
        model: a Transformer in eval mode; with a dtype of 16 bits its layers are cast, its vocabulary matrix is not:
            the scores of four options often differ by less than such a number resolves.
        dtype: torch.float32, or what the layers compute in.

    Attributes:
        limit: positions a row may have; branching: whether rows may hold branches.
    """

    branching = True

    def __init__(self, model, dtype=torch.float32):
        self.vocabulary = model.output.weight.detach().clone().float()  # (V, C)
        self.model = model.to(dtype)
        self.device, self.dtype, self.limit = self.vocabulary.device, dtype, model.cfg.max_seq_len

    def begin(self, ids):
        """The cache of a beginning that several rows share."""
        cache = KVCache(self.model.cfg, 1, len(ids), self.device, self.dtype)
        self.model.states(torch.tensor([ids], device=self.device), cache=cache)
        return cache

    def read(self, trunks, branches, places, beginning=None):
        """fp32 logits (len(places), V) at (row, position) `places`, sorted, of rows of trunks and branches."""
        plain = not any(any(own) for own in branches)  # nothing but trunks: plain causal attention is faster
        ids, tree = lay_out(trunks, branches, padding_id=0)
        cache = None
        if beginning is not None:
            cache = KVCache(self.model.cfg, *ids.shape, self.device, self.dtype, beginning)
        tree = None if plain else tree.to(self.device)
        reads = [[] for _ in trunks]
        for b, position in places:
            reads[b].append(position)
        most = max(map(len, reads))
        at = torch.tensor([own + [0] * (most - len(own)) for own in reads], device=self.device)  # (B, R)
        real = torch.arange(most)[None] < torch.tensor([len(own) for own in reads])[:, None]
        states, _, _ = self.model.states(ids.to(self.device), cache=cache, tree=tree, at=at)
        return states[real.to(self.device)].float() @ self.vocabulary.T


class HuggingFaceReader:
    """Any causal model of transformers behind the same face; each continuation is a row of its own.

    Args:
        model: a model with logits in eval mode; dtype as it was loaded.
    """

    branching = False

    def __init__(self, model):
        self.model, self.device = model, model.device
        self.limit = getattr(model.config, "max_position_embeddings", None) or UNLIMITED

    def read(self, trunks, branches, places, beginning=None):
        """As Reader.read."""
        assert beginning is None, "rows of this reader begin on their own"
        rows = [trunk + [i for branch in own for i in branch] for trunk, own in zip(trunks, branches)]
        ids, tree = lay_out(rows, [[]] * len(rows), padding_id=0)
        real = (tree.branches >= 0).long()
        logits = self.model(ids.to(self.device), attention_mask=real.to(self.device)).logits
        b, position = torch.tensor(places, device=self.device).unbind(1)
        return logits[b, position].float()

    @torch.inference_mode()
    def write(self, tokenizer, prompt, chat, longest):
        """What the model writes greedily: an answer in a chat, else how the text goes on."""
        ids = tokenizer.encode_prompt([{"role": "user", "content": prompt}]) if chat else None
        ids = ids or [tokenizer.bos_id, *tokenizer.encode_batch([prompt])[0]]
        row = torch.tensor([ids], device=self.device)
        found = self.model.generate(row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=longest)
        return tokenizer.tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True)


class HuggingFaceTokenizer:
    """What prompts need of a tokenizer, from a folder of Hugging Face's.

    Attributes:
        bos: the ids that a text begins with: BOS where the tokenizer writes one by itself, else its BOS or EOS.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        first = next(i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, 0) if i is not None)
        self.bos_id, self.hash = first, None

    def encode_batch(self, texts):
        """list of str → list of lists of ids, without BOS or EOS."""
        return self.tokenizer(texts, add_special_tokens=False).input_ids

    def encode_prompt(self, turns):
        """Turns so far → ids that end where the assistant's answer begins."""
        if not self.tokenizer.chat_template:
            raise ValueError(f"{self.tokenizer.name_or_path} has no chat template; ask with --prompt plain")
        return self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


def open_reader(path, device, dtype=torch.float32, tokenizer_dir=None, lora=None, out_dir="out"):
    """A checkpoint or a Hugging Face folder → (reader, tokenizer, what is known about it, path).

    Args:
        path: None: the base of the adapter `lora`, or the newest checkpoint in out_dir.
    Raises:
        FileNotFoundError, ValueError: nothing there, or nothing that can be read, with the next step.
    """
    if path is None or not Path(path).is_dir():
        model, tokenizer, about, path, _ = open_model(path, lora, out_dir, device, tokenizer_dir)
        return Reader(model, dtype), tokenizer, {"stage": path.stem, **about}, path
    if not Path(path, "config.json").is_file():
        there = ", ".join(sorted(p.name for p in Path(path).glob("*.pth"))) or "no .pth"
        raise ValueError(f"{path} is a folder without config.json, so not a Hugging Face model ({there} in it)")
    if lora:
        raise ValueError("--lora is for this project's checkpoints; merge the adapter into the folder first")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=False, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir or path, trust_remote_code=False, local_files_only=True)
    return HuggingFaceReader(model.to(device).eval()), HuggingFaceTokenizer(tokenizer), {"stage": "huggingface"}, path
