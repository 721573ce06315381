"""Does llama.cpp, as it is, read and write with an exported model what this project does? Needs llama-cpp-python.

    pip install llama-cpp-python      # built from source, a few minutes
    python benchmarks/gguf_parity.py --model out/full_sft_512.pth --data my_texts/ --lines 5000

reads    --data: files and folders with text, in any form that data_process.py reads; lines are drawn evenly
prints   in how many lines the ids are the same; for f16 and q8_0 in how many texts, written greedily behind the
         beginning of a line, every id is

Exit code 1 if ids of a line differ, or a text of f16.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, the project's root is not there

from cleaning.readers import Drops, read_texts
from inference.engine import Sampling, generate
from inference.gguf_file import save_gguf
from trainer import args
from trainer.checkpoint import newest, open_checkpoint

BEGINNING = 24  # ids of a line that a text is written behind


def lines_of(paths, count):
    """So many different lines with something on them, evenly drawn from all; fewer if there are fewer."""
    texts = read_texts(paths, Drops())
    lines = [*dict.fromkeys(line for text in texts for line in text.split("\n") if line.strip())]
    return [lines[i * len(lines) // count] for i in range(count)] if len(lines) > count else lines


def other_ids(llama, tokenizer, lines):
    """The lines that llama.cpp takes apart otherwise."""
    return [
        line
        for line in lines
        if llama.tokenize(line.encode("utf-8"), add_bos=True, special=False)
        != [tokenizer.bos_id, *tokenizer.encode(line)]
    ]


def written(llama, ids, count):
    """What llama.cpp writes greedily behind ids: a list of at most `count`, up to EOS."""
    llama.reset()
    found = []
    for i in llama.generate(ids, temp=0.0, repeat_penalty=1.0):
        if i == llama.token_eos() or len(found) == count:
            return found
        found.append(i)
    return found


def main(argv=None):
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "model", help="checkpoint (default: the newest in out/)")
    args.add_flag(parser, "tokenizer", help="tokenizer folder (default: the one recorded in the checkpoint)")
    args.add_flag(parser, "data", nargs="+", required=True, metavar="PATH", help="files and folders with text")
    args.add_flag(parser, "lines", type=int, default=5000, help="lines whose ids are compared (default: 5000)")
    args.add_flag(parser, "texts", type=int, default=60, help="texts that are written (default: 60)")
    args.add_flag(parser, "new", type=int, default=64, help="ids of each (default: 64)")
    typed = parser.parse_args(argv)
    try:
        from llama_cpp import Llama
    except ImportError as error:
        raise ImportError("this needs llama.cpp: pip install llama-cpp-python") from error
    model, tokenizer, _ = open_checkpoint(typed.model or newest("out"), "cpu", typed.tokenizer)
    lines = lines_of(typed.data, typed.lines)
    if not lines:
        raise ValueError(f"--data {' '.join(typed.data)} holds no text")
    prompts = [
        [tokenizer.bos_id, *tokenizer.encode(line)[:BEGINNING]] for line in lines[:: -(-len(lines) // typed.texts)]
    ]
    sampling = Sampling(temperature=0, max_new_tokens=typed.new, overflow="stop")
    ours = [[*generate(model, ids, sampling, (tokenizer.eos_id,))] for ids in prompts]
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("f16", "q8_0"):
            file = Path(folder, f"{kind}.gguf")
            save_gguf(model, tokenizer, file, kind)
            llama = Llama(str(file), n_ctx=model.cfg.max_seq_len, n_gpu_layers=0, verbose=False)
            if kind == "f16":
                other = other_ids(llama, tokenizer, lines)
                print(f"ids: equal in {len(lines) - len(other):,} of {len(lines):,} lines", *map(repr, other[:5]))
                failed |= bool(other)
            equal = sum(written(llama, ids, typed.new) == own for ids, own in zip(prompts, ours))
            print(f"{kind}: {equal} of {len(prompts)} texts of {typed.new} ids are equal")
            failed |= kind == "f16" and equal < len(prompts)
    return int(failed)


if __name__ == "__main__":
    args.run(main)
