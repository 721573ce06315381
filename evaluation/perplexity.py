"""How well a model predicts a text: nats per token, bits per byte, perplexity.

reads    .bin files (data_process.py pretrain) or folders of them; .txt (documents end at a blank line), .jsonl, .json,
         .csv, .parquet with a text column; plain or .gz
shows    a table; with --output, the same as JSON: one object, or for several models a list of them

    python -m evaluation.perplexity --data dataset/pretrain_val.bin
    python -m evaluation.perplexity --data book.txt --model out/pretrain_512.pth out/full_sft_512.pth --output ppl.json

Each document stands alone and begins with BOS. Every token of its text is scored once; EOS is not, since it stands for
no byte, and where a document ends is often an accident of cutting. Longer documents are read in windows of --context
positions, --stride apart: a token is predicted from all before it in its document, or from context - stride + 1 of
them at least. Nats per token and perplexity depend on the tokenizer; bits per byte, all nats over ln 2 and the UTF-8
bytes of the text, can be compared between models with different ones.
"""

import dataclasses
import math
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from cleaning.files import prepare_file
from evaluation.texts import bin_documents, data_files, groups, text_documents
from model.bin_data import read_sidecar
from model.int8 import to_int8
from trainer import args
from trainer.checkpoint import newest, open_checkpoint, provenance, save_json
from trainer.runtime import Runtime, choose_device, choose_dtype

BATCH_TOKENS = {"cpu": 1024, "cuda": 32768, "mps": 8192}  # positions scored at once; on a CPU what fits into its cache
AHEAD = 32  # batches whose windows are sorted by length together
ENCODED = 1 << 18  # bytes of text that are encoded together


class Document(NamedTuple):
    """Something to score.

    Attributes:
        ids: (n,) BOS and the tokens of the text; all but BOS are scored.
        size: UTF-8 bytes of the text.
        read: bytes of the file it took; for the progress bar.
    """

    ids: np.ndarray
    size: int
    read: float


class Row(NamedTuple):
    """A window on a document: its last `scored` ids are predicted from those before them."""

    ids: np.ndarray
    scored: int
    read: float


@dataclasses.dataclass
class Tally:
    """What was scored, and how many nats it took."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    nats: float = 0.0

    def add(self, other):
        """Adds the counts of another tally."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def summary(self):
        """The counts with the three figures made of them, as a dict."""
        per_token = self.nats / self.tokens
        figures = {
            "nats_per_token": per_token,
            "bits_per_byte": self.nats / math.log(2) / self.bytes,
            "perplexity": math.exp(min(per_token, 700)),  # e^710 is no float any more
        }
        return {**dataclasses.asdict(self), **figures}


def documents_of(path, tokenizer):
    """Yields a Document for each document of a file that has a token; see evaluation/texts.py."""
    if path.suffix != ".bin":
        for part in groups(text_documents(path), ENCODED, lambda text: text.size):
            for ids, text in zip(tokenizer.encode_batch([t.text for t in part]), part):
                yield Document(np.array([tokenizer.bos_id, *ids]), text.size, text.read)
        return
    for stored in bin_documents(path, tokenizer):
        ids = stored[int(stored[0] == tokenizer.bos_id) :]
        ids = ids[: len(ids) - int(len(ids) > 0 and ids[-1] == tokenizer.eos_id)].astype(np.int64)
        if len(ids):
            size = int(tokenizer.token_bytes[ids].sum())
            yield Document(np.concatenate([[tokenizer.bos_id], ids]), size, stored.nbytes)


def windows(n, context, stride):
    """Yields (start, end, first scored) for the windows on n ids of which all but id 0 are scored, each once.

    A window holds the `context` ids that a model reads and one more, the target of the last.
    """
    start, done = 0, 1
    while done < n:
        end = min(start + context + 1, n)
        yield start, end, done
        start, done = start + stride, end


