"""One dict, three readers: a line for the person, JSONL for the machine, wandb for the team; on one rank."""

import contextlib
import importlib.util
import json
import sys
import time
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

from trainer import parallel
from trainer.checkpoint import write_atomically
from trainer.flops import flops_per_token, peak_flops
from trainer.reference import BAND, TRACKS, judged, like_steps


def duration(seconds):
    """4125.0 → '1h08m'; 75 → '1m15s'; 9 → '9s'."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"


MUCH_WAITING = 0.1  # of the time; above, the line of a step says so
FEW_STEPS = 50  # below, a run is warned about: the weights hardly move
FACTS = {"margin": "margin {:.2f}", "accuracy": "accuracy {:.1%}", "prefers": "prefers {:.1%}"}  # shown, if measured


def shown_facts(r, prefix=""):
    """'  margin 0.52  accuracy 81.3%' of a record that has them."""
    return "".join("  " + form.format(r[prefix + name]) for name, form in FACTS.items() if prefix + name in r)


def training_line(r):
    """The line of a training step, from its record."""
    line = (
        f"step {r['step']}/{r['total']}  loss {r['loss']:.3f}  lr {r['lr']:.1e}  norm {r['norm']:.2f}  "
        f"{r['tokens_per_second']:,.0f} tok/s  mfu {r['mfu']:.1%}  left {duration(r['seconds_left'])}"
    )
    line += shown_facts(r)
    if "expert_share" in r:
        line += f"  experts {min(r['expert_share']):.0%}-{max(r['expert_share']):.0%}"
        if r.get("idle_experts"):
            line += f"  {r['idle_experts']} experts got no token: raise --aux_loss_alpha"
    line += compared(r, only_if_off=True)
    if r.get("data_wait", 0) > MUCH_WAITING:
        line += f"  waits for data {r['data_wait']:.0%} of the time: raise --num_workers"
    return line + (f"  skipped {r['skipped_steps']}" if r.get("skipped_steps") else "")


def validation_line(r):
    """The line of a validation, from its record."""
    values = f"validation loss {r['val_loss']:.3f}"
    if "val_bits_per_byte" in r:
        values += f" nats/token  {r['val_bits_per_byte']:.3f} bits/byte"
    return f"step {r['step']}/{r['total']}  {values}{shown_facts(r, 'val_')}{compared(r)}"


def compared(r, only_if_off=False):
    """'  reference 5.81: 12% above it' of a record that has one; '' without, or if asked only where it is off."""
    if "reference_loss" not in r or (only_if_off and r["tracks"] == TRACKS):
        return ""
    return f"  reference {r['reference_loss']:.2f}: {r['tracks']}"


class Log:
    """Where records go. Only the main rank's writes; the others' do nothing.

    Args:
        runtime: whose rank decides.
        path: the JSONL file; it is cut back to `first_step` so that a continued run has each step once.
        wandb_run: a wandb run, or None.
    """

    def __init__(self, runtime, path, first_step=0, wandb_run=None):
        self.runtime, self.path, self.wandb_run = runtime, Path(path), wandb_run
        self.cut(first_step)

    def cut(self, step):
        """Removes the lines behind a step: what comes next is taken again."""
        if self.runtime.is_main:
            kept = self._lines_up_to(step) if step else []
            write_atomically(self.path, lambda f: f.writelines(kept))

    def _lines_up_to(self, step):
        if not self.path.exists():
            return []
        kept = []
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except ValueError:  # the line during which the process was killed
                continue
        return kept

    def record(self, line, record):
        """Shows `line` and stores `record` (a flat dict with 'step')."""
        if not self.runtime.is_main:
            return
        self.runtime.say(line)
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps(record) + "\n")
        if self.wandb_run is not None:
            self.wandb_run.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])

    def close(self):
        """Ends the wandb run; without it the last lines would not be sent."""
        if self.wandb_run is not None:
            self.wandb_run.finish()


def start_wandb(cfg, runtime, config):
    """A wandb run on the main rank if --use_wandb, else None. Training goes on without one when it cannot start."""
    if not (cfg.use_wandb and runtime.is_main):
        return None
    if importlib.util.find_spec("wandb") is None:
        raise ImportError("--use_wandb needs the wandb package: pip install -r requirements.txt")
    import wandb

    try:
        settings = wandb.Settings(init_timeout=30, silent=True)
        return wandb.init(
            project=cfg.wandb_project, name=cfg.model_name, config=config, dir=cfg.out_dir, settings=settings
        )
    except (wandb.errors.Error, OSError) as error:  # no login, no network
        runtime.say(
            f"wandb did not start ({str(error).splitlines()[0]}). Log in with `wandb login`, or set WANDB_MODE=offline "
            f"and run `wandb sync` later. Training goes on; the same numbers are in {cfg.out_dir}/*.jsonl"
        )
        return None


class Meter:
    """Speed and loss since the last log line; time spent saving and validating is not counted."""

    def __init__(self, run):
        self.run = run
        self.first_step = run.progress.step
        self.flops = flops_per_token(run.model.cfg, run.data.train.T)
        self.elapsed_before = 0.0
        self._restart()

    def _restart(self):
        self.start, self.away, self.waited = time.perf_counter(), 0.0, 0.0
        self.tokens, self.losses, self.norm, self.load = self.run.progress.tokens, [], 0.0, 0
        self.facts = []

    def note(self, loss, norm, load, facts, waited):
        """Takes in what one step learned, and for how many seconds there was no data for it."""
        self.losses.append(loss)
        self.facts.append(facts)
        self.norm = norm
        self.load = self.load + load
        self.waited += waited

    @contextlib.contextmanager
    def paused(self):
        """A context whose duration is not training time."""
        start = time.perf_counter()
        yield
        self.away += time.perf_counter() - start

    def _share_of_peak(self, speed):
        """The MFU; a measured peak below what the run does was taken on a busy machine, and is taken again."""
        run, done = self.run, speed * self.flops
        if done > run.peak:
            run.peak = max(run.peak, peak_flops(run.runtime.device, run.runtime.dtype) * run.runtime.world)
        return done / run.peak

    def record(self):
        """The record of the last steps; starts counting anew."""
        run, progress = self.run, self.run.progress
        seconds = max(time.perf_counter() - self.start - self.away, 1e-9)
        speed = (progress.tokens - self.tokens) / seconds
        self.elapsed_before += seconds
        record = {
            "step": progress.step,
            "total": run.total,
            "epoch": round(progress.step / run.order.steps_per_epoch, 4),
            "loss": sum(self.losses) / len(self.losses),
            "lr": run.optimizers[0].param_groups[0]["lr"],
            "norm": self.norm,
            "tokens": progress.tokens,
            "tokens_per_second": speed,
            "mfu": self._share_of_peak(speed),
            "data_wait": self.waited / seconds,
            "peak_memory": peak_memory(run.runtime.device),
            "seconds_left": self.elapsed_before / (progress.step - self.first_step) * (run.total - progress.step),
        }
        record |= judged(run.reference, progress.tokens, record["loss"])
        record |= {name: sum(f[name] for f in self.facts) / len(self.facts) for name in self.facts[0]}
        if progress.skipped:
            record["skipped_steps"] = progress.skipped
        if torch.is_tensor(self.load) and self.load.numel():
            load = parallel.total(self.load, run.runtime)  # of all ranks, which come here at the same step
            per_expert = load.sum(0).float()
            record["expert_share"] = (per_expert / per_expert.sum()).tolist()
            record["idle_experts"] = int((load == 0).sum())
        self._restart()
        return record


def peak_memory(device):
    """Most bytes held so far: on a GPU by tensors, else by the process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss, see getrusage(2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reference_line(curve, tokens_per_step):
    """What a run with steps of so many tokens is told of the recorded curve of its shape."""
    about = f"{curve['file']}: {curve['data']}, up to {curve['tokens'][-1] / 1e6:.1f} M tokens"
    if like_steps(curve, tokens_per_step):
        return f"{about}; a loss within {BAND:.0%} of it is normal"
    theirs = curve["tokens_per_step"]
    return f"{about}; not compared, its steps are of {theirs:,} tokens and these of {tokens_per_step:,}"


def describe_run(run, curve=None):
    """Says what will happen, before it does; curve: the recorded one of its shape, compared with or not."""
    cfg, runtime, lm = run.cfg, run.runtime, run.model.cfg
    kind = f"{lm.n_routed_experts} experts, {lm.num_experts_per_tok} per token" if lm.use_moe else "dense"
    where = f"{runtime.device}" + (f" x {runtime.world}" if runtime.world > 1 else "")
    runtime.say(
        f"model     {run.model.n_params():,} parameters: dim {lm.dim}, {lm.n_layers} layers, {kind}, "
        f"{lm.vocab_size} ids"
    )
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    if trained < run.model.n_params():
        saved = (run.model.n_params() - trained) * 8 / 1e6  # AdamW keeps two fp32 numbers for each parameter it moves
        runtime.say(
            f"trained   {trained:,} of them ({trained / run.model.n_params():.1%}): {trained * 8 / 1e6:.1f} MB of "
            f"optimizer state, {saved:.1f} MB less than for all; gradients: {saved / 2:.1f} MB less"
        )
    runtime.say(f"device    {where}, {str(runtime.dtype).removeprefix('torch.')} (--dtype {cfg.dtype})")
    if curve:
        runtime.say(f"reference {reference_line(curve, run.tokens_per_step)}")
    rows, T = len(run.data.train_rows), run.data.train.T
    runtime.say(
        f"data      {rows:,} rows of {T} ({run.data.train.fill:.1%} real tokens), "
        f"{len(run.data.val_rows):,} for validation"
    )
    runtime.say(
        f"plan      {run.total:,} steps of {run.order.rows_per_step} rows ({run.tokens_per_step:,} tokens), "
        f"{run.order.steps_per_epoch:,} steps an epoch, "
        f"{cfg.optimizer}, {cfg.schedule} from {cfg.learning_rate:g}"
    )
    if len(run.data.tail_rows):
        steps = run.total - run.order.switch
        runtime.say(f"tail      the last {steps:,} steps are of {len(run.data.tail_rows):,} rows of --anneal_path")
    if run.total < FEW_STEPS and not cfg.max_steps:
        runtime.say(
            f"note      {run.total} steps hardly train anything; for more of them lower --batch_size or "
            "--accumulation_steps, or raise --epochs"
        )
