"""One page about everything in an out_dir: data, tokenizer, curves, exams, samples, commands. It opens offline.

reads    descriptions, logs, samples/*.jsonl, every summary.json and comparison.json below --out_dir, and the figures of
         the data and the tokenizer that the checkpoints name
writes   --output, a single .html file that loads nothing else

    python -m evaluation.report --out_dir out
    python -m evaluation.report --out_dir out/demo --output demo.html --data dataset/pretrain.bin
"""

import time
from pathlib import Path

from cleaning.files import prepare_file
from evaluation.report_data import read_all
from evaluation.report_page import page
from trainer import args
from trainer.checkpoint import write_atomically


def date_of(found):
    """When the newest checkpoint was saved; without one, when the newest file was written."""
    saved = [str(stage.about["saved"]) for stage in found.stages if stage.about.get("saved")]
    kept = (found.exams, found.comparisons, found.bins, found.figures, found.statistics)
    files = [Path(file) for named in kept for file in named]
    files += [*found.out_dir.glob("samples/*.jsonl"), *(Path(folder, "report.json") for folder in found.tokenizers)]
    files += [found.out_dir]
    newest = max(file.stat().st_mtime for file in files if file.exists())
    return max(saved, default=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(newest)))


def main(argv=None):
    """Reads what is there and writes the page."""
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "out_dir", default="out", help="folder that the training scripts wrote to (default: out)")
    args.add_flag(parser, "output", metavar="FILE.html", help="the page (default: report.html in --out_dir)")
    args.add_flag(
        parser, "data", nargs="+", default=[], metavar="PATH", help="more .bin files or statistics, or folders of them"
    )
    typed = parser.parse_args(argv)
    found = read_all(typed.out_dir, typed.data)
    if found.is_empty():
        deeper = sorted({str(file.parent) for file in found.out_dir.glob("*/*.pth")})
        hint = f"there is something in {', '.join(deeper)}" if deeper else "train something first: make demo"
        raise ValueError(f"{typed.out_dir} holds nothing to report; {hint}")
    output = Path(typed.output or found.out_dir / "report.html")
    prepare_file(output, ".html", (b"<!doctype html>",), typed.data, "output" if typed.output else "out_dir")
    text = page(found, date_of(found))
    write_atomically(output, lambda f: f.write(text.encode("utf-8")))
    for problem in found.problems:
        print(f"left out: {problem}")
    print(f"written: {output} ({len(text.encode()) / 1e6:.1f} MB); open it in a browser")


if __name__ == "__main__":
    args.run(main)
