"""What gpu_check.py compares, a function for each part; it takes the script's command line and prints lines of JSON.

Differences are of norms, |a - b| / |b|; the bounds are those of tests/test_model.py where the test has one.
"""

import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.decode_speed import engine_writes, plain_loop, share_equal
from inference.engine import Engine
from model import moe
from model.batch import Sample, collate
from model.chat import ChatTokenizer, load_tokenizer
from model.LMConfig import config_for
from model.model import Transformer
from trainer import parallel, sharded
from trainer.config import TrainConfig
from trainer.losses import language_model_loss
from trainer.optim import make_optimizers
from trainer.run import Data, Run
from trainer.runtime import Runtime, choose_compile, choose_device, has_bf16
from trainer.step import step

ROOT = Path(__file__).resolve().parent.parent
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}  # of logits; gradients: twice that
ROWS = 4  # in the batches that are compared


def apart(a, b):
    """|a - b| / |b| of tensors, or of lists of them as one long vector."""
    a, b = ([x] if torch.is_tensor(x) else x for x in (a, b))
    squares = [((x.double() - y.double()).square().sum(), y.double().square().sum()) for x, y in zip(a, b, strict=True)]
    return (sum(d for d, _ in squares) / sum(n for _, n in squares)).sqrt().item()


def told(what, figure, bound):
    """One line of the table, for the process that started this one."""
    print(json.dumps({"what": what, "figure": figure, "bound": bound, "holds": figure <= bound}), flush=True)


def subject(typed, **shape):
    """A random model of the preset on the device, ids (ROWS, T) and Runtimes of the formats the device has."""
    device = choose_device(typed.device)
    torch.manual_seed(0)
    model = Transformer(config_for(typed.preset, **shape)).to(device)
    ids = torch.randint(3, model.cfg.vocab_size, (ROWS, model.cfg.max_seq_len), device=device)
    dtypes = [torch.float32] + [torch.bfloat16] * has_bf16(device) + [torch.float16] * (device.type == "cuda")
    return model, ids, [Runtime(device, dtype) for dtype in dtypes]


def learnt(model, ids, runtime, docs=None):
    """(logits, gradients) of next-token prediction in a format."""
    model.zero_grad(set_to_none=True)
    with runtime.autocast():
        out = model(ids[:, :-1], ids[:, 1:], docs=None if docs is None else docs[:, :-1])
    (out.loss / ids[:, 1:].numel()).backward()
    return out.logits.detach(), [p.grad.clone() for p in model.parameters()]


def formats(typed):
    """Each format, eager and compiled, against eager fp32."""
    model, ids, runtimes = subject(typed)
    wanted = learnt(model, ids, runtimes[0])
    compiled = copy.deepcopy(model)
    if can_compile := choose_compile("auto", runtimes[0].device, 10**9)[0]:
        compiled.compile()
    for runtime in runtimes:
        name, bound = str(runtime.dtype).removeprefix("torch."), CLOSE[runtime.dtype]
        for how, own in (("eager", model), ("compiled", compiled))[: 1 + can_compile]:
            if (how, runtime.dtype) != ("eager", torch.float32):
                logits, gradients = learnt(own, ids, runtime)
                told(f"logits, {name}, {how}", apart(logits, wanted[0]), bound)
                told(f"gradients, {name}, {how}", apart(gradients, wanted[1]), 2 * bound)


def chunks(typed):
    """The loss as a run takes it, on a GPU in chunks of positions, against the one from all logits."""
    model, ids, runtimes = subject(typed)
    for runtime in runtimes:
        wanted, name = learnt(model, ids, runtime)[1], str(runtime.dtype).removeprefix("torch.")
        model.zero_grad(set_to_none=True)
        with runtime.autocast():
            loss = model(ids[:, :-1], ids[:, 1:], loss_only=True).loss / ids[:, 1:].numel()
        loss.backward()
        gradients = [p.grad for p in model.parameters()]
        told(f"gradients, loss alone, {name}", apart(gradients, wanted), 2 * CLOSE[runtime.dtype])


