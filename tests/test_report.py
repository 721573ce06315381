"""The report: one offline page from whatever an out_dir holds, however broken."""

import http.server
import json
import math
import random
import re
import shutil
import struct
import subprocess
import threading
import zlib
from dataclasses import asdict
from html.parser import HTMLParser

import pytest
import torch

from evaluation import report
from evaluation.markup import VOID
from evaluation.report_charts import smooth, thin, ticks
from evaluation.report_data import Stage, name_in, read_all
from evaluation.report_page import page
from evaluation.report_stages import n_params
from model.LMConfig import PRESETS, LMConfig, config_for
from model.model import Transformer
from trainer.args import run

ATTACK = "<script>alert(1)</script>"
SHAPE = asdict(LMConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400))
WIDTHS, SCHEMES = (390, 1280), ("light", "dark")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write(file, value):
    """A value as .json, a list of records as .jsonl, text as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl" and not isinstance(value, str):
        value = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in value)
    file.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), encoding="utf-8")


def log(steps, name, dpo=False, moe=False):
    """Records as trainer/metrics.py writes them."""
    records = [{"step": 0, "total": steps, "val_loss": 6.0}]
    for step in range(1, steps + 1):
        loss = 1 + 5 * math.exp(-4 * step / steps)
        speed = 900 + 7 * (step % 5)
        record = {"step": step, "total": steps, "epoch": 0.1, "loss": loss, "lr": 1e-3, "norm": 2 / step}
        record |= {"tokens": 100 * step, "tokens_per_second": speed, "mfu": speed / 2000, "seconds_left": 1}
        record |= {"margin": step / 9, "accuracy": 0.75, "chosen_reward": 0.1, "rejected_reward": -1} if dpo else {}
        records.append(record | ({"expert_share": [0.3, 0.2, 0.25, 0.25]} if moe else {}))
    last = {"step": steps, "total": steps, "val_loss": 1.25, "reference_loss": 1.5}
    return [*records, last | ({"val_margin": 3, "val_accuracy": 0.875} if dpo else {"val_bits_per_byte": 0.375})]


def description(out, name, **more):
    """What lies beside a checkpoint."""
    settings = {"data_path": str(out / "pretrain.bin"), "learning_rate": 1e-3, "init_from": None}
    facts = {"stage": name, "config": SHAPE, "tokenizer_hash": "abc123", "tokenizer": str(out / "tokenizer")}
    facts |= {"step": 60, "tokens": 6000, "seed": 1337, "settings": settings, "dtype": "float32", "world_size": 1}
    facts |= {"versions": {"torch": "2.13.0"}, "machine": "a laptop", "command": f"script.py --name {name}"}
    return facts | {"saved": "2026-11-21 12:00:00"} | more


def summary(stage, right):
    """A summary.json with 2 subjects of 50 questions."""
    part = lambda n: {"right": n, "questions": 50, "accuracy": n / 50, "interval_95": [n / 50 - 0.1, n / 50 + 0.1]}  # noqa: E731
    subjects = {"astronomy": {"name": "天文学", "category": "STEM", **part(right)}}
    subjects["logic"] = {"name": ATTACK, "category": "Other", **part(right)}
    scoring = {"right": 2 * right, "answered": 100, "accuracy": right / 50}
    scoring |= {"interval_95": [right / 50 - 0.07, right / 50 + 0.07], "macro": {"accuracy": 0.5}, "p_chance": 1e-9}
    scoring |= {"chosen": {"A": 0.1, "B": 0.2, "C": 0.3, "D": 0.4}, "verdict": f"clearly above guessing {ATTACK}"}
    scoring |= {"rotated": {"accuracy": [0.3, 0.4], "mean": 0.35, "consistent": 0.12}, "subjects": subjects}
    scoring["categories"] = {"STEM": part(right), "Other": part(right)}
    facts = {"model": f"out/{stage}_32.pth", "stage": stage, "data_dir": "exam", "split": "val", "shots": 0}
    facts |= {
        "prompt": {"cloze": "plain", "letter": "chat"},
        "questions": 100,
        "problems": {"too long": 3},
        "chance": 0.25,
        "command": "ceval_eval.py",
    }
    return facts | {"scorings": {"cloze_sum": scoring, "letter": scoring | {"accuracy": 0.26}}}


def text_figures():
    """What data_process.py stats writes."""
    lengths = {"mean": 70.5, "median": 64, "shortest": 1, "longest": 900, "percentiles": {"5": 3, "95": 700.5}}
    lengths["histogram"] = [[1, 1, 4], [2, 3, 0], [4, 7, 96], [8, 15, 50]]
    total = {"documents": 150, "characters": 4567, "bytes": 9876, "tokens": None, "characters_per_token": 1.5}
    total |= {"bytes_per_token": 3.25, "duplicates": 3, "duplicate_rate": 0.02, "dropped": {"bad JSON <i>": 7}}
    total |= {"lengths": {"characters": lengths, "tokens": None}, "scripts": {"Chinese": 300, "English": 100}}
    total |= {"languages": {"simplified Chinese": 120, "English": 30, "digits": 0}}
    files = {"百科.jsonl": total, f"{ATTACK}.jsonl": total}
    figures = {
        "format": "data statistics",
        "total": total,
        "files": files,
        "domains": [["例子" * 40, 75], [ATTACK, 15]],
    }
    return figures | {"exactness": {"percentiles": 0.0078}}


def fill(out):
    """An out_dir after all stages."""
    out.mkdir()
    for name in ("pretrain_32", "full_sft_32", "lora_persona_32"):
        write(out / f"{name}.json", description(out, name))
        write(out / f"{name}.jsonl", log(60, name))
    write(out / "dpo_32.json", description(out, "dpo"))
    write(out / "dpo_32.jsonl", log(10, "dpo", dpo=True))
    write(out / "pretrain_32_moe.jsonl", log(50, "moe", moe=True))
    (out / "pretrain_32_resume.pth").touch()
    bins = {"format": "uint16 ids, <s>text</s> end to end", "tokens": 5000, "documents": 99, "text_bytes": 12345}
    bins |= {"characters": 10000, "sources": [{"path": "原文.jsonl", "bytes": 77, "sha256": "f" * 64}]}
    for part, documents in (("", 99), ("_val", 1)):
        (out / f"pretrain{part}.bin").touch()
        own = {"documents": documents, "part": "val" if part else "train", "dropped": {"duplicate <b>": 41}}
        write(out / f"pretrain{part}.json", bins | own)
    points = [("parameters", "4.6 M", 1, 8000), ("parameters", "9.2 M", 2, 3200), ("processes", "1", 1, 8000)]
    points = [dict(zip(("what", "label", "factor", "tokens_per_second"), p)) for p in points]
    write(out / "growth.json", {"machine": "a laptop", "date": "today", "command": "growth.py", "points": points})
    write(out / "counts.json", {"seed": 0, "facts": 1234, "facts_per_relation": {"a": 1}})
    write(out / "text.json", text_figures())
    (out / "tokenizer").mkdir()
    write(out / "tokenizer" / "tokenizer.json", {})
    figures = {"vocab_size": 6400, "hash": "abc123", "measured_on": "held-out text", "texts": 50, "round_trip": 50}
    figures |= {"characters_per_token": {"Chinese": 1.725, "code": None}, "characters": {"Chinese": 4321}}
    figures |= {
        "longest_tokens": ["中华人民共和国", ATTACK],
        "dirty_tokens": {"white space": {"count": 2, "first": ["  "]}},
    }
    write(out / "tokenizer" / "report.json", figures)
    for stage, right in (("pretrain", 45), ("full_sft", 40)):
        write(out / "ceval" / stage / "summary.json", summary(stage, right))
    pair = {"first": "out/pretrain_32.pth", "second": "out/dpo_32.pth", "scoring": "cloze_sum", "only_first": 4}
    pair |= {"only_second": 9, "both": 80, "neither": 7, "p_value": 0.27, "verdict": "no difference to be seen"}
    flipped = {"scoring": "cloze_sum", "subject": "logic", "id": "7", "question": f"哪一个？{ATTACK}", "answer": "B"}
    flipped["choices"] = {"out/pretrain_32.pth": "A", "out/dpo_32.pth": "B"}
    write(out / "ceval" / "comparison.json", {"models": [], "pairs": [pair], "flipped": [flipped]})
    for name, answer in (("full_sft_32", "你好，我在。"), ("dpo_32", ATTACK)):
        write(out / "samples" / f"{name}.jsonl", [{"prompt": "你好！", "model": name, "answer": answer}])
    return out


@pytest.fixture
def out(tmp_path):
    """A full out_dir that a test may change."""
    return fill(tmp_path / "out")


def made(out, *flags):
    """The page of an out_dir, made as a person makes it."""
    with pytest.raises(SystemExit) as stopped:
        run(report.main, ["--out_dir", str(out), *map(str, flags)])
    assert not stopped.value.code
    return (out / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Text, tags and attributes of a page; complains about tags that do not balance."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"{tag} has an attribute twice"
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)


def words_of(text):
    """What a person reads, white space made one."""
    return re.sub(r"\s+", " ", " ".join(Reader(text).words))


# --- what it holds ----------------------------------------------------------------------------------------------------


def test_the_page_holds_every_part_of_a_run(out):
    said = words_of(made(out))
    for part in (
        *("Data", "Tokenizer", "Training", "Exam", "Samples", "How it was made", "State of 2026-11-21 12:00:00"),
        *("99", "1.0 %", "12,345", "duplicate <b>", "原文.jsonl", "1,234"),  # data
        *("6,400 ids, hash abc123; 50 of 50 texts", "1.725", "中华人民共和国"),  # tokenizer
        *("What growing costs", "9.2 M", "3,200", "0.40", "parameters 0.4", "reference 1.5"),
        *(
            "6,000",
            "1.250",
            "0.375",
            "lora_persona_32",
            "87.5 % of pairs",
            "Share of each expert",
            "Reward margin",
        ),
        *("90.0 %", "[83.0, 97.0]", "90 / 100", "< 0.0001", "10 / 20 / 30 / 40", "天文学", "3 × too long", "12.0 %"),
        *("no difference to be seen", "pretrain_32 → dpo_32", "哪一个？", "dpo_32: B ✓"),
        *("你好！", "你好，我在。", "script.py --name full_sft_32", "a laptop", "torch 2.13.0", "1337"),
    ):
        assert part in said, part
    assert "Could not be read" not in said


def test_statistics_of_the_text_are_drawn_with_a_column_per_length_and_a_bar_per_share(out):
    text = made(out)
    said = words_of(text)
    for part in (
        *("What the text is", "Half of the documents have at most 64 characters", "百科.jsonl", "bad JSON <i>"),
        *("between 3 and 700 (right within 0.8 %)", "3 documents (2.00 %) are exact copies of an earlier one."),
        *("4,567", "9,876", "3.25", "75.0 %", "80.0 %", "50.0 %", "10.0 %", "例子例子"),
    ):
        assert part in said, part
    titled = r'<rect[^>]*%s="([\d.]+)"[^>]*><title>%s'
    columns = re.findall(titled % ("height", r"([\d,]+) to ([\d,]+) characters: (\d+) documents"), text)
    heights = {int(n): float(tall) for tall, _, _, n in columns}
    assert [(low, high) for _, low, high, _ in columns] == [("1", "1"), ("2", "3"), ("4", "7"), ("8", "15")]
    assert heights[0] == 0 and heights[50] / heights[96] == pytest.approx(50 / 96, abs=0.01)
    bars = {name: float(width) for width, name in re.findall(titled % ("width", "(Chinese|English): [13]00,"), text)}
    assert bars == {"Chinese": 270, "English": 90}  # of 360
    assert "digits" not in said and not re.search("(例子){30}", re.sub("<title>.*?</title>|aria-label=.*?>", "", text))


def test_statistics_elsewhere_are_found_by_name_and_other_json_is_not_taken_for_them(out, tmp_path):
    shutil.move(out / "text.json", tmp_path / "figures.json")
    write(out / "other.json", {"text": '"format": "data statistics"' * 9, "total": {}})
    (out / "folder.json").mkdir()
    assert "What the text is" not in words_of(made(out))
    assert "What the text is" in words_of(made(out, "--data", tmp_path / "figures.json"))
    assert words_of(made(out, "--data", tmp_path, tmp_path / "figures.json")).count("What the text is") == 1
    (tmp_path / "alone").mkdir()
    shutil.move(tmp_path / "figures.json", tmp_path / "alone" / "x.json")
    assert "What the text is" in words_of(made(tmp_path / "alone"))


def test_the_first_paragraph_tells_the_result_and_when_it_is_no_better_than_guessing(out):
    lead = lambda: re.search(r'class="lead">(.*?)</p>', made(out))[1].replace("\u00a0", " ")  # noqa: E731
    assert "pretrain_32: 90.0 % of 100 questions [83.0, 97.0]; guessing gives 25 %." in lead()
    assert "its loss is 1.250 nats per token, 0.375 bits per byte" in lead()
    for stage in ("pretrain", "full_sft"):
        write(out / "ceval" / stage / "summary.json", summary(stage, 13))
    assert "26.0 % of 100 questions [19.0, 33.0]; guessing gives 25 %, so this is no better than guessing." in lead()


def test_training_time_is_tokens_by_speed(out):
    stage = next(s for s in read_all(out).stages if s.name == "pretrain_32")
    assert stage.seconds() == pytest.approx(sum(100 / (900 + 7 * (step % 5)) for step in range(1, 61)))
    assert Stage("x", "dpo").seconds() is None


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_counted_as_the_model_counts_them(preset):
    cfg = config_for(preset)
    with torch.device("meta"):
        assert n_params({"config": asdict(cfg)}) == Transformer(cfg).n_params()


def test_every_row_of_an_exam_is_a_dot_with_its_interval_and_there_is_a_line_for_guessing(out):
    text = made(out)
    assert len(re.findall(r"<circle[^>]*><title>[^<]*95 % interval[^<]*</title>", text)) == 2 * 4  # wide and narrow
    assert len(re.findall(r'class="level"', text)) >= 2


# --- what is missing, broken or hostile -------------------------------------------------------------------------------


def test_text_of_files_is_never_markup(out):
    text = made(out)
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "duplicate &lt;b&gt;" in text


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
    write(tmp_path / "out" / "pretrain_32.jsonl", log(3, "x"))
    said = words_of(made(tmp_path / "out"))
    for script in (
        "train_tokenizer.py",
        "data_process.py pretrain",
        "3-full_sft.py",
        "4-lora_sft.py",
        "5-dpo_train.py",
    ):
        assert f"Made by: python {script}" in said
    for script in ("ceval_eval.py", "2-eval.py"):
        assert f"Made by: python {script} --model {tmp_path}/out/NAME.pth" in said
    assert "pretrain_32 has no description beside it" in said and "python 1-pretrain.py" not in said


@pytest.mark.parametrize("hint", [None, "run/pretrain_32.pth"])
def test_an_out_dir_with_nothing_is_one_line_and_exit_code_1(tmp_path, capsys, hint):
    (tmp_path / "run").mkdir()
    if hint:
        (tmp_path / hint).touch()
    for folder, said in ((tmp_path, "run" if hint else "make demo"), (tmp_path / "nowhere", "there is no")):
        with pytest.raises(SystemExit) as stopped:
            run(report.main, ["--out_dir", str(folder)])
        error = capsys.readouterr().err
        assert stopped.value.code == 1 and error.count("\n") == 1 and said in error
    assert not list(tmp_path.rglob("*.html"))


def test_broken_files_are_named_and_cost_nothing_else(out, capsys):
    write(out / "ceval" / "full_sft" / "summary.json", '{"scorings": {"cloze')
    write(out / "ceval" / "comparison.json", "[1]")
    write(out / "ceval" / "other" / "summary.json", {"loss": 1})
    (out / "full_sft_32.json").write_bytes(b"\xff\xfe\x00")
    with open(out / "pretrain_32.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 61, "loss": NaN, "lr": Infinity, "norm": 1}\n{"step": 62, "lo')
    text = made(out)
    said = words_of(text)
    printed = capsys.readouterr().out
    for file in ("full_sft/summary.json", "ceval/comparison.json", "other/summary.json", "full_sft_32.json"):
        assert re.search(f"{file} could not be read: it (holds|is)", said) and f"{file} could not be read" in printed
    assert "pretrain_32.jsonl: lines that are not whole are left out: 1, the first is line 64" in said
    assert "pretrain_32.jsonl: values that are no finite numbers: 2" in said
    assert "90.0 %" in said and "你好，我在。" in said and not re.search(r"\b(nan|inf)\b", said)
    assert not re.search(r'd="[^"]*(nan|inf)', text)


def test_only_a_page_is_replaced_by_a_page(out, tmp_path, capsys):
    raw = tmp_path / "raw.html"
    raw.write_text("mine", encoding="utf-8")
    for output, words in ((raw, "holds something else"), (tmp_path / "a.json", "end in .html")):
        with pytest.raises(SystemExit) as stopped:
            run(report.main, ["--out_dir", str(out), "--output", str(output)])
        assert stopped.value.code == 1 and words in capsys.readouterr().err
    assert raw.read_text(encoding="utf-8") == "mine" and not (tmp_path / "a.json").exists()


def test_data_without_figures_are_named_and_how_to_get_some(out, tmp_path):
    raw = tmp_path / "raw.jsonl"
    write(raw, {"text": "春"})
    found = read_all(out, [raw, out])
    [problem] = [p for p in found.problems if "no figures to show" in p]
    assert f"{raw} has no figures" in problem and f"stats --input {raw} --output {out / 'stats.json'}" in problem


def test_any_value_anywhere_may_be_anything(out):
    rng = random.Random(0)
    strange = [None, ATTACK, [], {}, True, -1, math.inf, math.nan, 10**400, "\ud800\x00", [1, "a"], {"a": [1]}, 5e-324]

    def spoil(value, share):
        if rng.random() < share:
            return rng.choice(strange)
        if isinstance(value, dict):
            return {key: spoil(v, share) for key, v in value.items()}
        return [spoil(v, share) for v in value] if isinstance(value, list) else value

    whole = {f: f.read_text(encoding="utf-8") for f in sorted(out.rglob("*.json*")) if f.name != "tokenizer.json"}
    for share in [0.01, 0.05, 0.3] * 5:
        for file, text in whole.items():
            records = [spoil(json.loads(line), share) for line in text.splitlines()]
            file.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        text = page(read_all(out), "today")
        assert "<script" not in text and Reader(text).seen
        text.encode("utf-8")


# --- the page as HTML -------------------------------------------------------------------------------------------------


def test_the_page_is_whole_html_that_loads_nothing(out):
    text = made(out)
    tags = Reader(text).seen
    assert text.startswith("<!doctype html>") and ("meta", {"charset": "utf-8"}) in tags
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in tags}
    for tag, attributes in tags:
        assert not {"src", "srcset", "data", "onload", "onclick"} & set(attributes), tag
        assert all(attributes.get(key, "#").startswith("#") for key in ("href", "xlink:href")), attributes
    assert "@import" not in text and all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {a["href"][1:] for tag, a in tags if tag == "a"} <= set(ids)


def test_tables_have_headers_and_pictures_have_words(out):
    tags = Reader(made(out)).seen
    assert all(a.get("scope") in ("col", "row") for tag, a in tags if tag == "th")
    pictures = [a for tag, a in tags if tag == "svg"]
    assert len(pictures) > 20 and all(len(a["aria-label"]) > 10 and a["role"] in ("img", "group") for a in pictures)


def test_the_same_files_give_the_same_bytes(out):
    first = made(out)
    assert made(out) == first
    assert made(out, "--data", out, out / "pretrain.bin") == first  # the same data, named again


def test_data_elsewhere_are_found_by_name_and_through_the_checkpoint(out, tmp_path):
    for file in ("pretrain.bin", "pretrain.json", "counts.json"):
        (tmp_path / "data").mkdir(exist_ok=True)
        shutil.move(out / file, tmp_path / "data" / file)
    assert "duplicate" not in made(out)
    assert "duplicate" in made(out, "--data", tmp_path / "data" / "pretrain.bin")
    about = description(out, "pretrain")
    about["settings"]["data_path"] = str(tmp_path / "data" / "pretrain.bin")
    write(out / "pretrain_32.json", about)
    said = words_of(made(out))
    assert "duplicate" in said and "1,234" in said


def test_one_step_makes_no_curve_and_a_few_make_whole_steps_on_the_axis(tmp_path):
    write(tmp_path / "out" / "pretrain_32.jsonl", log(3, "x")[-1:])
    text = made(tmp_path / "out")
    assert 'class="chart"' not in text and "too few steps for curves" in text
    write(tmp_path / "out" / "pretrain_32.jsonl", log(3, "x"))
    (chart, *_) = re.findall(r'<div class="wide"><figure class="chart">.*?</svg>', made(tmp_path / "out"))
    assert re.findall(r'y="294" text-anchor="\w+">([^<]*)<', chart) == ["0", "1", "2", "3"]


# --- the arithmetic of charts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("span", [(0, 1), (0, 950), (-3.2, 0.8), (2e-7, 3e-3), (0, 1e300), (1, 1 + 1e-15)])
def test_ticks_are_round_few_and_inside(span):
    found = ticks(*span)
    assert 1 <= len(found) <= 6
    assert all(span[0] - 1e-9 * abs(span[0]) <= t <= span[1] * (1 + 1e-9) for t in found)


def test_a_smoothed_line_starts_at_its_first_value_keeps_a_constant_and_its_gaps():
    assert [y for _, y in smooth([(i, 3.0) for i in range(100)])] == pytest.approx([3.0] * 100)
    gap = smooth([(0, 1.0), (1, None), (2, 5.0)])
    assert gap[0] == (0, 1.0) and gap[1] == (1, None) and gap[2][1] == 5


def test_thinning_keeps_order_spikes_and_gaps():
    points = [(i, math.sin(i)) for i in range(10_000)]
    points[4321], points[77], points[5000] = (4321, 99.0), (77, -99.0), (5000, None)
    kept = thin(points)
    assert len(kept) <= 250 and kept == sorted(kept, key=lambda p: p[0])
    assert {points[4321], points[77], points[5000]} <= set(kept)


# --- as a browser shows it --------------------------------------------------------------------------------------------


# A frame of exactly the width in question, since a window has a smallest one of its own; it tells what it measures.
PROBE = """<iframe id="page" src="out/report.html" style="width:%dpx; height:900px; border:0"></iframe>
<script>page.onload = () => {
  const view = page.contentWindow, root = view.document.documentElement, style = view.getComputedStyle(root.lastChild)
  view.document.querySelectorAll("details").forEach(part => part.open = true)
  const told = [root.scrollWidth, view.innerWidth, root.scrollHeight, style.backgroundColor, style.color]
  document.title = told.join("|")
}</script>"""


def browse(*words):
    """Runs Chromium without a window and returns what it prints."""
    quiet = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    done = subprocess.run([CHROMIUM, *quiet, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def pixels(file):
    """The pixels of a screenshot as bytes; filters are left in, which tells blank from not blank all the same."""
    data, at, found = file.read_bytes(), 8, b""
    size = struct.unpack(">II", data[16:24])
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            found += data[at + 8 : at + 8 + length]
        at += length + 12
    return size, zlib.decompress(found)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome here; apt-get install chromium")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_shows_it_without_sideways_scrolling(out, tmp_path, width, scheme):
    made(out)
    (tmp_path / "probe.html").write_text(PROBE % width, encoding="utf-8")
    colours = f"--blink-settings=preferredColorScheme={SCHEMES.index(scheme) ^ 1}"
    with served(tmp_path) as address:
        dom = browse(colours, "--virtual-time-budget=5000", "--dump-dom", f"{address}/probe.html")
    needed, given, tall, paper, ink = re.search(r"<title>(.*?)</title>", dom)[1].split("|")
    assert int(needed) <= int(given) == width and int(tall) > 3000
    light = lambda colour: sum(map(int, re.findall(r"\d+", colour)[:3])) > 3 * 128  # noqa: E731
    assert (light(paper), light(ink)) == ((True, False) if scheme == "light" else (False, True))
    shot = tmp_path / "shot.png"
    page_at = (out / "report.html").as_uri()
    browse(colours, f"--window-size={width},900", f"--screenshot={shot}", page_at)
    size, data = pixels(shot)
    assert size == (width, 900) and len(set(data[:: max(1, len(data) // 100_000)])) > 20


class served:
    """A context in which a folder is at http://127.0.0.1:PORT; a page may not look into a frame of a file."""

    def __init__(self, folder):
        quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: quiet(*a, directory=str(folder)))

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def test_two_models_of_one_name_are_told_apart_by_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = lambda model: name_in(tmp_path / "out/demo", {"model": model})  # noqa: E731
    assert named("out/demo/full_sft_256.pth") == "full_sft_256"
    assert named(str(tmp_path / "out/demo/letters/full_sft_256.pth")) == "letters/full_sft_256"
    assert named("elsewhere/full_sft_256.pth") == "full_sft_256" and named("hub/model") == "model"
