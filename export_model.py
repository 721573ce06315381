"""A checkpoint for the rest of the world, and back: Hugging Face folder, GGUF file, Ollama model.

reads    any checkpoint in out/ (the newest one if none is named), with --lora the adapter on it; or, with
         --import_from, a stock Llama or Qwen2-MoE folder or a MiniMind v1 .pth
writes   hf      a folder that stock transformers, vLLM and lm-eval load without remote code (Llama, or Qwen2-MoE)
         gguf    a file that llama.cpp and LM Studio load as it is
         ollama  that file with a Modelfile: `ollama create NAME -f DIR/Modelfile`
         pth     a checkpoint of this project, from what was imported

    python export_model.py --model out/full_sft_512.pth --format hf --output my_model
    python export_model.py --model out/full_sft_512.pth --format gguf --type q8_0 --output my_model.gguf
    python export_model.py --import_from my_model --output imported/pretrain_512.pth

What was written is loaded again and compared: a folder's logits and greedy text by stock transformers, a GGUF file's
weights, and its logits where llama-cpp-python is installed; what is imported by its logits. One that computes something
else is an error, and nothing is replaced.
"""

from pathlib import Path

from cleaning.files import prepare_file, prepare_folder_of
from inference.export import save_hugging_face
from inference.gguf_file import TYPES, save_gguf
from inference.imports import import_folder, import_v1, stage_of
from inference.model_card import MARK, mark_as_own, model_card, modelfile, scores_of, write_card
from inference.opening import open_model
from model.bin_data import read_sidecar
from model.lora import merge_lora
from trainer import args
from trainer.checkpoint import describe, save_weights, write_atomically


def parse(argv):
    """The command line → namespace."""
    parser = args.make_parser(__doc__)
    flag = lambda name, help, **kwargs: args.add_flag(parser, name, help=help, **kwargs)  # noqa: E731
    flag("model", "checkpoint (default: the newest in --out_dir)")
    flag("lora", "adapter to merge: a name in --out_dir, or a folder", metavar="NAME")
    flag("format", "default: hf; pth with --import_from", choices=["hf", "gguf", "ollama", "pth"])
    flag("type", "numbers of a GGUF file (default: f16)", choices=TYPES, default="f16")
    flag("output", "folder (hf, ollama) or file (gguf, pth)", required=True)
    flag("import_from", "a Hugging Face folder or a MiniMind v1 .pth", metavar="PATH")
    flag("tokenizer", "tokenizer folder (default: the one recorded in the checkpoint)")
    flag("out_dir", "where to look for checkpoints (default: out)", default="out")
    flag("push_to_hub", "after hf: upload the folder as this repository", metavar="USER/NAME")
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="with --push_to_hub: say what would be uploaded"
    )
    typed = parser.parse_args(argv)
    typed.format = typed.format or ("pth" if typed.import_from else "hf")
    if typed.push_to_hub and typed.format != "hf":
        raise ValueError("--push_to_hub uploads a folder: use it with --format hf")
    if typed.import_from and (typed.model or typed.lora):
        raise ValueError("give either --model (with --lora) or --import_from")
    return typed


def source(typed):
    """What is exported: (model in eval mode, tokenizer, description, its path)."""
    if typed.import_from:
        path = Path(typed.import_from)
        model, tokenizer = import_folder(path) if path.is_dir() else import_v1(path, typed.tokenizer)
        return model, tokenizer, {"stage": stage_of(path, typed.output)}, path
    model, tokenizer, about, path, _ = open_model(typed.model, typed.lora, typed.out_dir, "cpu", typed.tokenizer)
    return merge_lora(model), tokenizer, about, path


def prepare_target(output, form):
    """Makes the folder of an output; ValueError if it is of another kind or would replace what was not written here."""
    if form == "gguf":
        prepare_file(output, ".gguf", (b"GGUF",))
    elif form == "pth":
        about = read_sidecar(output)
        if output.exists() and "imported_from" not in about:
            raise ValueError(f"--output {output} is a checkpoint that was trained; choose another name")
    elif output.is_dir() and any(output.iterdir()) and not (output / MARK).is_file():
        raise ValueError(f"--output {output} holds what was not written here (it has no {MARK}); name a new folder")
    prepare_folder_of(output)


def upload(folder, repository, dry_run):
    """Uploads a folder to the Hub, or says what that would be."""
    files = sorted(p.name for p in Path(folder).iterdir())
    print(f"{'would upload' if dry_run else 'uploading'} {', '.join(files)} to https://huggingface.co/{repository}")
    if not dry_run:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository)


def main(argv=None):
    typed = parse(argv)
    output = Path(typed.output)
    prepare_target(output, typed.format)
    model, tokenizer, about, path = source(typed)
    print(f"{path}: {model.n_params():,} parameters, {'experts' if model.cfg.use_moe else 'dense'}")
    if typed.format == "pth":
        facts = {"imported_from": str(path)}
        save_weights(output, model, describe(model.cfg, about.get("stage", "pretrain"), tokenizer, **facts))
        print(f"written: {output} and {output.with_suffix('.json').name}")
        return
    if typed.format == "hf":
        found = save_hugging_face(model, tokenizer, output)
        card = model_card(model, about, path, output.name, scores_of(path, about, typed.lora))
        write_card(output, card.encode("utf-8"), about, path)
        print(f"written: {output}; stock transformers computes the same: logits {found.logits:.1e} apart (relative), "
              f"greedy text of {found.tokens} tokens equal")  # fmt: skip
        if typed.push_to_hub:
            upload(output, typed.push_to_hub, typed.dry_run)
        return
    file = output / f"{path.stem}.gguf" if typed.format == "ollama" else output
    apart = save_gguf(model, tokenizer, file, typed.type, path.stem)
    same = f"llama.cpp's logits are {apart:.1e} apart (relative)" if apart is not None else (
        "not compared with llama.cpp itself: pip install llama-cpp-python does that")  # fmt: skip
    print(
        f"written: {file} ({file.stat().st_size / 1e6:.1f} MB, {typed.type}); its weights are the checkpoint's; {same}"
    )
    if typed.format == "ollama":
        text = modelfile(file.name, tokenizer, model.cfg).encode("utf-8")
        write_atomically(output / "Modelfile", lambda f: f.write(text))
        mark_as_own(output, about, path)
        print(f"written: {output}/Modelfile. Now: ollama create {path.stem} -f {output}/Modelfile")


if __name__ == "__main__":
    args.run(main)