def masks(typed):
    """Documents that share a row against rows of their own; fused attention against the plain formula."""
    model, ids, runtimes = subject(typed)
    half = ids.shape[1] // 2
    docs = (torch.arange(ids.shape[1], device=ids.device) >= half).long().expand(ROWS, -1)
    plain = Transformer(config_for(typed.preset, flash_attn=False)).to(ids.device)
    plain.load_state_dict(model.state_dict())
    for runtime in runtimes:
        with torch.no_grad(), runtime.autocast():
            packed, alone = model(ids, docs=docs).logits[:, half:], model(ids[:, half:]).logits
            fused, formula = model(ids).logits, plain(ids).logits
        name = str(runtime.dtype).removeprefix("torch.")
        told(f"documents in one row, {name}", apart(packed, alone), CLOSE[runtime.dtype])
        told(f"fused attention, {name}", apart(fused, formula), CLOSE[runtime.dtype])


def experts(typed):
    """All experts in one product against one after the other."""
    model, ids, runtimes = subject(typed, use_moe=True)
    for runtime in runtimes:
        logits, gradients = learnt(model, ids, runtime)
        known, moe.GROUPING_PAYS_FROM = moe.GROUPING_PAYS_FROM, 10**12
        loop = learnt(model, ids, runtime)
        moe.GROUPING_PAYS_FROM = known
        name = str(runtime.dtype).removeprefix("torch.")
        told(f"experts grouped, logits, {name}", apart(logits, loop[0]), CLOSE[runtime.dtype])
        told(f"experts grouped, gradients, {name}", apart(gradients, loop[1]), 2 * CLOSE[runtime.dtype])


def waits(typed):
    """How often a step of a run makes the host wait for a GPU: forwards, backwards, clipped and moved.

    With experts it need not where the kernel for all of them at once is: in bf16, on an H100 and its like.
    """
    for use_moe, optimizer in ((False, "adamw"), (False, "muon"), (True, "muon")):
        model, ids, runtimes = subject(typed, use_moe=use_moe)
        rows = np.concatenate([ids.cpu().numpy()] * max(1, typed.batch_size // ROWS))
        batch = collate([Sample(i, row, np.zeros_like(row), row) for i, row in enumerate(rows)])
        cfg = TrainConfig(batch_size=len(rows), accumulation_steps=1, max_steps=10**9, optimizer=optimizer, ema=0.999)
        data = Data(SimpleNamespace(T=rows.shape[1] - 1), np.arange(len(rows)))
        run = Run(model, runtimes[min(1, len(runtimes) - 1)], cfg, "pretrain", None, data, language_model_loss)
        batch = batch.pin_memory() if ids.is_cuda else batch
        step(run, model, [batch]).read()
        counted = waits_in(lambda run=run, model=model, batch=batch: step(run, model, [batch]), ids.device)
        told(f"waits in a step, {optimizer}{', experts' * use_moe}", float(counted), 0.0)


def waits_in(work, device):
    """How many of the operations that work() starts wait for a GPU; 0 on a CPU, which does them at once."""
    if device.type != "cuda":
        work()
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(w.message) for w in seen)


def ranks(typed):
    """DDP and FSDP2 over the device's own way of communicating, in a group of one; and FSDP's state in parts."""
    model, ids, runtimes = subject(typed)
    with tempfile.TemporaryDirectory() as folder:
        backend = "cpu:gloo,cuda:nccl" if ids.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        runtime = Runtime(ids.device, runtimes[min(1, len(runtimes) - 1)].dtype, 0, 1, dist.new_group(backend="gloo"))
        wanted, again = (learnt(copy.deepcopy(model), ids, runtime)[1] for _ in range(2))
        same = max(1e-6, 2 * apart(again, wanted))  # flash attention's gradients are not the same on every run
        ddp = DistributedDataParallel(copy.deepcopy(model), gradient_as_bucket_view=True)
        told("gradients, DDP", apart(learnt(ddp, ids, runtime)[1], wanted), same)
        shared = parallel.share_out(copy.deepcopy(model), runtime)
        optimizers = make_optimizers(shared, TrainConfig())
        gradients = learnt(shared, ids, runtime)[1]
        told("gradients, FSDP2", apart([g.full_tensor() for g in gradients], wanted), same)
        for optimizer in optimizers:
            optimizer.step()
        parts, other = Path(folder, "parts"), copy.deepcopy(model)
        saved = sharded.save(parts, shared, optimizers, {}, runtime)
        sharded.load(parts, other, make_optimizers(other, TrainConfig()), {}, saved["optimizers"])
        whole = parallel.whole(shared.state_dict())
        told("weights from FSDP's parts", apart([t.cpu() for t in other.state_dict().values()], [*whole.values()]), 0.0)
        dist.destroy_process_group()


def writing(typed):
    """The engine, eager and compiled (on a GPU its step is a recorded graph), against a plain loop: greedy texts."""
    tokenizer = ChatTokenizer(load_tokenizer().path)
    tokenizer.eos_id = -1  # no text ends early
    for use_moe in (False, True):
        written(typed, tokenizer, use_moe)


def written(typed, tokenizer, use_moe):
    """The same for one model."""
    model, ids, runtimes = subject(typed, use_moe=use_moe)
    can_compile = choose_compile("auto", ids.device, 10**9)[0]
    for runtime in runtimes[:2]:
        own = copy.deepcopy(model).to(runtime.dtype).eval()
        plain, name = plain_loop(own, ids[:, :20], 40), str(runtime.dtype).removeprefix("torch.")
        for compiled in (False, True)[: 1 + can_compile]:
            engine = Engine(own, tokenizer, slots=ROWS + 1, reuse=False, compiled=compiled)
            other = 1 - share_equal(engine_writes(engine, ids[:, :20], 40), plain)
            # two nearly equal logits may change places in a format of 8 bits, and the text behind them is another
            allowed = 0.0 if runtime.dtype == torch.float32 else 0.5
            who = f"{'compiled ' * compiled}engine, {name}{', experts' * use_moe}"
            told(f"other tokens, {who}", other, allowed)
            if ids.is_cuda:
                told(f"no step recorded, {who}", float(not engine.next_logits.kept), 0.0)


def pretrain(typed, folder, *flags):
    """The last training loss of 1-pretrain.py, nats per token, mean over its last log line."""
    shared = ["--data_path", typed.data_path, "--preset", typed.preset, "--device", typed.device, "--out_dir", folder]
    shared += ["--batch_size", "16", "--accumulation_steps", "1", "--log_interval", "20", "--eval_interval", "0"]
    words = [sys.executable, str(ROOT / "1-pretrain.py"), *shared, "--eval_batches", "1", *flags]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(flags)} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    (log,) = Path(folder).glob("pretrain_*.jsonl")
    return [r["loss"] for r in map(json.loads, log.read_text(encoding="utf-8").splitlines()) if "loss" in r][-1]


