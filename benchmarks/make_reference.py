"""A finished pretraining run → a curve that later runs of its shape are compared with.

    python benchmarks/make_reference.py --model out/pretrain_256.pth --data "40 MB of Chinese text" --name tiny

reads    the .json and .jsonl beside a checkpoint
writes   benchmarks/reference/<name>.json
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, the project's root is not there

from trainer import args
from trainer.checkpoint import save_json
from trainer.reference import FOLDER, curve_of


def main(argv=None):
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "model", required=True, help="the checkpoint of the run")
    args.add_flag(parser, "data", required=True, help="what text it was trained on, a few words")
    args.add_flag(parser, "name", required=True, help="the preset's, or with more behind it (small_large_steps)")
    typed = parser.parse_args(argv)
    path = Path(typed.model)
    if not path.with_suffix(".json").is_file():
        raise ValueError(f"there is no description beside {path}; train it with 1-pretrain.py")
    log = [json.loads(line) for line in path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    curve = curve_of(log, json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    if len(curve["tokens"]) < 2:
        raise ValueError(f"{path} was validated {len(curve['tokens'])} times; train it with a lower --eval_interval")
    FOLDER.mkdir(exist_ok=True)
    save_json(FOLDER / f"{typed.name}.json", {"data": typed.data, **curve})
    print(f"{FOLDER / typed.name}.json: {len(curve['tokens'])} points up to {curve['tokens'][-1]:,} tokens")


if __name__ == "__main__":
    args.run(main)
