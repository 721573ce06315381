"""Low-rank adaptation: W stays frozen, W + scale · B A is used, and only the two thin matrices A and B are trained.

Source: Hu et al. 2021, arXiv:2106.09685. Adapters are stored in PEFT's format, so that `peft` loads them onto the
exported stock model.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from model.dropout import dropout
from model.huggingface import from_stock, own_name, stock_name, to_stock
from model.linear import Linear, product
from model.LMConfig import check_knobs, knob

PREFIX = "base_model.model."  # PEFT's name for "inside the wrapped model"
ADAPTER_PARTS = (".lora_A", ".lora_B")
BASE_WEIGHTS = "base_weights"  # the key in the metadata of adapter_model.safetensors, which peft does not read
OTHER_KINDS = ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias")  # settings of PEFT that are not read here


@dataclass
class Adapter:
    """The shape of an adapter."""

    rank: int = knob(8, "LoRA: width of the thin matrices")
    alpha: float = knob(16.0, "LoRA: the update counts alpha / rank times")
    lora_dropout: float = knob(0.0, "LoRA: share of its input zeroed in training")
    targets: str = knob("wq,wk,wv,wo,w1,w2,w3", "LoRA: names of the Linear layers to adapt, by their last part")
    rslora: bool = knob(False, "LoRA: alpha / sqrt(rank) instead, so that large ranks learn as well as small ones")

    def __post_init__(self):
        check_knobs(self)
        if not self.names:
            raise ValueError(f"--targets {self.targets}: names no layer; the default is {Adapter.targets}")
        if self.rank < 1 or not 0 <= self.lora_dropout < 1:
            raise ValueError(f"--rank is {self.rank}, --lora_dropout {self.lora_dropout}; need at least 1, and [0, 1)")

    @property
    def scale(self):
        """What B A is multiplied by. rsLoRA: Kalajdzievski 2023, arXiv:2312.03732."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def names(self):
        """The target names as a set."""
        return {name.strip() for name in self.targets.split(",") if name.strip()}


class LoRALinear(nn.Module):
    """A Linear layer with an adapter beside it; `weight` is the layer's own, so the names in a state dict stay."""

    def __init__(self, linear, adapter):
        super().__init__()
        self.weight, self.scale, self.dropout = linear.weight, adapter.scale, adapter.lora_dropout
        rows, columns = linear.weight.shape
        new = {"device": linear.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Parameter(torch.empty(adapter.rank, columns, **new))
        self.lora_B = nn.Parameter(torch.zeros(rows, adapter.rank, **new))  # B A = 0: training starts from the base
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x):
        """(…, in) → (…, out)."""
        thin = product(dropout(x, self.dropout, self.training), self.lora_A)
        return product(x, self.weight) + self.scale * product(thin, self.lora_B)

    @torch.no_grad()
    def merged(self):
        """(out, in) W + scale · B A, in fp32."""
        return self.weight.float() + self.scale * (self.lora_B.float() @ self.lora_A.float())


