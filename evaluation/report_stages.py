"""The training's part of a report: a table of all stages, and the curves of each."""

import math

from evaluation.markup import at, count, decimal, h, list_at, number, percent, table, table_at, words
from evaluation.report_charts import Line, both, line_chart, noisy, shares
from trainer.checkpoint import STAGES
from trainer.metrics import duration

TITLES = {"pretrain": "Pretraining", "full_sft": "Chat (SFT)", "lora": "LoRA", "dpo": "DPO"}
MAKES = {
    "tokenizer": "python train_tokenizer.py --data_path PATH --out_dir {out}/tokenizer",
    "data": "python data_process.py pretrain --input PATH --output {out}/pretrain.bin",
    "samples": "python 2-eval.py --model {out}/NAME.pth --temperature 0 --out {out}/samples/NAME.jsonl",
    "exam": "python ceval_eval.py --model {out}/NAME.pth --results_dir {out}/ceval",
    **{kind: f"python {script} --data_path PATH --out_dir {{out}}" for kind, script in STAGES.items()},
}


def missing(found, what, key):
    """The sentence that stands where something is missing, with the command that makes it."""
    return h("p", f"{what} Made by: ", h("code", MAKES[key].format(out=found.out_dir)), class_="missing")


def section(name, title, *children):
    """A part of the page that can be linked to."""
    return h("section", h("h2", title), children, id=name)


def n_params(about):
    """Parameters of a described model, counted from its shape; None where the description lacks it."""
    cfg = table_at(about, "config")
    shape = [number(cfg.get(key)) for key in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "hidden_dim")]
    if not all(shape):  # a missing field, or 0
        return None
    dim, layers, heads, kv_heads, vocab, hidden = shape
    attention = dim * dim // heads * (2 * heads + 2 * kv_heads)
    routed = number(cfg.get("n_routed_experts")) or 0 if cfg.get("use_moe") else 0
    experts = routed + bool(cfg.get("n_shared_experts")) if routed else 1
    norms, router = 2 * dim, routed * dim
    return vocab * dim + layers * (attention + experts * 3 * dim * hidden + router + norms) + dim


def latest(stage, name, validation=True):
    """The last finite value of a column of a stage's log, else what its description has."""
    known = [y for _, y in stage.column(name, validation) if y is not None]
    return known[-1] if known else number(at(stage.about, name))


def stage_row(stage):
    """A stage as a row of the table of stages."""
    seconds, tokens = stage.seconds(), latest(stage, "tokens", False)
    losses = [y for _, y in stage.column("val_loss", True) if y is not None]
    used = [y for _, y in stage.column("mfu") if y is not None]
    last = latest(stage, "val_loss")
    return [
        h("a", stage.name, href=f"#stage-{stage.name}"),
        count(latest(stage, "step", False)),
        count(tokens),
        duration(seconds) if seconds else "",
        count(tokens / seconds) if seconds and tokens else "",
        percent(sum(used) / len(used)) if used else "",
        decimal(latest(stage, "loss", False) if stage.steps else number(at(stage.about, "train_loss"))),
        decimal(last),
        decimal(min(losses) if losses else last),
        decimal(latest(stage, "val_bits_per_byte")),
    ]


STAGE_HEAD = (
    *("stage", "steps", "tokens", "time", "tokens/s", "MFU", "train loss", "val loss, last"),
    *("val loss, best", "bits per byte"),
)


def stages_section(found):
    """The table of all stages, then the curves of each."""
    parts = []
    if found.stages:
        parts.append(table(STAGE_HEAD, [stage_row(s) for s in found.stages], "Stages"))
        note = "Time is spent in training steps, without validations and saves. A loss is in nats: per token, and per "
        parts.append(h("p", note + "pair for DPO.", class_="soft"))
    for stage in found.stages:
        parts.append(stage_part(stage, found))
    parts.append(growth_part(found.growth))
    for kind, title in TITLES.items():
        if not found.of_kind(kind):
            parts.append(missing(found, f"{title} has not been run.", kind))
    return section("stages", "Training", parts)


def stage_part(stage, found):
    """The curves of a stage."""
    charts = curves(stage)
    if not charts and (stage.steps or stage.validations):
        charts = h("p", "Its log has too few steps for curves; its figures are in the table.", class_="missing")
    elif not charts:
        charts = missing(found, "It has no log of its training.", stage.kind)
    return h("article", h("h3", stage.name), charts, id=f"stage-{stage.name}")


