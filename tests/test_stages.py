"""What holds for pretraining holds for every later stage: splits, ranks, stopping; and what each is told is wrong."""

import json
import math
import os
import re
import runpy
import shutil

import pytest
import torch

from model.batch import collate
from model.chat import load_tokenizer
from model.dataset import SFTDataset
from tests.stages import ROOT, SCRIPTS, flags_of, make_base, make_data, run_stage
from tests.test_scripts import call
from trainer.chat_stage import prepared
from trainer.checkpoint import load_file, load_model
from trainer.config import SFTConfig
from trainer.losses import language_model_loss
from trainer.sampler import RowOrder

pytestmark = pytest.mark.usefixtures("one_thread")
STAGES = list(SCRIPTS)
# Where a gradient is nearly 0, Adam turns its rounding into a step of the size of the rate.
SLOW = ("--learning_rate", 3e-4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer_dir):
    return make_base(tmp_path_factory.mktemp("base"), tokenizer_dir)


@pytest.fixture(scope="module")
def moe_base(tmp_path_factory, tokenizer_dir):
    return make_base(tmp_path_factory.mktemp("moe_base"), tokenizer_dir, moe=True)


def largest_difference(a, b):
    return max((a[k] - b[k]).abs().max().item() for k in a)


def without_dropout(base, folder):
    """The same base with dropout 0, for comparisons between different splits of a step."""
    copy = folder / base.name
    shutil.copy(base, copy)
    about = json.loads(base.with_suffix(".json").read_text(encoding="utf-8"))
    about["config"]["dropout"] = 0.0
    copy.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")
    return copy


def final(out_dir, stage, moe=False):
    return load_file(out_dir / f"{stage}_32{'_moe' if moe else ''}.pth")


# ---- the same weights however it is split --------------------------------------------------------------------------
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_accumulation_does_not_change_the_weights(data, base, moe_base, tmp_path, stage, moe):
    start = without_dropout(moe_base if moe else base, tmp_path)
    slow = ("--epochs", 2, *SLOW)
    run_stage(stage, data, start, tmp_path / "a", "--batch_size", 8, "--accumulation_steps", 1, *slow)
    run_stage(stage, data, start, tmp_path / "b", "--batch_size", 2, "--accumulation_steps", 4, *slow)
    whole, split = final(tmp_path / "a", stage, moe), final(tmp_path / "b", stage, moe)
    assert largest_difference(whole, split) < 1e-5
    assert largest_difference(whole, load_file(start)) > 5e-4  # they did move


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_equal_one(data, base, tmp_path, stage):
    start = without_dropout(base, tmp_path)
    run_stage(
        stage, data, start, tmp_path / "one", "--batch_size", 8, "--accumulation_steps", 1, "--max_steps", 4, *SLOW
    )
    flags = flags_of(stage, data, start, tmp_path / "two", "--batch_size", 4, "--accumulation_steps", 1, *SLOW)
    call(SCRIPTS[stage], *flags, "--max_steps", 4, world=2)
    assert largest_difference(final(tmp_path / "one", stage), final(tmp_path / "two", stage)) < 1e-5


@pytest.mark.parametrize(
    ("stage", "flags"), [*((stage, ()) for stage in STAGES), ("dpo", ("--use_lora", "--rank", 2))], ids=str
)
def test_a_stopped_and_continued_run_ends_bit_equal(data, base, tmp_path, stage, flags, monkeypatch):
    more = ("--batch_size", 4, "--accumulation_steps", 2, "--max_steps", 8, "--save_interval", 2, *flags)
    run_stage(stage, data, base, tmp_path / "a", *more)

    from trainer import loop

    once, steps = loop.step, []

    def dies_in_step_5(*given):
        steps.append(1)
        if len(steps) == 5:
            raise OSError("power cut")
        return once(*given)

    monkeypatch.setattr(loop, "step", dies_in_step_5)
    with pytest.raises(OSError, match="power cut"):
        run_stage(stage, data, base, tmp_path / "b", *more)
    monkeypatch.undo()
    run_stage(stage, data, base, tmp_path / "b", *more)
    name = f"{stage}_32_resume.pth"
    whole, resumed = load_file(tmp_path / "a" / name), load_file(tmp_path / "b" / name)
    assert all(torch.equal(whole["model"][k], resumed["model"][k]) for k in whole["model"])
    for a, b in zip(whole["optimizers"], resumed["optimizers"], strict=True):
        assert all(torch.equal(a["state"][i][k], b["state"][i][k]) for i in a["state"] for k in a["state"][i])
    lines = (tmp_path / "b" / f"{stage}_32.jsonl").read_text(encoding="utf-8").splitlines()
    assert [r["step"] for r in map(json.loads, lines) if "loss" in r] == list(range(1, 9))


