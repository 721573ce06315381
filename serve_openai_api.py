"""Serve a checkpoint to any OpenAI client: chat, completions, streams, many at once.

reads    any checkpoint in out/ (the newest one if none is named), and with --lora NAME its adapter
writes   nothing; requests are not kept

    python serve_openai_api.py                                          http://127.0.0.1:8998/v1
    python serve_openai_api.py --model out/full_sft_512.pth --lora persona --port 8998
    python serve_openai_api.py --compiled --dtype auto                  a minute to start, then faster
    SERVE_API_KEY=secret python serve_openai_api.py --host 0.0.0.0      for others: only with a key, behind TLS

    curl http://127.0.0.1:8998/v1/chat/completions -H 'Content-Type: application/json' \\
         -d '{"messages": [{"role": "user", "content": "你好"}], "stream": true}'

Paths: /v1/models, /v1/chat/completions, /v1/completions, /health, /metrics (Prometheus). SIGTERM or ctrl-C lets running
requests end (--drain_seconds) and refuses new ones; a second ctrl-C ends them.
"""

import os

from inference.opening import add_int8_flag, add_model_flags, open_typed, told
from inference.service import ServeConfig, Service
from model.int8 import to_int8
from model.lora import merge_lora
from trainer import args
from trainer.runtime import choose_compile, choose_dtype


def parse(argv):
    """The command line → (namespace, ServeConfig)."""
    parser = args.make_parser(__doc__)
    add_model_flags(parser)
    add_int8_flag(parser)
    args.add_flag(parser, "host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    args.add_flag(parser, "port", type=int, default=8998, help="port; 0: any that is free (default: 8998)")
    args.add_flag(parser, "dtype", default="float32", help="format of the weights: float32, auto, bfloat16 or float16")
    args.add_fields(parser.add_argument_group("limits"), ServeConfig)
    typed = parser.parse_args(argv)
    if not 0 <= typed.port < 65536:
        raise ValueError(f"--port is {typed.port}; it must be between 0 and 65535")
    typed.api_key = typed.api_key or os.environ.get("SERVE_API_KEY")
    return typed, ServeConfig(**args.split(vars(typed), ServeConfig)[0])


def main(argv=None):
    typed, cfg = parse(argv)
    try:
        from inference.server import Server
    except ModuleNotFoundError as error:
        raise ImportError(f"the server needs {error.name}: pip install -r requirements-serve.txt") from error
    model, tokenizer, about, path, adapter = open_typed(typed)
    print(told(model, about, path, adapter))
    device = model.output.weight.device
    merge_lora(model).to(choose_dtype(typed.dtype, device)[0])  # one adapter for all: beside the weights it costs time
    if typed.int8:
        to_int8(model)
    if cfg.compiled:
        choose_compile("on", device, 0)  # an error now, where nothing can be compiled
    service = Service(model, tokenizer, adapter.name if adapter else path.stem, cfg)
    server = Server(service, typed.host, typed.port)
    if typed.host not in ("127.0.0.1", "::1", "localhost") and not cfg.api_key:
        print(f"{typed.host} can be reached by others and there is no key: set SERVE_API_KEY")
    if cfg.compiled:
        print("compiles the step that writes", flush=True)
        service.engine.warm_up()
    server.run()
    return 0 if service.draining else 1


if __name__ == "__main__":
    args.run(main)