def growth_part(growth):
    """What growing costs: a line each for the model, the rows and the processes, and the figures; None without any."""
    known = lambda p: all((number(at(p, key)) or 0) > 0 for key in ("factor", "tokens_per_second"))  # noqa: E731
    points = [p for p in list_at(growth, "points") if known(p)]
    if not points:
        return None
    lines, rows = [], []
    for i, what in enumerate(dict.fromkeys(str(at(p, "what")) for p in points)):
        own = [p for p in points if str(at(p, "what")) == what]
        shares_of_first = [(math.log2(p["factor"]), p["tokens_per_second"] / own[0]["tokens_per_second"]) for p in own]
        lines.append(Line(what, f"c{i}", shares_of_first, dots=True))
        rows += [
            [what, words(at(p, "label")), count(p["tokens_per_second"]), decimal(y, 2)]
            for p, (_, y) in zip(own, shares_of_first)
        ]
    title = "Speed as something grows: tokens per second as a share of the first, over doublings"
    draw = lambda wide: line_chart(title, lines, (1080, 300) if wide else (360, 190), zero=True, over="doublings")  # noqa: E731
    chart = both(draw) if draw(True) else None
    figures = table(["what grows", "to", "tokens/s", "share of the first"], rows)
    where = [words(at(growth, "machine")), ", ", words(at(growth, "date")), ": "]
    made = h("p", where, h("code", words(at(growth, "command"))), class_="soft")
    return h("article", h("h3", "What growing costs"), chart, figures, made, id="growth")


def curves(stage):
    """The charts of a stage's log that have something to show: the loss in full width, then the others in a grid."""
    loss = stage.column("loss")
    lines = noisy("training", "c0", loss, dots=True)
    lines.append(Line("validation", "c1", stage.column("val_loss", True), dots=True))
    lines.append(Line("reference", "c2", stage.column("reference_loss", True), dots=True))
    unit = "nats per pair" if any("margin" in r for r in stage.steps) else "nats per token"
    wide = line_chart(f"Loss, {unit}", lines, (1080, 300))
    charts = [both(lambda w: wide if w else line_chart(f"Loss, {unit}", lines))] if wide else []
    small = [
        line_chart("Learning rate", [Line("last", "c0", stage.column("lr"))], zero=True),
        line_chart("Gradient norm", noisy("last", "c0", stage.column("norm")), zero=True),
        *speed_curves(stage),
        *preference_curves(stage),
    ]
    experts = shares(stage.steps, "expert_share")
    if experts:
        level = (1 / len(experts), "even")
        small.append(line_chart("Share of each expert", experts, zero=True, label=percent, level=level))
    small = [chart for chart in small if chart]
    return [*charts, h("div", small, class_="charts")] if small else charts


def speed_curves(stage):
    """Tokens per second with the MFU as a second axis; apart where one is no fixed multiple of the other."""
    speeds, used = stage.column("tokens_per_second"), stage.column("mfu")
    ratios = [m / s for (_, s), (_, m) in zip(speeds, used) if s and m is not None]
    lines = noisy("last", "c0", speeds)
    if ratios and len(speeds) == len(used) and max(ratios) < 1.01 * min(ratios):  # one machine from start to end
        second = lambda y: f"{100 * y * ratios[0]:.2g}\u00a0%"  # noqa: E731
        return [line_chart("Tokens per second, and MFU", lines, zero=True, second=second)]
    mfu = noisy("last", "c0", used)
    return [line_chart("Tokens per second", lines, zero=True), line_chart("MFU", mfu, zero=True, label=percent)]


def preference_curves(stage):
    """The charts that only preference training has."""
    rewards = [
        Line("chosen", "c2", stage.column("chosen_reward")),
        Line("rejected", "c3", stage.column("rejected_reward")),
    ]
    drawn = []
    for name, title, label in (("margin", "Reward margin, nats", None), ("accuracy", "Reward accuracy", percent)):
        lines = noisy("training", "c0", stage.column(name))
        lines.append(Line("validation", "c1", stage.column(f"val_{name}", True), dots=True))
        drawn.append(line_chart(title, lines, **({"label": label} if label else {})))
    return [*drawn, line_chart("Rewards, nats", rewards)]
