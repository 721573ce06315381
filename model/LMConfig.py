"""The shape of a model: one validated dataclass, with named presets."""

import dataclasses
import math
from dataclasses import dataclass


def knob(default, text, choices=None, auto=False):
    """A dataclass field that is also a command-line flag: its default, its help text, its allowed values.

    With `auto` the flag also takes the word auto, which becomes an Auto of the default.
    """
    kwargs = {"default_factory": default} if callable(default) else {"default": default}
    return dataclasses.field(metadata={"help": text, "choices": choices, "auto": auto}, **kwargs)


class Auto(int):
    """A number to start from where the best one is to be found out."""


def check_knobs(settings):
    """ValueError for a field of a dataclass whose value is no number, or none of its choices, by the flag's name."""
    for f in dataclasses.fields(settings):
        value, choices = getattr(settings, f.name), f.metadata.get("choices")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{f.name} is {value}; it must be a finite number")
        if choices and value not in choices:
            raise ValueError(f"--{f.name} is {value}; choose from {', '.join(choices)}")
        if f.name == "seed" and value is not None and not 0 <= value < 2**63:  # what torch.manual_seed takes
            raise ValueError(f"--seed is {value}; it must be at least 0 and below 2^63")


@dataclass
class LMConfig:
    """Everything that decides the tensors' shapes and the forward pass; names and defaults are MiniMind's.

    Raises ValueError, naming the value and the limit, for a shape that cannot work.
    """

    dim: int = knob(512, "width C of the residual stream")
    n_layers: int = knob(8, "number of Transformer blocks")
    n_heads: int = knob(16, "query heads H; dim must be a multiple")
    n_kv_heads: int = knob(8, "key/value heads K; n_heads must be a multiple (GQA)")
    vocab_size: int = knob(6400, "number of token ids V")
    hidden_dim: int | None = knob(None, "width inside the feed-forward; unset: 8/3 of dim, rounded up to multiple_of")
    multiple_of: int = knob(64, "what hidden_dim is rounded up to")
    norm_eps: float = knob(1e-5, "epsilon inside RMSNorm")
    max_seq_len: int = knob(512, "longest sequence T the model sees at once, in tokens")
    dropout: float = knob(0.0, "share of activations zeroed in training")
    flash_attn: bool = knob(True, "use PyTorch's fused attention; false: the formula written out")
    use_moe: bool = knob(False, "mixture of experts instead of one feed-forward per block")
    num_experts_per_tok: int = knob(2, "experts that each token is sent to")
    n_routed_experts: int = knob(4, "experts E per block to choose from")
    n_shared_experts: bool = knob(True, "one more expert per block that every token passes")
    scoring_func: str = knob("softmax", "how router scores become weights", choices=["softmax"])
    aux_loss_alpha: float = knob(0.01, "weight of the balance loss in the objective")
    seq_aux: bool = knob(True, "balance experts within each sequence; false: over the whole micro-batch")
    router_z_alpha: float = knob(0.0, "weight of the router's z-loss, which keeps its logits small; 0.001 is usual")
    router_bias_rate: float = knob(0.0, "balance by biases too, which move this much a step; 0: none")
    norm_topk_prob: bool = knob(True, "make the chosen experts' weights sum to 1")
    rope_theta: float = knob(10000.0, "base of the rotary frequencies")
    rope_scaling: str | None = knob(None, "stretch positions past the trained length: ntk:FACTOR or yarn:FACTOR")

    def __post_init__(self):
        if self.multiple_of < 1:
            raise ValueError(f"multiple_of is {self.multiple_of}; it must be at least 1")
        if self.hidden_dim is None:  # two thirds of 4 x dim: three SwiGLU matrices cost what two plain ones would
            width = int(2 * 4 * self.dim / 3)
            self.hidden_dim = self.multiple_of * -(-width // self.multiple_of)
        for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "hidden_dim", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.dim % self.n_heads:
            raise ValueError(
                f"dim {self.dim} is not a multiple of n_heads {self.n_heads}; try --n_heads {self._fitting_heads()}"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head size {self.head_dim} (dim / n_heads) is odd; RoPE turns pairs, so it must be even")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")
        if self.use_moe and not 1 <= self.num_experts_per_tok <= self.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}; it must be between 1 and n_routed_experts "
                f"({self.n_routed_experts})"
            )
        if self.scoring_func != "softmax":
            raise ValueError(f"scoring_func {self.scoring_func!r} is unknown; the only one is 'softmax'")
        self.rope_rule  # noqa: B018  parsed here, so that a typo stops at start

    def _fitting_heads(self):
        return max(h for h in range(1, self.n_heads + 1) if self.dim % h == 0)

    @property
    def head_dim(self):
        """D, the width of one head."""
        return self.dim // self.n_heads

    @property
    def rope_rule(self):
        """(kind, factor) of rope_scaling: (None, 1.0), ('ntk', f) or ('yarn', f)."""
        if self.rope_scaling is None:
            return None, 1.0
        kind, _, factor = self.rope_scaling.partition(":")
        try:
            value = float(factor)
        except ValueError:
            value = 0.0
        if kind not in ("ntk", "yarn") or value < 1.0:
            raise ValueError(f"rope_scaling is {self.rope_scaling!r}; write ntk:FACTOR or yarn:FACTOR with FACTOR >= 1")
        return kind, value


PRESETS = {
    "tiny": {"dim": 256, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 256},  # 4.6 M: minutes on a CPU
    "small": {},  # 26.9 M, MiniMind's reference
    "base": {"dim": 768, "n_layers": 16},  # 108.7 M
    "moe": {"use_moe": True},  # 96.1 M, of which 53 M work on a token
}


def config_for(preset="small", **overrides):
    """The LMConfig of a preset with some fields changed; ValueError lists the presets if the name is unknown."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; there are: {', '.join(PRESETS)}")
    return LMConfig(**{**PRESETS[preset], **overrides})