def rows_of(documents, context, stride, tally):
    """Yields the Rows of documents, counting the documents, tokens and bytes in `tally`."""
    for ids, size, read in documents:
        tally.add(Tally(1, len(ids) - 1, size))
        for start, end, first in windows(len(ids), context, stride):
            yield Row(ids[start:end], end - first, read * (end - first) / (len(ids) - 1))


def batches(rows, batch_tokens):
    """Yields lists of Rows of about one length, of `batch_tokens` positions with their padding, or of a single Row."""
    for part in groups(rows, AHEAD * batch_tokens, lambda row: len(row.ids)):
        part.sort(key=lambda row: -len(row.ids))
        at = 0
        while at < len(part):
            batch = part[at : at + max(1, batch_tokens // len(part[at].ids))]
            at += len(batch)
            yield batch


def nats_of(model, batch, runtime):
    """Sum of -log p over the scored ids of a batch of Rows, longest first."""
    ids = torch.zeros(len(batch), len(batch[0].ids), dtype=torch.int64)  # padding is behind: nothing looks at it
    scored = torch.zeros(len(batch), len(batch[0].ids) - 1, dtype=torch.bool)
    for i, row in enumerate(batch):
        ids[i, : len(row.ids)] = torch.from_numpy(row.ids)
        scored[i, len(row.ids) - 1 - row.scored : len(row.ids) - 1] = True
    ids, scored = ids.to(runtime.device), scored.to(runtime.device)
    with runtime.autocast():
        states = model.states(ids[:, :-1])[0][scored]  # (n, C): only what predicts something meets the vocabulary
    logits = model.output(states.float())  # (n, V), in fp32 whatever the layers computed in
    return F.cross_entropy(logits, ids[:, 1:][scored], reduction="none").cpu().double().sum().item()


@torch.inference_mode()
def measure(model, documents, context, stride, runtime, batch_tokens=None, progress=lambda n: None):
    """Scores documents → Tally.

    Args:
        model: a Transformer in eval mode.
        documents: Documents, or (ids, size, read) each.
        context, stride: positions of a window, and from one window to the next; 1 <= stride <= context <= max_seq_len.
        batch_tokens: positions scored at once, padding included; None: what suits the device.
        progress: called with the bytes of the file that the scored tokens stand for.
    """
    tally, batch_tokens = Tally(), batch_tokens or BATCH_TOKENS[runtime.device.type]
    for batch in batches(rows_of(documents, context, stride, tally), batch_tokens):
        tally.nats += nats_of(model, batch, runtime)
        progress(sum(row.read for row in batch))
    return tally


def prepare(path, files, typed, device):
    """Opens a checkpoint and checks that it fits the flags and the data → (model, tokenizer, context, stride)."""
    model, tokenizer, _ = open_checkpoint(path, device, typed.tokenizer)
    limit = model.cfg.max_seq_len
    context = limit if typed.context is None else typed.context
    stride = max(1, context // 2) if typed.stride is None else typed.stride
    if not 1 <= context <= limit:
        raise ValueError(f"--context {context}: {path} reads 1 to {limit} positions")
    if not 1 <= stride <= context:
        raise ValueError(f"--stride {stride} would leave tokens out; give 1 to {context}, the context")
    for file in files:
        made_with = (
            read_sidecar(file).get("tokenizer_hash", tokenizer.hash) if file.suffix == ".bin" else tokenizer.hash
        )
        if made_with != tokenizer.hash:
            raise ValueError(
                f"{file} was made with another tokenizer ({made_with}) than {path} ({tokenizer.hash}); "
                "name the text that it was made from: any model can read that"
            )
    return model, tokenizer, context, stride


def evaluate(path, files, typed, runtime):
    """One model on all files → the object that --output writes, without the command."""
    model, tokenizer, context, stride = prepare(path, files, typed, runtime.device)
    if typed.int8:
        to_int8(model)
    total, found = Tally(), {}
    for file in files:
        with tqdm(total=file.stat().st_size, desc=file.name, unit="B", unit_scale=True, disable=None) as bar:
            documents = documents_of(file, tokenizer)
            tally = measure(model, documents, context, stride, runtime, typed.batch_tokens, bar.update)
        if not tally.bytes:
            raise ValueError(f"{file} holds no text")
        found[str(file)] = tally.summary()
        total.add(tally)
    dtype = str(runtime.dtype).removeprefix("torch.") + (", weights int8" if typed.int8 else "")
    facts = {"context": context, "stride": stride, "dtype": dtype}
    return {"model": str(path), "tokenizer_hash": tokenizer.hash, "files": found, "total": total.summary(), **facts}


def show(results):
    """Prints one table: all models on each file, then in total."""
    rows = [(file, r["model"], r["files"][file]) for file in results[0]["files"] for r in results]
    if len(results[0]["files"]) > 1:
        rows += [("total", r["model"], r["total"]) for r in results]
    wide = [max(len(word), *(len(row[i]) for row in rows)) for i, word in enumerate(("data", "model"))]
    print(f"{'data':<{wide[0]}}  {'model':<{wide[1]}}  documents        tokens           bytes", end=" ")
    print(" nats/token  bits/byte  perplexity")
    for file, name, s in rows:
        counts = f"{s['documents']:>10,} {s['tokens']:>13,} {s['bytes']:>15,}"
        figures = f"{s['nats_per_token']:>11.4f} {s['bits_per_byte']:>10.4f} {s['perplexity']:>11.5g}"
        print(f"{file:<{wide[0]}}  {name:<{wide[1]}} {counts} {figures}")
    settings = {(r["context"], r["stride"], r["dtype"]) for r in results}
    print("; ".join(f"windows of {context} positions, {stride} apart, {dtype}" for context, stride, dtype in settings))
    if len({r["tokenizer_hash"] for r in results}) > 1:
        print("the tokenizers differ: compare bits/byte, nothing else")


def parse(argv):
    """The command line → namespace."""
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "data", nargs="+", required=True, metavar="FILE", help="texts, .bin files, folders of .bin")
    args.add_flag(parser, "model", nargs="+", metavar="PATH", help="checkpoints (default: the newest in --out_dir)")
    args.add_flag(parser, "out_dir", default="out", help="where to look for checkpoints (default: out)")
    args.add_flag(parser, "tokenizer", metavar="DIR", help="folder (default: the one recorded in the checkpoint)")
    args.add_flag(parser, "context", type=int, metavar="N", help="positions of a window (default: all a model reads)")
    args.add_flag(parser, "stride", type=int, metavar="N", help="from window to window (default: half of the context)")
    args.add_flag(parser, "batch_tokens", type=int, metavar="N", help="positions at once (default: by the device)")
    args.add_flag(parser, "device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    args.add_flag(parser, "dtype", default="float32", help="float32, bfloat16, float16 or auto (default: float32)")
    args.add_flag(parser, "int8", action="store_true", help="score the models with their weights rounded to 8 bits")
    args.add_flag(parser, "output", metavar="FILE.json", help="write the figures to this file")
    return parser.parse_args(argv)


def main(argv=None):
    """Scores every file with every model and prints the table."""
    typed = parse(argv)
    files = data_files(typed.data)
    device = choose_device(typed.device)
    runtime = Runtime(device, choose_dtype(typed.dtype, device)[0])
    models = [Path(p) for p in typed.model or [newest(typed.out_dir)]]
    if typed.output:
        prepare_file(typed.output, ".json", (b"{\n", b"[\n"), files)
    for path in models[1:]:  # what is wrong with the second is told before hours go into the first
        prepare(path, files, typed, "cpu")
    results = [evaluate(path, files, typed, runtime) for path in models]
    show(results)
    if typed.output:
        command = shlex.join(["python", "-m", "evaluation.perplexity", *(sys.argv[1:] if argv is None else argv)])
        whole = [{**result, **provenance(), "command": command} for result in results]
        save_json(typed.output, whole if len(whole) > 1 else whole[0])
        print(f"written to {typed.output}")


if __name__ == "__main__":
    args.run(main)
