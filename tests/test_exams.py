"""Exams: every published layout, files with faults, scores counted by hand, intervals from other libraries."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels
from statsmodels.stats.proportion import proportion_confint

from evaluation import exam_results
from evaluation.comparison import flipped, pair, table_of_samples
from evaluation.exams import LETTERS, known_subjects, read_exam, to_answer
from evaluation.intervals import macro_interval, mcnemar, p_of_guessing, wilson
from evaluation.multiple_choice import Prompts, score_cloze, score_exam, score_letter, score_prior
from model.chat import load_tokenizer

CEVAL = "id,question,A,B,C,D,answer\n"
ROWS = '0,"第一题，\n用$x^2$计算",1,2,3,4,C\n1,第二题,甲,乙丙,"丁,戊",己庚辛,A\n2,第三题,Ａ,Ｂ,Ｃ,Ｄ,B\n'


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return folder


# ---- reading ---------------------------------------------------------------------------------------------------------
def test_cevals_layout_keeps_quoted_newlines_formulas_and_numbers(tmp_path):
    write(tmp_path, "val/physics_val.csv", "\ufeff" + CEVAL + ROWS)
    mapping = {"physics": ["Physics", "物理", "STEM"]}
    write(tmp_path, "subject_mapping.json", json.dumps(mapping))
    exam = read_exam(tmp_path, "val")
    first, second, third = exam.questions
    assert first.text == "第一题，\n用$x^2$计算" and first.options == ["1", "2", "3", "4"] and first.answer == 2
    assert second.options[2] == "丁,戊" and third.options == ["Ａ", "Ｂ", "Ｃ", "Ｄ"]
    assert exam.names == {"physics": "物理"} and exam.categories == {"physics": ["STEM"]}
    assert not exam.problems and not exam.english


def test_cmmlus_layout_has_an_index_and_capitals(tmp_path):
    write(tmp_path, "test/ancient_chinese.csv", ",Question,A,B,C,D,Answer\n0,问,甲,乙,丙,丁,D\n1,问二,a,b,c,d,A\n")
    exam = read_exam(tmp_path, "test")
    assert [(q.subject, q.id, q.answer) for q in exam.questions] == [
        ("ancient_chinese", "0", 3),
        ("ancient_chinese", "1", 0),
    ]
    assert exam.categories["ancient_chinese"] == ["Social Science", "China specific"]


def test_mmlus_layout_has_no_header_and_is_asked_in_english(tmp_path):
    write(tmp_path, "test/anatomy_test.csv", '"Which, of these?",one,two,three,four,B\nAnd this?,1,2,3,4,D\n')
    exam = read_exam(tmp_path, "test")
    assert exam.english and [q.answer for q in exam.questions] == [1, 3] and exam.categories["anatomy"] == ["STEM"]
    asked = Prompts(english=True).ask("letter", exam.questions[0])
    assert asked == "Which, of these?\nA. one\nB. two\nC. three\nD. four\nAnswer:"


def test_a_test_split_has_no_answers_and_is_not_counted(tmp_path):
    write(tmp_path, "test/law_test.csv", "id,question,A,B,C,D\n0,问,甲,乙,丙,丁\n")
    [question] = read_exam(tmp_path, "test").questions
    assert question.answer is None


def test_every_fault_is_counted_with_its_first_place(tmp_path):
    rows = (
        "0,甲,1,2,3,4,D\n1,乙,1,2,3,4,a\n2,丙,1,2,3,4, C \n3,丁,1,2,3,4,\n4,戊,1,2,3,4,E\n5,己,1,2,3,4,BD\n"
        '6,庚,1,,3,4,A\n7,"辛\n二","1, 2",2,3,4,B\n8,壬,1,2,3,A\n'
        "9,癸,1,2,3,4,B,解释\n0,子,1,2,3,4,D\n11,丑,1,2,3,4,Ｃ\n"
    )
    exam = read_exam(write(tmp_path, "val/x_val.csv", CEVAL + rows), "val")
    assert exam.problems == {
        "answer written in another way: read as its letter": 3,
        "no answer: asked, but not scored": 1,
        "answer that is not one of A-D: left out": 2,
        "empty question or option: left out": 1,
        "question with a column missing: left out": 1,
        "question with a column too many: the rest is ignored": 1,
        "id that occurs twice: both are asked": 1,
    }
    assert len(exam.questions) == 12 - 2 - 1 - 1
    assert "first in x_val.csv line 6" in "\n".join(exam.report())


@pytest.mark.parametrize(
    "text, said",
    [
        ((CEVAL + "0,问,甲,乙,丙,丁,A\n").encode("gb18030"), r"not UTF-8 \(byte 29: 0xce\)"),
        ("a,b\n1,2\n", "is no exam: its first line is"),
        (CEVAL + "0,问,甲,,丙,丁,A\n", "no question .* can be asked"),
        ("", "no question .* can be asked"),
    ],
    ids=["gb18030", "another table", "nothing left", "empty"],
)
def test_a_file_that_is_no_exam_is_named(tmp_path, text, said):
    write(tmp_path, "val/x_val.csv", text)
    with pytest.raises(ValueError, match=f"(?s){said}"):
        read_exam(tmp_path, "val")


def test_a_split_that_is_not_there_names_those_that_are(tmp_path):
    write(tmp_path, "dev/x_dev.csv", CEVAL + ROWS)
    with pytest.raises(FileNotFoundError, match="it has dev"):
        read_exam(tmp_path, "val")


@pytest.mark.parametrize("cell, answer", [("A", 0), (" d ", 3), ("Ｂ", 1), ("E", None), ("AB", None), ("", None)])
def test_answers_are_read_in_any_writing(cell, answer):
    assert to_answer(cell) == answer


def test_the_known_subjects_are_those_of_the_papers():
    assert len(known_subjects("mmlu")) == 57 and len(known_subjects("cmmlu")) == 67


# ---- an oracle with known answers ------------------------------------------------------------------------------------
class Stub:
    """A model that finds `liked` ids e times as likely as all others, wherever it is asked."""

    branching, limit, device = True, 512, torch.device("cpu")

    def __init__(self, liked, vocab_size):
        self.logits = torch.zeros(vocab_size)
        self.logits[list(liked)] = 1.0

    def begin(self, ids):
        return None

    def read(self, trunks, branches, places, beginning=None):
        return self.logits.expand(len(places), -1)


LAYOUTS = {
    "ceval": ("val/law_val.csv", CEVAL, lambda i, q: [i, *q]),
    "cmmlu": ("val/law.csv", ",Question,A,B,C,D,Answer\n", lambda i, q: [i, *q]),
    "mmlu": ("val/law_val.csv", "", lambda i, q: q),
}
QUESTIONS = [  # answers A, C, C, D, B
    ["一加一等于几？", "二", "三百", "四千五百", "五", "A"],
    ["天空是什么颜色？", "红", "黄色", "蓝", "绿色", "C"],
    ["二加二等于几？", "12", "3", "4", "22", "C"],
    ["Which?", "a b c", "b", "c", "d d", "D"],
    ["下面哪个大？", "一", "十", "百千万", "零", "B"],
]


@pytest.fixture(params=LAYOUTS)
def exam(request, tmp_path):
    name, header, shape = LAYOUTS[request.param]
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    with open(path, "w", encoding="utf-8", newline="") as f:
        f.write(header)
        csv.writer(f).writerows(shape(i, q) for i, q in enumerate(QUESTIONS))
    return read_exam(tmp_path, "val")


@pytest.mark.parametrize("liked, chat", [("B", False), ("C", False), ("C", True), (" D", True)])
def test_a_model_that_likes_one_letter_scores_what_counting_gives(exam, liked, chat):
    tokenizer = load_tokenizer()
    [token] = tokenizer.encode(liked)
    stub, prompts = Stub([token], tokenizer.vocab_size), Prompts(exam.english, chat=chat)
    scores, turned, _ = score_exam(stub, tokenizer, exam, {"letter": prompts}, 0, rotations=4)
    summary = exam_results.summarise(exam, scores, turned)
    name = "letter_space" if liked.startswith(" ") else "letter"
    found, right = summary[name], sum(q[5] == liked.strip() for q in QUESTIONS)
    assert (found["right"], found["answered"]) == (right, 5) and found["accuracy"] == right / 5
    assert found["chosen"] == {letter: float(letter == liked.strip()) for letter in LETTERS}
    # over all four orders each option stands once at the letter that is liked
    assert found["rotated"]["mean"] == pytest.approx(0.25) and found["rotated"]["consistent"] == 0
    others = [
        sum((LETTERS.index(q[5]) + turn) % 4 == LETTERS.index(liked.strip()) for q in QUESTIONS) / 5
        for turn in (1, 2, 3)
    ]
    assert found["rotated"]["accuracy"] == pytest.approx(others)


@pytest.mark.parametrize("chat", [False, True])
def test_a_model_without_preferences_scores_options_by_their_length(exam, chat):
    tokenizer = load_tokenizer()
    stub, V = Stub([], tokenizer.vocab_size), tokenizer.vocab_size
    scores, _ = score_cloze(stub, tokenizer, exam, Prompts(exam.english, chat=chat), 0)
    gap = " " if exam.english and not chat else ""
    for i, (_, *options, _) in enumerate(QUESTIONS):
        tokens = [len(tokenizer.encode(gap + o)) for o in options]  # no seam of these texts grows together
        sums = [-n * math.log(V) for n in tokens]
        assert scores["cloze_sum"][i].tolist() == pytest.approx(sums)
        assert scores["cloze_per_token"][i].tolist() == pytest.approx([-math.log(V)] * 4)
        assert scores["cloze_per_byte"][i].tolist() == pytest.approx(
            [s / len(o.encode()) for s, o in zip(sums, options)]
        )
    # a question changes nothing for this model, so the words alone are worth all of it
    assert torch.allclose(score_prior(stub, tokenizer, exam, Prompts(exam.english, chat=chat)), scores["cloze_sum"])
    corrected = score_exam(stub, tokenizer, exam, {"cloze": Prompts(exam.english, chat=chat)}, 0)[0]["cloze_prior"]
    assert torch.equal(corrected, torch.zeros(5, 4, dtype=torch.float64))


def test_a_model_that_likes_one_options_words_chooses_it(exam):
    tokenizer = load_tokenizer()
    gap = " " if exam.english else ""
    liked = set(tokenizer.encode(gap + "蓝")) - set(tokenizer.encode(gap + "红黄色绿"))
    scores, _ = score_cloze(Stub(liked, tokenizer.vocab_size), tokenizer, exam, Prompts(exam.english), 0)
    assert scores["cloze_per_token"][1].argmax() == 2


# ---- prompts ---------------------------------------------------------------------------------------------------------
def test_solved_examples_stand_before_the_question_in_the_authors_form(tmp_path):
    write(tmp_path, "val/law_val.csv", CEVAL + ROWS)
    write(tmp_path, "dev/law_dev.csv", CEVAL + "0,例一,a,b,c,d,B\n1,例二,e,f,g,h,D\n")
    exam, dev = read_exam(tmp_path, "val"), read_exam(tmp_path, "dev").questions
    prompts = Prompts(instruction="关于{subject}的题。\n\n", examples={"law": dev})
    question = exam.questions[1]
    assert prompts.write("letter", question, "法律", 2) == (
        "关于法律的题。\n\n例一\nA. a\nB. b\nC. c\nD. d\n答案：B\n\n例二\nA. e\nB. f\nC. g\nD. h\n答案：D\n\n"
        "第二题\nA. 甲\nB. 乙丙\nC. 丁,戊\nD. 己庚辛\n答案："
    )
    assert prompts.write("cloze", question, "法律", 1) == "关于法律的题。\n\n例一\n答案：b\n\n第二题\n答案："
    prompts.chat = True
    turns = prompts.write("letter", question, "法律", 1)
    assert [t["role"] for t in turns] == ["system", "user", "assistant", "user"] and turns[2]["content"] == "B"


def test_examples_make_way_where_the_context_is_too_small(tmp_path):
    write(tmp_path, "val/law_val.csv", CEVAL + ROWS)
    write(tmp_path, "dev/law_dev.csv", CEVAL + "".join(f"{i},例{i}{'长' * 20},a,b,c,d,B\n" for i in range(5)))
    exam, dev = read_exam(tmp_path, "val"), read_exam(tmp_path, "dev").questions
    tokenizer, prompts = load_tokenizer(), Prompts(examples={"law": dev})
    stub = Stub([], tokenizer.vocab_size)
    assert score_letter(stub, tokenizer, exam, prompts, 5)[1] == [5, 5, 5]
    stub.limit = 150
    used = score_letter(stub, tokenizer, exam, prompts, 5)[1]
    assert all(0 < k < 5 for k in used)
    for q, k in zip(exam.questions, used):  # as many as fit, not one fewer
        room = lambda n: len(tokenizer.encode(prompts.write("letter", q, "law", n) + " A")) + 1  # noqa: B023, E731
        assert room(k) <= 151 < room(k + 1)


# ---- what scores are worth -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("right, n", [(0, 9), (9, 9), (3, 8), (336, 1346), (572, 636)])
def test_wilson_agrees_with_statsmodels(right, n):
    assert wilson(right, n) == pytest.approx(proportion_confint(right, n, method="wilson"), abs=1e-6)


@pytest.mark.parametrize("b, c", [(0, 0), (5, 0), (76, 14), (30, 31), (1, 9)])
def test_mcnemar_agrees_with_statsmodels(b, c):
    expected = mcnemar_of_statsmodels([[50, b], [c, 50]], exact=True).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, abs=1e-6)


def test_p_of_guessing_is_the_exact_binomial_sum():
    weights = [math.comb(12, k) * 0.25**k * 0.75 ** (12 - k) for k in range(13)]
    assert p_of_guessing(7, 12) == pytest.approx(sum(w for w in weights if w <= weights[7] * (1 + 1e-9)), abs=1e-9)


def test_the_macro_interval_is_the_percentile_bootstrap():
    accuracies = [0.1, 0.25, 0.3, 0.55, 0.2]
    drawn = np.random.default_rng(0).integers(0, 5, (10_000, 5))  # the same draws, averaged by hand
    by_hand = np.percentile(np.array(accuracies)[drawn].mean(1), [2.5, 97.5])
    assert macro_interval(accuracies) == pytest.approx(by_hand, abs=1e-6)
    # and of two subjects: means 0, ½, 1 with probabilities ¼, ½, ¼
    assert macro_interval([0.0, 1.0]) == (0.0, 1.0)
    assert macro_interval([0.4]) == (0.0, 1.0)  # one subject says nothing about others


def test_micro_weighs_questions_and_macro_subjects(tmp_path):
    write(tmp_path, "val/a_val.csv", CEVAL + "".join(f"{i},问{i},1,2,3,4,A\n" for i in range(8)))
    write(tmp_path, "val/b_val.csv", CEVAL + "0,问,1,2,3,4,B\n1,问二,1,2,3,4,B\n2,问三,1,2,3,4,\n")
    write(tmp_path, "subject_mapping.json", json.dumps({"a": ["", "甲", "STEM"], "b": ["", "乙", "Other"]}))
    exam = read_exam(tmp_path, "val")
    found = exam_results.summarise_scoring(exam, [0] * len(exam.questions))
    assert (found["right"], found["answered"], found["accuracy"]) == (8, 10, 0.8)
    assert found["macro"]["accuracy"] == 0.5 and found["subjects"]["b"]["questions"] == 2
    assert {c: v["accuracy"] for c, v in found["categories"].items()} == {"STEM": 1.0, "Other": 0.0}
    p = stats.binomtest(8, 10, 0.25).pvalue
    assert found["p_chance"] == pytest.approx(p) and found["verdict"].startswith("better than guessing")


def test_a_score_near_guessing_is_said_to_be_so():
    assert exam_results.verdict(340, 1346)[1].startswith("no different from guessing")
    assert exam_results.verdict(250, 1346)[1].startswith("worse than guessing")


def test_files_hold_every_choice_and_the_official_answer_sheet(tmp_path):
    write(tmp_path, "test/law_test.csv", "id,question,A,B,C,D\n7,问,甲,乙,丙,丁\n9,问二,甲,乙,丙,丁\n")
    exam = read_exam(tmp_path, "test")
    scores = {"letter": torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 1.0, 1.0, 1.0]])}
    summary = exam_results.summarise(exam, scores, {})
    exam_results.save(tmp_path / "r", exam, scores, summary, {"model": "m"}, submit="letter")
    assert json.loads((tmp_path / "r/submission.json").read_text("utf-8")) == {"law": {"7": "B", "9": "A"}}
    with open(tmp_path / "r/law.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [rows[0][k] for k in ("id", "answer", "letter_choice", "letter_B")] == ["7", "", "B", "3.000000"]
    assert json.loads((tmp_path / "r/summary.json").read_text("utf-8"))["scorings"]["letter"]["accuracy"] is None
    assert list(exam_results.show(summary)) == ["the answers of this split are not known: nothing is counted"]


# ---- comparisons -----------------------------------------------------------------------------------------------------
def test_results_of_another_model_or_exam_are_moved_and_of_the_same_replaced(tmp_path):
    write(tmp_path, "val/law_val.csv", "id,question,A,B,C,D,answer\n0,q,a,b,c,d,C\n")
    exam, folder = read_exam(tmp_path, "val"), tmp_path / "r"
    scores = {"letter": np.eye(4)[:1]}
    summary = exam_results.summarise(exam, scores, {})

    def save(model, split="val", saved="2026-01-02 03:04:05"):
        facts = {"model": f"out/{model}.pth", "split": split, "saved": saved}
        return exam_results.save(folder, exam, scores, summary, facts)

    def models():
        found = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in folder.rglob("summary.json")}
        return {place: (content["model"], content["split"]) for place, content in found.items()}

    assert save("a") is None and save("a", saved="later") is None  # the same again
    assert models() == {"r": ("out/a.pth", "val")}
    assert save("b") == folder / "a_later"
    assert save("b", "dev") == folder / "b_2026_01_02_03_04_05"
    assert models() == {"r": ("out/b.pth", "dev"), "a_later": ("out/a.pth", "val"),
                        "b_2026_01_02_03_04_05": ("out/b.pth", "val")}  # fmt: skip
    assert all((p.parent / "law.csv").is_file() for p in folder.rglob("summary.json"))
    (folder / "summary.json").write_text("[1", encoding="utf-8")
    assert save("c") == folder / "unreadable"


def test_two_models_are_compared_question_by_question(tmp_path):
    answers = "ABCDABCD"
    rows = "".join(f"{i},问{i},1,2,3,4,{a}\n" for i, a in enumerate(answers)) + "8,问8,1,2,3,4,\n"
    exam = read_exam(write(tmp_path, "val/a_val.csv", CEVAL + rows), "val")
    right = [LETTERS.index(a) for a in answers]
    wrong = [(r + 1) % 4 for r in right]
    choices = {"x": [*right[:6], *wrong[6:], 0], "y": [*wrong[:5], *right[5:7], wrong[7], 1]}
    found = pair(exam, "letter", "x", "y", choices)
    assert {k: found[k] for k in ("only_first", "only_second", "both", "neither")} == {
        "only_first": 5, "only_second": 1, "both": 1, "neither": 1}  # fmt: skip
    assert found["p_value"] == pytest.approx(stats.binomtest(5, 6).pvalue) and "no more than luck" in found["verdict"]
    flips = list(flipped(exam, "letter", choices))
    assert [f["id"] for f in flips] == ["0", "1", "2", "3", "4", "6"]  # the unanswered one never flips
    assert flips[0]["choices"] == {"x": "A", "y": "B"} and flips[0]["answer"] == "A"


def test_a_table_of_samples_keeps_its_columns():
    table = table_of_samples({"a|b": {"问": "一\n二"}, "c": {"问": ""}})
    assert table == "| prompt | a\\|b | c |\n|---|---|---|\n| 问 | 一<br>二 | (nothing) |\n"
