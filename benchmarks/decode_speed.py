"""How fast text is written: this engine at several batch sizes, a plain loop, and transformers' generate; one table.

    python benchmarks/decode_speed.py --preset small --batch 1 16
    python benchmarks/decode_speed.py --model out/full_sft_512.pth --threads 1

prints   a Markdown table, machine and date named; --json FILE keeps the numbers

All write greedily from the same random prompts of one length, prefill counted. The plain loop is this model in fp32
with torch's own Linear and a cache that torch.cat lets grow; transformers runs the exported model
(inference/export.py). Both need equal lengths and keep a row until the whole batch ends; the engine needs neither, and
its time includes making text. Variants take turns in every round. On a CPU that other jobs use too, --threads 1 counts
CPU time instead of time on the wall.
"""

import copy
import datetime
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, the project's root is not there

import torch
from torch import nn

from inference.engine import Engine, Sampling
from inference.export import to_stock_model
from inference.request import Request
from model.chat import ChatTokenizer, load_tokenizer
from model.LMConfig import PRESETS, config_for
from model.model import Transformer
from trainer import args
from trainer.checkpoint import open_checkpoint, save_json
from trainer.runtime import choose_device, has_bf16, machine

PLAIN, STOCK = "plain loop, fp32", "transformers"


class GrowingCache:
    """What most short implementations do: all keys and values are copied for every token."""

    shared = 0

    def __init__(self, layers):
        self.length, self.kept = 0, [None] * layers

    def reserve(self, rows, count):
        """It always fits."""

    def append(self, layer, k, v):
        """As KVCache.append."""
        if self.kept[layer] is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.kept[layer], (k, v)))
        self.kept[layer] = (k, v)
        return k, v

    def seen_by_all(self, layer):
        """As KVCache.seen_by_all, without a beginning."""
        return None

    def advance(self, count):
        """As KVCache.advance."""
        self.length += count


def with_plain_products(model):
    """A copy of the model whose layers multiply as torch.nn.Linear does, with the same weights."""
    plain = copy.deepcopy(model)
    for layer in plain.modules():
        if isinstance(layer, nn.Linear):
            layer.__class__ = nn.Linear
    return plain


@torch.inference_mode()
def plain_loop(model, prompts, count):
    """Greedy continuations of a (B, T) batch, all rows in step → (B, count)."""
    cache, fresh, written = GrowingCache(model.cfg.n_layers), prompts, []
    for _ in range(count):
        fresh = model(fresh, cache=cache, last_only=True).logits[:, -1].argmax(-1, keepdim=True)
        written.append(fresh)
    return torch.cat(written, 1).tolist()