def adapted(model):
    """{name: LoRALinear} of a model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def add_lora(model, adapter):
    """Puts an adapter beside every target layer of `model` and freezes everything else; returns the model.

    Raises:
        ValueError: a target that no Linear layer has, or the output layer, which shares its matrix with the embedding.
    """
    if "output" in adapter.names:
        raise ValueError("--targets output: it is the embedding too, and merging would move both; leave it out")
    if adapted(model):
        raise ValueError("the model has an adapter already; merge or remove it first")
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "output"}
    there = {name.rpartition(".")[2] for name in linears}
    if unknown := adapter.names - there:
        raise ValueError(f"--targets {','.join(sorted(unknown))}: no such layer; there are {', '.join(sorted(there))}")
    model.requires_grad_(False)
    for name, linear in linears.items():
        parent, _, last = name.rpartition(".")
        if last in adapter.names:
            setattr(model.get_submodule(parent), last, LoRALinear(linear, adapter))
    return model


def remove_lora(model):
    """Takes the adapters out again; what is left is the base, bit for bit."""
    for name, module in adapted(model).items():
        parent, _, last = name.rpartition(".")
        rows, columns = module.weight.shape
        with torch.device("meta"):
            linear = Linear(columns, rows)
        linear.weight = module.weight
        setattr(model.get_submodule(parent), last, linear)
    return model


def weights_fingerprint(model):
    """16 hex digits that change when the weights do, an adapter's aside; of each tensor 1,024 values are read."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not name.endswith(ADAPTER_PARTS):
            digest.update(name.encode() + tensor.flatten()[:1024].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def merged_state(model):
    """The state dict that a model without adapters would need to give the same logits."""
    state = {n: t for n, t in model.state_dict().items() if not n.endswith(ADAPTER_PARTS)}
    return state | {f"{name}.weight": module.merged() for name, module in adapted(model).items()}


def merge_lora(model):
    """Puts the adapters into the weights; the model is then as fast as its base. Returns it."""
    if adapted(model):
        state = merged_state(model)
        remove_lora(model)
        model.load_state_dict(state, strict=True)
    return model


def peft_tensors(model):
    """The adapter as `peft` names and lays it out: {name: tensor}."""
    tensors = {}
    for name, module in adapted(model).items():
        theirs = PREFIX + stock_name(name)
        tensors[f"{theirs}.lora_A.weight"] = module.lora_A.detach().float().cpu().contiguous()
        tensors[f"{theirs}.lora_B.weight"] = (
            to_stock(name, module.lora_B.detach().float(), model.cfg).cpu().contiguous()
        )
    return tensors


def peft_config(adapter, model, base):
    """The content of adapter_config.json.

    Args:
        base: name or path of the model that the adapter belongs to.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.lora_dropout,
        "use_rslora": adapter.rslora,
        "target_modules": sorted({stock_name(name).rpartition(".")[2] for name in adapted(model)}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def read_adapter(folder):
    """A PEFT folder → (Adapter, {layer: {"lora_A", "lora_B"}} as PEFT lays them out, adapter_config, base weights).

    Base weights are the weights_fingerprint of the model it was trained on; None for an adapter made elsewhere.

    Raises:
        FileNotFoundError, ValueError: not there, cut off, or of a kind that is not read here.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    config_file, weights_file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not config_file.is_file() or not weights_file.is_file():
        raise FileNotFoundError(f"no adapter in {folder}; make one with: python 4-lora_sft.py")
    try:
        config, pairs = json.loads(config_file.read_text(encoding="utf-8")), {}
        with safe_open(weights_file, "pt") as stored:
            base = (stored.metadata() or {}).get(BASE_WEIGHTS)
            for key in stored.keys():  # noqa: SIM118 it is no dict
                name, part = key.removeprefix(PREFIX).removesuffix(".weight").rsplit(".", 1)
                pairs.setdefault(own_name(name), {})[part] = stored.get_tensor(key)
        adapter = Adapter(
            rank=config["r"],
            alpha=config["lora_alpha"],
            rslora=bool(config.get("use_rslora")),
            targets=",".join({name.rpartition(".")[2] for name in pairs}),
        )
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder} is not a LoRA adapter for this kind of model ({error!r})") from error
    if others := [name for name in OTHER_KINDS if config.get(name)]:
        raise ValueError(f"{folder} uses {', '.join(others)}, which is not read here; choose plain LoRA")
    return adapter, pairs, config, base


def load_adapter(model, folder, name="this model"):
    """Puts the adapter of a PEFT folder onto `model`, replacing one that is there; returns its adapter_config.

    Args:
        name: of the model, for the error.
    Raises:
        FileNotFoundError, ValueError: not there, or made for another shape or other weights; the model is as it was.
    """
    adapter, pairs, config, base = read_adapter(folder)
    layers = {n: m.weight for n, m in model.named_modules() if isinstance(m, (nn.Linear, LoRALinear))}
    targets = {n: weight.shape for n, weight in layers.items() if n.rpartition(".")[2] in adapter.names}
    shapes = {n: {part: tuple(tensor.shape) for part, tensor in pair.items()} for n, pair in pairs.items()}
    if shapes != {n: {"lora_A": (adapter.rank, i), "lora_B": (o, adapter.rank)} for n, (o, i) in targets.items()}:
        raise ValueError(f"{folder} was made for a model of another shape; choose the model it was trained on")
    if base not in (None, own := weights_fingerprint(model)):
        raise ValueError(
            f"{folder} was trained on {config.get('base_model_name_or_path')} (weights {base}), and {name} has {own}: "
            "a merged model contains its adapter already, and after its base an adapter is trained again"
        )
    add_lora(remove_lora(model), adapter)
    with torch.no_grad():
        for n, module in adapted(model).items():
            module.lora_A.copy_(pairs[n]["lora_A"])
            module.lora_B.copy_(from_stock(n, pairs[n]["lora_B"], model.cfg))
    model.eval()
    return config
