"""Every setting of a training run. One field is the flag, its help and its record in the checkpoint."""

import dataclasses
from dataclasses import dataclass

from model.LMConfig import check_knobs, knob
from model.lora import Adapter


def refuse_unused(settings, names, condition):
    """ValueError for fields that were set although nothing reads them under the condition, a few words."""
    defaults = {f.name: f.default for f in dataclasses.fields(settings)}
    typed = [f"--{n} {getattr(settings, n)}" for n in names if getattr(settings, n) != defaults[n]]
    if typed:
        raise ValueError(f"{', '.join(typed)} has no effect {condition}; leave it out")


# The best of benchmarks/recipe_sweep.py for pretraining `tiny`, in steps of 4,096 tokens; see benchmarks/RESULTS.md.
RATES = {"adamw": 1e-3, "muon": 4e-3}


@dataclass
class TrainConfig:
    """Settings shared by all training stages; names and defaults are MiniMind's where it has them."""

    # what to train on, where to write
    data_path: str | None = knob(None, "data to train on")
    out_dir: str = knob("out", "folder for checkpoints and logs")
    init_from: str | None = knob(None, "checkpoint to start from")
    tokenizer: str | None = knob(None, "tokenizer folder; unset: the one the data was made with")
    val_fraction: float = knob(0.01, "share of rows held out for validation when the data has no _val part")
    fresh: bool = knob(False, "start over instead of continuing an unfinished run")
    # how long, how much at once
    epochs: int = knob(1, "times each row is seen")
    max_steps: int | None = knob(None, "stop after this many optimizer steps; unset: by epochs")
    batch_size: int = knob(
        32,
        "rows in one forward pass, on each device; auto: what fits, in steps of as many rows as by default",
        auto=True,
    )
    accumulation_steps: int = knob(8, "forward passes per optimizer step")
    # how the weights move
    optimizer: str = knob("adamw", "adamw, or muon for the matrices with adamw for the rest", ["adamw", "muon"])
    learning_rate: float | None = knob(None, "highest learning rate; unset: 1e-3 for adamw, 4e-3 for muon")
    schedule: str = knob("cosine", "how the rate falls after warmup", ["cosine", "linear", "constant", "wsd"])
    warmup_iters: int = knob(20, "steps in which the rate rises from 0; at most a tenth of the run")
    min_lr_ratio: float = knob(0.1, "the rate at the end, as a share of the highest")
    anneal_fraction: float = knob(0.2, "wsd: share of all steps in the falling tail, which ends at 0")
    weight_decay: float = knob(0.1, "pull of matrices towards 0, per step and learning rate; norms are left alone")
    beta1: float = knob(0.9, "AdamW: memory of the gradient's mean")
    beta2: float = knob(0.95, "AdamW: memory of the gradient's square")
    grad_clip: float = knob(1.0, "largest allowed gradient norm; 0: no limit")
    ema: float = knob(0.0, "save and validate a running mean of the weights, this much of it kept per step; 0: none")
    seed: int = knob(1337, "decides the initial weights, the order of rows and dropout")
    doc_mask: bool = knob(False, "packed documents cannot see each other")
    # on what
    device: str = knob("auto", "auto, cpu, cuda, cuda:N or mps")
    dtype: str = knob("auto", "auto, float32, bfloat16 or float16; auto: bf16 where the hardware has it")
    compile: str = knob(
        "auto",
        "translate the model with torch.compile; auto: when the run is long enough to pay",
        ["auto", "on", "off"],
    )
    parallel: str = knob(
        "auto",
        "ddp: a whole model on each device; fsdp: each holds a part of it; auto: ddp under torchrun, else none",
        ["auto", "none", "ddp", "fsdp"],
    )
    sharded_state: bool = knob(
        False,
        "with --parallel fsdp: each rank writes its own part of the state to continue from; none gathers it",
    )
    ddp: bool = knob(False, "kept from MiniMind; torchrun is recognised without it")
    local_rank: int = knob(-1, "set by launchers; leave alone")
    recompute: bool = knob(False, "keep less for the backward pass and compute it again: less memory, a third slower")
    num_workers: int = knob(1, "processes that prepare batches ahead; 0: none")
    # what is told and kept
    log_interval: int = knob(10, "steps between log lines")
    save_interval: int = knob(500, "steps between saves; the end is always saved")
    eval_interval: int = knob(500, "steps between validations; 0: only at the end")
    eval_batches: int = knob(100, "most batches of one validation")
    keep_last: int = knob(2, "states to continue from that are kept; a damaged one is passed over for the one before")
    keep_every: int = knob(0, "steps between weights that stay in out_dir/kept; 0: none")
    on_bad_step: str = knob(
        "skip",
        "after a loss that is not finite or leaps up: skip its data, going back to a saved state if needed; or stop",
        ["skip", "stop"],
    )
    profile: int = knob(0, "trace this many steps and show the ten dearest operations; 0: none")
    use_wandb: bool = knob(False, "also log to Weights & Biases")
    wandb_project: str = knob("MiniMind-Pretrain", "project name there")
    model_name: str = knob("minimind", "name of the run there")

    def __post_init__(self):
        check_knobs(self)
        ones = ("epochs", "batch_size", "accumulation_steps", "log_interval", "save_interval", "eval_batches")
        ones += ("keep_last",)
        zeros = ("warmup_iters", "grad_clip", "num_workers", "eval_interval", "keep_every", "profile")
        at_least = dict.fromkeys(ones, 1) | dict.fromkeys(zeros, 0)
        if self.max_steps is not None:
            at_least["max_steps"] = 1
        for name, limit in at_least.items():
            if getattr(self, name) < limit:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least {limit}")
        if self.learning_rate is None:
            self.learning_rate = RATES[self.optimizer]
        if not self.learning_rate > 0:
            raise ValueError(f"--learning_rate is {self.learning_rate}; it must be above 0")
        for name in ("val_fraction", "min_lr_ratio", "anneal_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be in [0, 1]")
        if self.sharded_state and self.parallel != "fsdp":
            raise ValueError("--sharded_state has no parts to write without --parallel fsdp; set that, or leave it out")
        if not 0 <= self.ema < 1:
            raise ValueError(f"--ema is {self.ema}; it must be in [0, 1)")