def stock_generate(stock, prompts, count):
    """The same by transformers' generate."""
    settings = {"do_sample": False, "max_new_tokens": count, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        return stock.generate(prompts, attention_mask=torch.ones_like(prompts), **settings)[
            :, prompts.shape[1] :
        ].tolist()


def engine_writes(engine, prompts, count):
    """The same by an Engine whose requests all wait at the start."""
    sampling = Sampling(temperature=0, max_new_tokens=count, overflow="stop")
    requests = [Request(ids, sampling, lambda event: None) for ids in prompts.tolist()]
    for request in requests:
        engine.submit(request)
    while engine.step():
        pass
    return [request.text[len(request.ids) :] for request in requests]


def parse(argv):
    """The command line → namespace."""
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "model", help="checkpoint (default: random weights of --preset)")
    args.add_flag(
        parser, "preset", choices=list(PRESETS), default="small", help="shape without --model (default: small)"
    )
    args.add_flag(parser, "batch", type=int, nargs="+", default=[1, 16], help="texts at once (default: 1 16)")
    args.add_flag(parser, "prompt", type=int, default=64, help="tokens of each prompt (default: 64)")
    args.add_flag(parser, "new", type=int, default=128, help="tokens written for each (default: 128)")
    args.add_flag(parser, "rounds", type=int, default=3, help="measurements of each; the median counts (default: 3)")
    args.add_flag(parser, "threads", type=int, help="CPU threads; 1 counts CPU time (default: torch's)")
    args.add_flag(parser, "device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    args.add_flag(parser, "eager", action="store_true", help="leave out what is compiled")
    args.add_flag(parser, "json", help="keep the numbers in this file")
    return parser.parse_args(argv)


def measure(variants, rounds, device, clock):
    """{name: function} → {name: (median seconds, what it returned)}; the variants take turns."""
    seconds, results = {name: [] for name in variants}, {}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            begun = clock()
            results[name] = run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first is for warming up
                seconds[name].append(clock() - begun)
    return {name: (statistics.median(s), results[name]) for name, s in seconds.items()}


def table_of(records):
    """The Markdown table; ratios are to the plain loop and to the faster of transformers' formats at the same batch."""
    lines = [
        "| texts at once | way | tokens/s | x plain | x transformers | same ids as plain |",
        "|---:|---|" + "---:|" * 4,
    ]
    for r in records:
        own, best = r["tokens_per_second"], max(v for n, v in r["tokens_per_second"].items() if n.startswith(STOCK))
        for name, speed in own.items():
            ratios = f"{speed / own[PLAIN]:.2f} | {speed / best:.2f}"
            lines.append(f"| {r['batch']} | {name} | {speed:,.0f} | {ratios} | {r['same_as_plain'][name]:.1%} |")
    return "\n".join(lines)


def share_equal(a, b):
    """The share of ids that two lists of texts have in common, place by place."""
    pairs = [x == y for row, other in zip(a, b, strict=True) for x, y in zip(row, other, strict=True)]
    return sum(pairs) / len(pairs)


def main(argv=None):
    typed = parse(argv)
    if typed.threads:
        torch.set_num_threads(typed.threads)
    device, clock = choose_device(typed.device), time.perf_counter
    if device.type == "cpu" and typed.threads == 1:
        clock = time.process_time
    torch.manual_seed(0)
    if typed.model:
        model, tokenizer, _ = open_checkpoint(typed.model, device)
    else:
        tokenizer = load_tokenizer()
        model = Transformer(config_for(typed.preset, vocab_size=tokenizer.vocab_size)).to(device).eval()
    if typed.prompt + typed.new > model.cfg.max_seq_len or min(typed.prompt, typed.new, typed.rounds, *typed.batch) < 1:
        raise ValueError(
            f"--prompt {typed.prompt} and --new {typed.new} must be at least 1 and fit into {model.cfg.max_seq_len}"
        )
    plain = with_plain_products(model)
    models = {"fp32": (model, to_stock_model(model, tokenizer).to(device))}
    if has_bf16(device):
        models["bf16"] = tuple(copy.deepcopy(m).to(torch.bfloat16) for m in models["fp32"])
    tokenizer = ChatTokenizer(tokenizer.path)
    tokenizer.eos_id = -1  # all texts have the same length
    records = []
    for batch in typed.batch:
        prompts = torch.randint(3, model.cfg.vocab_size, (batch, typed.prompt), device=device)
        variants = {PLAIN: lambda p=prompts: plain_loop(plain, p, typed.new)}
        for dtype, (own, stock) in models.items():
            variants[f"{STOCK}, {dtype}"] = lambda s=stock, p=prompts: stock_generate(s, p, typed.new)
            for compiled in (False,) if typed.eager else (False, True):
                # no reuse, or the second round would have nothing to read
                engine = Engine(own, tokenizer, slots=batch, reuse=False, compiled=compiled)
                name = f"engine, {dtype}" + (", compiled" if compiled else "")
                variants[name] = lambda e=engine, p=prompts: engine_writes(e, p, typed.new)
        found = measure(variants, typed.rounds, device, clock)
        speeds = {name: batch * typed.new / seconds for name, (seconds, _) in found.items()}
        same = {name: share_equal(found[PLAIN][1], ids) for name, (_, ids) in found.items()}
        records.append({"batch": batch, "tokens_per_second": speeds, "same_as_plain": same})
    about = f"{datetime.date.today()}, {machine()}, {'CPU time' if clock is time.process_time else 'time on the wall'}"
    shape = f"{model.n_params():,} parameters, {typed.prompt} + {typed.new} tokens, median of {typed.rounds}"
    print(f"{about}\n{shape}\n\n{table_of(records)}")
    if typed.json:
        save_json(Path(typed.json), {"about": about, "settings": vars(typed), "rows": records})


if __name__ == "__main__":
    args.run(main)