# ---- what each stage leaves behind ---------------------------------------------------------------------------------
def test_the_stages_follow_each_other_without_being_told_where_the_last_one_is(data, base, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(base.parent, out)
    for stage in STAGES:
        flags = flags_of(stage, data, base, out, "--max_steps", 3, "--batch_size", 4)
        at = flags.index("--init_from")
        call(SCRIPTS[stage], *flags[:at], *flags[at + 2 :])
    about = {s: json.loads((out / f"{s}_32.json").read_text(encoding="utf-8")) for s in STAGES}
    starts = [about[s]["settings"]["init_from"].rpartition("/")[2] for s in STAGES]
    assert starts == ["pretrain_32.pth", "full_sft_32.pth", "full_sft_32.pth"]
    assert all(about[s]["val_step"] == about[s]["step"] == 3 for s in STAGES)
    assert 0.1 < about["dpo"]["val_loss"] < math.log(2) - 0.01  # three steps away from its reference
    assert about["full_sft"]["val_loss"] == pytest.approx(math.log(320), abs=0.5)  # and from a base that knows nothing
    said = call("2-eval.py", "--out_dir", out, "--max_new_tokens", 5, "--temperature", 0)
    assert "dpo_32.pth: dpo" in said and "» 你是谁？" in said
    (tmp_path / "p.txt").write_text("你好\n", encoding="utf-8")
    answers = tmp_path / "a.jsonl"
    said = call("2-eval.py", "--out_dir", out, "--lora", "sft", "--prompts", tmp_path / "p.txt", "--out", answers)
    assert "full_sft_32.pth" in said and "adapter" in said and json.loads(answers.read_text(encoding="utf-8"))
    (tmp_path / "q.jsonl").write_text('{"prompt": "你好", "accept": ["好"]}\n', encoding="utf-8")
    ask = ["-m", "evaluation.answers", "--questions", tmp_path / "q.jsonl", "--out_dir", out, "--max_new_tokens", 5]
    assert "full_sft_32.pth with sft: " in call(*ask, "--lora", "sft")  # not the newest: the base it was trained on
    said = call(*ask, "--lora", "sft", "--model", out / "lora_sft_32.pth", code=1)
    assert "was trained on" in said and "a merged model contains its adapter already" in said


def test_lora_leaves_the_base_alone_and_keeps_little_optimizer_state(data, base, tmp_path, capsys):
    run_stage("lora_sft", data, base, tmp_path, "--max_steps", 4, "--batch_size", 4, "--rank", 2)
    said = capsys.readouterr().out
    state = load_file(tmp_path / "lora_sft_32_resume.pth")
    before = load_file(base)
    assert all(torch.equal(state["model"][k], before[k]) for k in before)  # bit for bit
    moved = sum(p["exp_avg"].numel() for o in state["optimizers"] for p in o["state"].values())
    adapter = sum(v.numel() for k, v in state["model"].items() if ".lora_" in k)
    assert moved == adapter and f"trained   {adapter:,} of them" in said and "MB less than for all" in said
    assert largest_difference(load_file(tmp_path / "lora_sft_32.pth"), before) > 1e-4
    assert (tmp_path / "lora_sft_32" / "adapter_model.safetensors").is_file()


def test_lora_dpo_trains_an_adapter_only(data, base, tmp_path):
    run_stage("dpo", data, base, tmp_path, "--max_steps", 4, "--batch_size", 4, "--use_lora", "--rank", 2)
    state, before = load_file(tmp_path / "dpo_32_resume.pth"), load_file(base)
    assert all(torch.equal(state["model"][k], before[k]) for k in before)
    assert (tmp_path / "dpo_32" / "adapter_config.json").is_file()


def test_the_policy_trains_without_dropout_as_its_reference_was_scored(data, base, tmp_path):
    run_stage("dpo", data, base, tmp_path, "--max_steps", 1, "--batch_size", 4)
    first = json.loads((tmp_path / "dpo_32.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert first["step"] == 1 and first["loss"] == pytest.approx(math.log(2), abs=1e-5)  # the base has dropout 0.1


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "simpo", "orpo"])
def test_every_preference_loss_learns_its_pairs(data, base, tmp_path, loss):
    fast = ("--epochs", 8, "--batch_size", 4, "--accumulation_steps", 1, "--learning_rate", 1e-2)
    run_stage("dpo", data, base, tmp_path, *fast, "--loss", loss)
    lines = (tmp_path / "dpo_32.jsonl").read_text(encoding="utf-8").splitlines()
    records = [r for r in map(json.loads, lines) if "loss" in r]
    last = records[-10:]
    assert sum(r["accuracy"] for r in last) / len(last) > 0.9 and last[-1]["margin"] > records[0]["margin"]
    if loss == "sigmoid":
        first = next(r for r in map(json.loads, lines) if r["step"] == 0)
        assert first["val_loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert first["val_margin"] == pytest.approx(0, abs=1e-5)


def test_a_v1_file_without_description_starts_from_the_right_loss(data, base, tmp_path, tokenizer_dir):
    alone = tmp_path / "v1" / "pretrain_32.pth"
    alone.parent.mkdir()
    torch.save(load_file(base), alone)
    run_stage("full_sft", data, alone, tmp_path, "--max_steps", 1, "--tokenizer", tokenizer_dir, "--max_seq_len", 48)
    lines = (tmp_path / "full_sft_32.jsonl").read_text(encoding="utf-8").splitlines()
    start = next(r for r in map(json.loads, lines) if r["step"] == 0)["val_loss"]
    model, _ = load_model(alone, max_seq_len=48)
    tokenizer = load_tokenizer(tokenizer_dir)
    [file] = (tmp_path / "cache").glob("*.jsonl")
    rows = SFTDataset(file, 48, tokenizer, tmp_path / "cache")
    from model.dataset import split_rows

    _, held_out = split_rows(len(rows), 0.1, 1337)
    batch = collate([rows[int(i)] for i in held_out])
    with torch.no_grad():
        expected = language_model_loss(model, batch, doc_mask=True).loss / batch.units
    assert start == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("stage", ["full_sft", "lora_sft"])
def test_replay_and_noise_train_and_are_told(data, base, tmp_path, tokenizer_dir, capsys, stage):
    text = tmp_path / "t.jsonl"
    text.write_text("".join(json.dumps({"text": f"北京天气{i}"}) + "\n" for i in range(80)), encoding="utf-8")
    out = tmp_path / "t.bin"
    call("data_process.py", "pretrain", "--input", text, "--output", out, "--tokenizer", tokenizer_dir)
    more = ("--max_steps", 2, "--batch_size", 4, "--neftune_alpha", 5, "--replay", 0.25, "--replay_path", out)
    run_stage(stage, data, base, tmp_path / "out", *more)
    shown = capsys.readouterr().out
    said = re.search(r"replay    (\d+) rows of .*data      (\d+) rows", shown, re.DOTALL)
    assert int(said[1]) / int(said[2]) == pytest.approx(0.25, abs=0.05) and "asked for" not in shown
    run_stage(stage, data, base, tmp_path / "more", *more[:-4], "--replay", 0.95, "--replay_path", out)
    shown = capsys.readouterr().out
    said = re.search(
        r"replay    (\d+) rows of .*: (\d+)% of all, 95% asked for.*data      (\d+) rows", shown, re.DOTALL
    )
    assert round(100 * int(said[1]) / int(said[3])) == int(said[2]) < 95


def test_the_cache_knows_which_files_it_was_made_from(tmp_path):
    def clean(kind, path, output):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(b"".join(f.read_bytes() for f in sorted([path, *path.glob("*")]) if f.is_file()))

    def trained_on(path):
        cfg = SFTConfig(data_path=str(path), out_dir=str(tmp_path / "out"))
        return prepared("sft", cfg, clean).read_text(encoding="utf-8")

    for language in ("zh", "en"):  # the same name, size and time
        (tmp_path / language).mkdir()
        (tmp_path / language / "train.jsonl").write_text(language, encoding="utf-8")
        os.utime(tmp_path / language / "train.jsonl", ns=(10**18, 10**18))
    assert [trained_on(tmp_path / x / "train.jsonl") for x in ("zh", "en")] == ["zh", "en"]
    (tmp_path / "zh" / "old.jsonl").write_text("1", encoding="utf-8")
    assert trained_on(tmp_path / "zh") == "1zh"
    (tmp_path / "zh" / "old.jsonl").write_text("2", encoding="utf-8")  # replaced by a file that is older: cp -p
    os.utime(tmp_path / "zh" / "old.jsonl", ns=(10**17, 10**17))
    os.utime(tmp_path / "zh", ns=(10**17, 10**17))
    assert trained_on(tmp_path / "zh") == "2zh"


# 750 short chats or pairs, as in the demo, are about 20,000 or 2 x 20,000 tokens: 40 rows of 512
@pytest.mark.parametrize(("stage", "rows", "steps"), [("full_sft", 400, 50), ("lora_sft", 40, 50), ("dpo", 100, 50)])
def test_the_defaults_of_a_stage_train_a_small_set(stage, rows, steps):
    cfg = runpy.run_path(str(ROOT / SCRIPTS[stage]))["parse"]([])
    order = RowOrder(range(rows), cfg.batch_size, cfg.accumulation_steps, cfg.seed)
    assert cfg.epochs * order.steps_per_epoch >= steps


def test_a_run_of_few_steps_is_told_so_unless_it_was_asked_for(data, base, tmp_path, capsys):
    run_stage("full_sft", data, base, tmp_path, "--epochs", 1)
    assert re.search(r"\d steps hardly train .*--batch_size .*--epochs", capsys.readouterr().out)
    run_stage("full_sft", data, base, tmp_path, "--max_steps", 2)
    assert "hardly train" not in capsys.readouterr().out


# ---- what goes wrong -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", STAGES)
def test_bad_use_is_told_in_one_line(data, base, tmp_path, stage):
    script, out = SCRIPTS[stage], tmp_path / "out"
    said = call(script, "--out_dir", out, "--data_path", data / "sft.jsonl", code=1)
    assert "no checkpoint at" in said and "Make it with: python " in said
    said = call(script, "--init_from", base, "--out_dir", out, "--data_path", tmp_path / "none.jsonl", code=1)
    assert "no data at" in said and "data_process.py" in said
    (tmp_path / "bad.jsonl").write_text('{"x": 1}\n', encoding="utf-8")
    said = call(script, "--init_from", base, "--out_dir", out, "--data_path", tmp_path / "bad.jsonl", code=1)
    assert "no usable record" in said and "unknown schema" in said
    assert not list(out.glob("*.pth"))


def test_replay_wants_a_bin_and_says_how_to_make_one(data, base, tmp_path):
    raw = data / "sft.jsonl"
    with pytest.raises(ValueError, match=r"sft.jsonl is not a .bin of ids.*pretrain --input .*--output .*sft.bin"):
        run_stage("full_sft", data, base, tmp_path, "--replay", 0.1, "--replay_path", raw)


def test_another_checkpoint_to_start_from_is_another_run(data, base, tmp_path, tokenizer_dir):
    run_stage("full_sft", data, base, tmp_path, "--max_steps", 2, "--batch_size", 4)
    other = make_base(tmp_path, tokenizer_dir)
    state = load_file(other)
    state["norm.weight"] += 1
    torch.save(state, other)
    with pytest.raises(ValueError, match="init_from"):
        run_stage("full_sft", data, other, tmp_path, "--max_steps", 4, "--batch_size", 4)


@pytest.mark.parametrize("given, used", [((), 0.1), (("--dropout", "0"), 0.0), (("--dropout", "0.3"), 0.3)])
def test_a_fine_tuning_run_drops_what_it_is_told_to_or_what_the_checkpoint_did(data, base, tmp_path, given, used):
    run_stage("full_sft", data, base, tmp_path, "--max_steps", 1, *given)
    model, _ = load_model(tmp_path / "full_sft_32.pth")
    assert model.cfg.dropout == used and model.layers[1].feed_forward.dropout == used
    with pytest.raises(ValueError, match="--dropout is 1.0; it must be in"):
        SFTConfig(dropout=1.0)