@dataclass
class PretrainConfig(TrainConfig):
    """Settings of pretraining."""

    shuffle: bool = knob(True, "a new random order of rows every epoch; false: the order of the data, for a curriculum")
    anneal_path: str | None = knob(None, "a .bin of good text for the falling tail of --schedule wsd")

    def __post_init__(self):
        super().__post_init__()
        if self.anneal_path and (self.schedule != "wsd" or not 0 < self.anneal_fraction < 1):
            raise ValueError("--anneal_path is read in the falling tail of --schedule wsd; set that, and its length")


@dataclass
class ChatConfig(TrainConfig):
    """Settings of the stages that learn from conversations."""

    max_seq_len: int | None = knob(None, "positions per row; unset: the checkpoint's")
    doc_mask: bool = knob(True, "packed conversations cannot see each other")


@dataclass
class SFTConfig(ChatConfig):
    """Settings of full supervised fine-tuning."""

    dropout: float | None = knob(None, "share of activations zeroed in training; unset: the checkpoint's")
    replay: float = knob(0.0, "share of rows taken from pretraining data, against forgetting")
    replay_path: str = knob("dataset/pretrain.bin", "the .bin that --replay takes rows from")
    neftune_alpha: float = knob(0.0, "noise on the embeddings in training (NEFTune; 5 is usual); 0: none")

    def __post_init__(self):
        super().__post_init__()
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout is {self.dropout}; it must be in [0, 1)")
        if not 0 <= self.replay < 1 or self.neftune_alpha < 0:
            raise ValueError(
                f"--replay is {self.replay}, --neftune_alpha {self.neftune_alpha}; need [0, 1), and 0 or more"
            )
        if not self.replay:
            refuse_unused(self, ["replay_path"], "without --replay")


@dataclass
class LoRAConfig(SFTConfig, Adapter):
    """Settings of fine-tuning an adapter."""

    lora_name: str = knob("sft", "name of the adapter; the files are lora_<name>_<dim>")

    def __post_init__(self):
        SFTConfig.__post_init__(self)
        Adapter.__post_init__(self)
        if not self.lora_name.isidentifier():
            raise ValueError(f"--lora_name {self.lora_name} must be letters, digits and _, such as persona")


@dataclass
class PreferenceConfig(ChatConfig, Adapter):
    """Settings of learning from preferences."""

    use_lora: bool = knob(False, "train an adapter only (see LoRA), and merge it at the end")
    loss: str = knob("sigmoid", "sigmoid (DPO), ipo, simpo or orpo", ["sigmoid", "ipo", "simpo", "orpo"])
    beta: float | None = knob(None, "reward scale; for orpo the odds ratio's weight; unset: 0.1, for simpo 2")
    label_smoothing: float = knob(0.0, "sigmoid: chance that a pair is labelled the wrong way round")
    length_normalised: bool = knob(False, "sigmoid: log-probs per token, so that length earns nothing")
    gamma: float = knob(1.0, "simpo: margin by which the chosen answer should win")

    def __post_init__(self):
        ChatConfig.__post_init__(self)
        Adapter.__post_init__(self)
        if self.beta is None:
            self.beta = 2.0 if self.loss == "simpo" else 0.1
        if not self.doc_mask:
            raise ValueError("--doc_mask false: packed answers must not see each other here; leave it out")
        if not self.beta > 0 or not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"--beta is {self.beta}, --label_smoothing {self.label_smoothing}; need above 0, and [0, 0.5)"
            )
        of_loss = {"label_smoothing": "sigmoid", "length_normalised": "sigmoid", "gamma": "simpo"}
        refuse_unused(self, [n for n, loss in of_loss.items() if loss != self.loss], f"with --loss {self.loss}")
        if not self.use_lora:
            refuse_unused(self, [f.name for f in dataclasses.fields(Adapter)], "without --use_lora")


# What may differ between the first start of a run and its continuation without changing what it computes.
FREE = {
    *(
        "out_dir",
        "fresh",
        "epochs",
        "max_steps",
        "device",
        "compile",
        "recompute",
        "parallel",
        "sharded_state",
        "ddp",
        "local_rank",
        "num_workers",
    ),
    *("log_interval", "save_interval", "eval_interval", "eval_batches", "use_wandb", "wandb_project", "model_name"),
    *(
        "data_path",
        "init_from",
        "tokenizer",
        "dtype",
        "replay_path",
        "anneal_path",
    ),  # compared by what they lead to: see run.CONTENT
    *("keep_last", "keep_every", "on_bad_step", "profile"),
    *("batch_size", "accumulation_steps"),  # only their product with the number of ranks matters: rows_per_step
}


def changed_settings(before, now):
    """The settings in which a continued run may not differ but does: {name: (before, now)}; both are dicts."""
    names = now.keys() - FREE
    return {n: (before[n], now[n]) for n in sorted(names) if n in before and before[n] != now[n]}
