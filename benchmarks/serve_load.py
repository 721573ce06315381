"""What many clients at once get from the API: tokens per second of all together, against one client alone; one table.

    python benchmarks/serve_load.py --preset small --clients 1 8 32
    python benchmarks/serve_load.py --model out/full_sft_512.pth --server "--compiled --dtype auto"

prints   a Markdown table, machine and date named

It starts serve_openai_api.py, as a person would, and asks it through OpenAI's client: each client has a question of its
own, streams the greedy answer and counts its tokens. Without --model the weights are random, and no answer ends early.
The rows take turns in every round; the median counts. Every text is compared with what its client got alone.
"""

import asyncio
import datetime
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, the project's root is not there

import torch

from model.chat import load_tokenizer
from model.LMConfig import PRESETS, config_for
from model.model import Transformer
from trainer import args
from trainer.checkpoint import describe, save_weights
from trainer.runtime import machine

ROOT = Path(__file__).resolve().parent.parent


def parse(argv):
    """The command line → namespace."""
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "model", help="checkpoint (default: random weights of --preset)")
    args.add_flag(parser, "preset", choices=list(PRESETS), default="small", help="shape without --model")
    args.add_flag(parser, "clients", type=int, nargs="+", default=[1, 32], help="clients at once (default: 1 32)")
    args.add_flag(parser, "tokens", type=int, default=64, help="most tokens of an answer (default: 64)")
    args.add_flag(parser, "rounds", type=int, default=3, help="measurements of each (default: 3)")
    args.add_flag(parser, "server", default="", help='more flags for serve_openai_api.py, such as "--int8"')
    typed = parser.parse_args(argv)
    if min(typed.tokens, typed.rounds, *typed.clients) < 1:
        raise ValueError("--clients, --tokens and --rounds must be at least 1")
    return typed


def random_checkpoint(preset, folder):
    """A checkpoint of random weights whose greedy texts do not end; returns its path."""
    tokenizer = load_tokenizer()
    torch.manual_seed(0)
    model = Transformer(config_for(preset, vocab_size=tokenizer.vocab_size))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)  # or it repeats one token, and many texts are the same
        model.output.weight[tokenizer.eos_id] = 0.0  # never the likeliest
    path = Path(folder) / f"full_sft_{model.cfg.dim}.pth"
    save_weights(path, model, describe(model.cfg, "full_sft", tokenizer))
    return path


def started(path, clients, more):
    """serve_openai_api.py in a process of its own → (process, its address)."""
    words = [
        str(ROOT / "serve_openai_api.py"),
        "--model",
        str(path),
        "--port",
        "0",
        "--slots",
        str(clients),
        *shlex.split(more),
    ]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if " is served at " in line:
            return process, line.split()[-1]
    raise OSError(f"the server ended before it served (exit code {process.wait()})")


async def crowd(url, clients, tokens):
    """Lets clients, numbers that make their questions, ask at once → (seconds, tokens written, {client: text})."""
    import openai

    async def one(n):
        question = [{"role": "user", "content": f"第{n}个问题：{'春夏秋冬' * (n % 5)}"}]
        ask = {"model": name, "messages": question, "temperature": 0, "max_tokens": tokens}
        stream = await client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
        text, written = [], 0
        async for chunk in stream:
            text += [choice.delta.content or "" for choice in chunk.choices]
            written = chunk.usage.completion_tokens if chunk.usage else written
        return written, "".join(text)

    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
        name = (await client.models.list()).data[0].id
        begun = time.perf_counter()
        answers = await asyncio.gather(*(one(n) for n in clients))
        seconds = time.perf_counter() - begun
    return seconds, sum(written for written, _ in answers), {n: text for n, (_, text) in zip(clients, answers)}


def measure(url, typed):
    """{clients: (median tokens per second, median ratio to one client in its round, share of texts as told alone)}."""
    speeds, same = {count: [] for count in {1, *typed.clients}}, Counter()
    alone = {}
    for n in range(max(typed.clients)):  # warms everything up, too
        alone |= asyncio.run(crowd(url, [n], typed.tokens))[2]
    for _ in range(typed.rounds):
        for count, found in speeds.items():
            seconds, written, texts = asyncio.run(crowd(url, range(count), typed.tokens))
            found.append(written / seconds)
            same[count] += sum(texts[n] == alone[n] for n in texts)
    ratio = {count: statistics.median(a / b for a, b in zip(found, speeds[1])) for count, found in speeds.items()}
    return {
        count: (statistics.median(found), ratio[count], same[count] / count / typed.rounds)
        for count, found in sorted(speeds.items())
    }


def main(argv=None):
    typed = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = typed.model or random_checkpoint(typed.preset, folder)
        process, url = started(path, max(typed.clients), typed.server)
        try:
            found = measure(url, typed)
        finally:
            process.terminate()
            process.wait()
    print(f"{datetime.date.today()}, {machine()}; {typed.model or f'random {typed.preset}'} {typed.server}\n")
    print("| clients | tokens/s together | x one client | texts as told alone |\n|---:|---:|---:|---:|")
    for count, (speed, ratio, same) in found.items():
        print(f"| {count} | {speed:,.0f} | {ratio:.2f} | {same:.1%} |")


if __name__ == "__main__":
    args.run(main)
