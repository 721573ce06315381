"""Serve a checkpoint to any OpenAI client: chat, completions, streams, many at once.

reads    any checkpoint in out/ (the newest one if none is named), and with --lora NAME its adapter
writes   nothing; requests are not kept

    python serve_openai_api.py                                          http://127.0.0.1:8998/v1
    python serve_openai_api.py --model out/full_sft_512.pth --lora persona --port 8998
    SERVE_API_KEY=secret python serve_openai_api.py --host 0.0.0.0      for others: only with a key, behind TLS

    curl http://127.0.0.1:8998/v1/chat/completions -H 'Content-Type: application/json' \\
         -d '{"messages": [{"role": "user", "content": "你好"}], "stream": true}'

Paths: /v1/models, /v1/chat/completions, /v1/completions, /health, /metrics (Prometheus). SIGTERM or ctrl-C lets running
requests end (--drain_seconds) and refuses new ones; a second ctrl-C ends them.
"""

import json
import os
from pathlib import Path

from inference.chat import adapter_path
from inference.service import ServeConfig, Service
from model.lora import load_adapter
from trainer import args
from trainer.checkpoint import newest, open_checkpoint
from trainer.runtime import choose_device


def parse(argv):
    """The command line → (namespace, ServeConfig)."""
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "model", help="checkpoint (default: the newest in --out_dir)")
    args.add_flag(parser, "lora", metavar="NAME", help="adapter: a name in --out_dir, or a folder in PEFT's format")
    args.add_flag(parser, "out_dir", default="out", help="where to look for checkpoints (default: out)")
    args.add_flag(parser, "tokenizer", help="tokenizer folder (default: the one recorded in the checkpoint)")
    args.add_flag(parser, "device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    args.add_flag(parser, "host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    args.add_flag(parser, "port", type=int, default=8998, help="port; 0: any that is free (default: 8998)")
    args.add_fields(parser.add_argument_group("limits"), ServeConfig)
    typed = parser.parse_args(argv)
    if not 0 <= typed.port < 65536:
        raise ValueError(f"--port is {typed.port}; it must be between 0 and 65535")
    cfg = ServeConfig(**args.split(vars(typed), ServeConfig)[0])
    cfg.api_key = cfg.api_key or os.environ.get("SERVE_API_KEY")
    return typed, cfg


def open_model(typed):
    """(model, tokenizer, its name in the API), with the adapter on if one was asked for."""
    adapter = adapter_path(typed.lora, typed.out_dir) if typed.lora else None
    path = typed.model
    if adapter and not path:
        path = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    path = Path(path) if path else newest(typed.out_dir)
    model, tokenizer, about = open_checkpoint(path, choose_device(typed.device), typed.tokenizer)
    if adapter:
        load_adapter(model, adapter)
    stage = about.get("stage", path.stem)
    print(f"{path}: {stage}, {model.n_params():,} parameters" + (f", adapter {adapter}" if adapter else ""))
    return model, tokenizer, adapter.name if adapter else path.stem


def main(argv=None):
    typed, cfg = parse(argv)
    try:
        from inference.server import Server
    except ModuleNotFoundError as error:
        raise ImportError(f"the server needs {error.name}: pip install -r requirements-serve.txt") from error
    service = Service(*open_model(typed), cfg)
    server = Server(service, typed.host, typed.port)
    if typed.host not in ("127.0.0.1", "::1", "localhost") and not cfg.api_key:
        print(f"{typed.host} can be reached by others and there is no key: set SERVE_API_KEY")
    server.run()
    return 0 if service.draining else 1


if __name__ == "__main__":
    args.run(main)