def runs(typed):
    """Whole runs: one in two halves against one in one piece, and fp16 with its scaler against bf16 after 200 steps."""
    device = choose_device(typed.device)
    with tempfile.TemporaryDirectory() as folder:
        steps = lambda n: ["--max_steps", str(n), "--schedule", "constant"]  # noqa: E731 a rate that no length changes
        own = "bfloat16" if has_bf16(device) else "float32"
        whole = pretrain(typed, f"{folder}/whole", *steps(200), "--dtype", own)
        pretrain(typed, f"{folder}/halves", *steps(100), "--dtype", own)
        again = pretrain(typed, f"{folder}/halves", *steps(200), "--dtype", own)
        told("loss of a run in two halves", abs(again - whole) / whole, 1e-3 if device.type == "cuda" else 0.0)
        if device.type == "cuda":
            fp16 = pretrain(typed, f"{folder}/fp16", *steps(200), "--dtype", "float16")
            told("loss in fp16 with a scaler against bf16", abs(fp16 - whole) / whole, 0.01)


def sparse(typed):
    """Tokens/s of the preset with experts against a dense one whose feed-forward is as wide as what a token passes."""
    _, _, runtimes = subject(typed)
    runtime, speeds = runtimes[min(1, len(runtimes) - 1)], []
    lm = config_for(typed.preset, use_moe=True)
    wide = lm.hidden_dim * (lm.num_experts_per_tok + bool(lm.n_shared_experts))
    for shape in ({"use_moe": True}, {"hidden_dim": wide}):
        model, ids, _ = subject(typed, **shape)
        ids, optimizers = ids.repeat(typed.batch_size // ROWS, 1), make_optimizers(model, TrainConfig())
        if choose_compile("auto", runtime.device, 10**9)[0]:
            model.compile()
        times = []
        for _ in range(15):
            started = time.perf_counter()
            with runtime.autocast():
                loss = model(ids[:, :-1], ids[:, 1:], loss_only=True).loss / ids[:, 1:].numel()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            loss.item()  # waits for the device
            times.append(time.perf_counter() - started)
        speeds.append(ids[:, 1:].numel() / statistics.median(times[5:]))
    told(f"dense tokens/s over those with experts ({speeds[1]:,.0f}, {speeds[0]:,.0f})", speeds[1] / speeds[0], 1 / 0.6)


PARTS = {f.__name__: f for f in (formats, chunks, masks, experts, waits, ranks, writing, runs, sparse)}
