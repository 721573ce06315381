"""The rules by name: what each takes out, what it must leave, and that together they keep their promises."""

import html
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleaning import filters
from cleaning.boilerplate import strip_boilerplate
from cleaning.decontaminate import asked_in, questions_of, without_questions
from cleaning.markup import strip_blobs, strip_html, strip_invisible, strip_markdown_links, to_half_width
from cleaning.mojibake import repair_mojibake
from cleaning.normalize import clean_text
from cleaning.rules import PRESETS, RULES, RuleSettings, apply_rules, rules_for
from cleaning.simplify import to_simplified

PROSE = (
    "春天来了，小河边的柳树发了芽，孩子们脱下厚厚的棉衣，跑到田野里放风筝。老人坐在门口晒太阳，谈论今年的收成。"
    "远处的山坡上，桃花开得正好，蜜蜂在花间忙碌，空气里有一股淡淡的香味。"
)
FREE = [name for name in RULES if name not in ("exam", "blocklist", "simplified")]  # need no file and no library
# fmt: off
PIECES = ["<p>", "</div>", "<b", "&#7;", "&nbsp;", "&lt;", "```\n", "`", "\n", "首页", " > ", "版权所有", "中文", "é",
          "ä¸­æ–‡", "锛", "13812345678", "a@b.com", "http://x.cn/", "[a](b.c)", "。", "Ａ", "\u200b", "\x00", "\r\n",
          "e\u0301", "3"]
# fmt: on
TEXTS = st.text(st.characters(codec="utf-8"), max_size=60) | st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


# ---- names and settings ----------------------------------------------------------------------------------------------
def test_rules_run_in_the_order_of_the_table_whatever_order_they_are_named_in():
    names = [rule.name for rule in rules_for(["pii", "html", "mojibake"], RuleSettings())]
    assert names == ["mojibake", "clean", "html", "pii"]
    assert [rule.name for rule in rules_for([], RuleSettings())] == ["clean"]
    assert {rule.name for rule in rules_for(["web", "urls"], RuleSettings())} == {*PRESETS["web"], "clean", "urls"}


def test_every_preset_is_made_of_rules_and_every_rule_is_told_in_a_line():
    assert all(set(names) <= set(RULES) for names in PRESETS.values()) and not set(PRESETS) & set(RULES)
    assert all(what and "\n" not in what and len(what) < 100 for what, _ in RULES.values())


@pytest.mark.parametrize(
    ("names", "changes", "words"),
    [
        (["web", "htlm"], {}, ["htlm", "html", "books"]),
        (["blocklist"], {}, ["--blocklist"]),
        (["exam"], {}, ["--exams"]),
        (["length"], {"min_characters": 9, "max_characters": 8}, ["9", "8"]),
        (["signs"], {"max_signs": 1.5}, ["--max_signs 1.5", "between 0 and 1"]),
        (["language"], {"languages": ["zh", "cn"]}, ["cn", "zh en ja ko other"]),
        (["exam"], {"exams": ["x"], "exam_run": 0}, ["--exam_run 0"]),
    ],
)
def test_a_misused_name_or_setting_is_told(names, changes, words):
    with pytest.raises(ValueError) as error:
        rules_for(names, RuleSettings(**changes))
    assert all(word in str(error.value) for word in words)


def test_a_worker_makes_the_same_rules_from_names_and_settings():
    there = pickle.loads(pickle.dumps(RuleSettings(min_characters=7)))
    assert apply_rules("六个字的文章", rules_for(["web"], there)) == (None, "too short: under 7 characters", ())
    assert apply_rules("七个字的文章啊", rules_for(["length"], there)) == ("七个字的文章啊", None, ())


# ---- promises of all rules together ----------------------------------------------------------------------------------
@given(TEXTS, st.sets(st.sampled_from(FREE)))
@settings(max_examples=300, deadline=None)
def test_what_comes_out_is_clean_and_what_is_dropped_has_a_reason(text, names):
    out, reason, changed = apply_rules(text, rules_for(sorted(names), RuleSettings(min_characters=2)))
    assert (out is None) == (reason is not None)
    if out is not None:
        assert clean_text(out) == (out, None)
        assert set(changed) <= names | {"clean"} and (changed or out == text)


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_without_a_name_only_the_base_rule_runs(text):
    assert apply_rules(text, rules_for([], RuleSettings()))[:2] == clean_text(text)


def test_ordinary_prose_passes_every_preset_untouched():
    for preset in PRESETS:
        assert apply_rules(PROSE, rules_for([preset], RuleSettings())) == (PROSE, None, ())


def test_a_poem_is_dropped_by_web_with_its_reason_and_kept_by_books():
    poem = "静夜思\n李白\n床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"
    assert apply_rules(poem, rules_for(["web"], RuleSettings())) == (None, "too short: under 50 characters", ())
    assert apply_rules(poem, rules_for(["books"], RuleSettings())) == (poem, None, ())


# ---- HTML and Markdown -----------------------------------------------------------------------------------------------
PAGE = """<!DOCTYPE html>
<html><head><title>山水</title><script>if (a < b) alert("<p>不</p>")</script><style>p{color:red}</style></head>
<body><!-- 注 <b>释</b> --><div class="x" title="a > b">第一行
接着<b>粗</b>体</div><p>甲&nbsp;乙 &lt;丙&gt; &amp; 丁</p><ul><li>一</li><li>二</li></ul>
<table><tr><td>姓名</td><td>年龄</td></tr></table><pre>x = 1
  y = 2</pre></body></html>"""


def test_a_page_becomes_the_words_that_a_parser_finds_in_it():
    parser = pytest.importorskip("selectolax.lexbor").LexborHTMLParser(PAGE)
    parser.strip_tags(["script", "style"])
    text, _ = strip_html(PAGE)
    assert "".join(text.split()) == "".join((parser.css_first("title").text() + parser.body.text()).split())
    lines = [line.strip() for line in text.split("\n")]
    assert "第一行 接着粗体" in lines and "一" in lines and "二" in lines
    assert "姓名\t年龄" in lines and "x = 1\n  y = 2" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("甲<br>乙<br/>丙", "甲\n乙\n丙"),
        ("甲<span class='k'>乙</span>丙", "甲乙丙"),
        ("《掌故王》&#65292;&quot;好&quot;&hellip;", '《掌故王》，"好"…'),
        ("a < b 且 c > d", None),
        ("List<String> 与 #include <vector>", None),
        ("1<b，b>2", None),
        ("http://x.cn/?a=1&copy=2&lt=3", None),
        ("&nosuch; 与 AT&T", None),
        ("文</s><s>assistant<|im_end|><think>", None),
        ("用 `<div>` 表示：\n```html\n<p>&amp;</p>\n```\n完", None),
        ("~~~\n<br>\n", None),
        ("`<b>`与<b>粗</b>", "`<b>`与粗"),
    ],
)
def test_tags_and_entities_go_and_what_only_looks_like_them_stays(text, expected):
    assert strip_html(text) == (expected or text, None)


def test_what_is_not_closed_hides_the_rest_of_a_page_and_nothing_of_a_text():
    assert strip_html("<html><body>甲<!-- 乙")[0] == "甲"
    assert strip_html("甲<!-- 乙") == ("甲<!-- 乙", None)
    assert strip_html("甲<script>乙<b>丙</b>") == ("甲乙丙", None)


@given(st.text("<>&;abcd甲乙 \n/=\"'p", max_size=40))
@settings(max_examples=300, deadline=None)
def test_text_that_was_escaped_for_a_page_comes_back(text):
    assert strip_html(html.escape(text)) == (text, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('见[文档](https://x.cn/a_(b)/ "题")。', "见文档。"),
        ("![图](a.png)与[![徽](b.svg)](http://c.cn)", "图与徽"),
        ('见[甲][ref]和\n[ref]: http://x.cn "题"\n乙', "见甲和\n乙"),
        ("`[a](b.c)`与\n```\n[a](b.c)\n```", None),
        ("苯并[2,3-b][1,5]二氮杂，见[图](a.png)", "苯并[2,3-b][1,5]二氮杂，见图"),
        ("f[i](x)，a[1][2]: 3，[1]，脚注[^1]\n[^1]: http://x.cn", None),
        ("- [ ] 待办", None),
    ],
)
def test_links_become_their_words_and_code_stays(text, expected):
    assert strip_markdown_links(text) == (expected or text, None)


def test_width_zero_width_and_blobs():
    assert to_half_width("ＡＢＣ　１２３，（好）！～") == ("ABC 123，（好）！～", None)
    assert strip_invisible("未\u200b名\ufeff湖\u2028a👨\u200d👩") == ("未名湖\na👨\u200d👩", None)
    blob = "data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUgAA" * 9
    assert strip_blobs(f"前{blob}后{'Ab3' * 70}{'=' * 300}") == (f"前后{'Ab3' * 70}{'=' * 300}", None)
    assert strip_blobs("前" + "0123456789abcdef" * 20 + "后") == ("前后", None)


# ---- mojibake --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("written", "read"), [("utf-8", "latin-1"), ("gb2312", "latin-1"), ("gb2312", "cp1252"), ("utf-8", "gb18030")]
)
def test_text_read_in_a_wrong_encoding_is_read_again(written, read):
    text = "中文的网页，是在国外服务器上读错\nABC 123"  # an even number: read as GBK, all bytes are pairs
    wrong = text.encode(written).decode(read)
    assert wrong != text and repair_mojibake(wrong, 0.01) == (text, None)


@pytest.mark.parametrize("lossy", [("utf-8", "gbk"), ("utf-8", "ascii")])
def test_text_that_lost_bytes_is_dropped(lossy):
    wrong = PROSE.encode(lossy[0]).decode(lossy[1], "replace")
    assert repair_mojibake(wrong, 0.01) == (None, "mojibake: read in a wrong encoding")
    assert repair_mojibake("锟斤拷" * 9 + "正文", 0.01)[0] is None
    assert repair_mojibake(PROSE.encode().decode("latin-1").replace("\x80", "").replace("\x9a", ""), 0.01)[0] is None


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        "café、naïve、Ångström、Müller；¿Cómo está? “Ça va” — déjà vu…",
        "ÀÁÂÃÄÅÆÇÈÉÊË 是拉丁字母，这张表列出了所有带有重音符号的大写字母及其发音的方法和用途。",
        "温度±0.5°C，面积5×3㎡，“·”……———··········",
        "「錄音」的鐵路銀行與鄭國，涓涓细流，浜口雄幸",
        "乱码“锟斤拷”是怎么来的？" + PROSE,
        "Việt Nam, Français: élève, crédit; Deutsch: größe, süß",
    ],
)
def test_sound_text_is_not_taken_for_mojibake(text):
    assert repair_mojibake(text, 0.05) == (text, None)


# ---- boilerplate -----------------------------------------------------------------------------------------------------
BARS = """首页 > 新闻中心 > 国内新闻
您现在的位置：首页 > 新闻 > 正文
首页 | 关于我们 | 联系我们 | 网站地图
上一篇：无
下一篇：春节放假通知
分享到： 微信 微博 QQ空间
分享 收藏 打印
点击阅读全文>>
【查看更多】
责任编辑：张三
（编辑：李四）
来源：某某日报
本文转载自某某网
转载请注明出处：http://example.com
未经本站授权，不得转载。
版权所有 © 2020 某某公司 保留一切权利
Copyright © 2010-2023 Example Inc. All Rights Reserved.
京ICP备12345678号-1
欢迎关注微信公众号：某某
发布时间：2023-10-01 12:00 浏览：123
阅读量：1.2万""".split("\n")
SENTENCES = """版权所有者应当依照本法规定取得报酬。
未经肖像权人同意，肖像作品权利人不得以发表、复制、发行、出租、展览等方式使用肖像权人的肖像。
他把首页 > 目录的层级画在纸上，然后解释为什么要这样设计网站的结构，大家听了都点头。
上一篇文章讲了编码，这一篇讲解码。
来源于生活的艺术才能打动人。
作者：鲁迅先生的这篇文章写于1921年，发表于《新青年》，后来收入《呐喊》。
| 首页 | 年龄 |
# 首页布局
请大家关注天气变化。
分享是一种快乐，我们应该学会分享。
编辑部的故事""".split("\n")


@pytest.mark.parametrize("line", BARS)
def test_a_line_of_the_page_goes(line):
    assert strip_boilerplate(f"{line}\n{PROSE}\n　{line}") == (PROSE, None)


@pytest.mark.parametrize("line", SENTENCES)
def test_a_sentence_with_the_same_words_stays(line):
    assert strip_boilerplate(f"{line}\n{PROSE}") == (f"{line}\n{PROSE}", None)


def test_the_tail_of_a_paragraph_goes():
    for tail in ("（责任编辑：张三）", "[点击阅读全文]", " 责任编辑：李四", "（完）"):
        assert strip_boilerplate(PROSE + tail) == (PROSE, None)


# ---- filters ---------------------------------------------------------------------------------------------------------
def test_characters_are_counted_by_kind():
    counts = filters.counts_of("中文〇 abÉ かナ 한 дя 12½ ，。😀\n")
    kinds = dict(zip("space digit sign han latin kana hangul letter".split(), counts.tolist()))
    assert kinds == {
        "space": 7, "digit": 3, "sign": 3, "han": 3, "latin": 3, "kana": 2, "hangul": 1, "letter": 2
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (PROSE, "zh"),
        ("先用 `pip install numpy` 安装这个库，然后写 import numpy as np", "zh"),
        ("《ガメラ 大怪獣空中決戦》是一九九五年上映的日本怪兽电影，由大映制作，是系列的第九部，很受观众的欢迎。", "zh"),
        ("これは日本語の文章です。中国語のコーパスに混ざっていることがあります。", "ja"),
        ("이것은 한국어 문장입니다. 大韓民國", "ko"),
        ("The quick brown fox jumps over the lazy dog, and it is not the first.", "en"),
        ("Le renard brun saute par-dessus le chien paresseux et dort.", "other"),
        ("Съешь же ещё этих мягких французских булок", "other"),
        ("123 。！", None),
    ],
)
def test_the_main_language_is_told(text, language):
    assert filters.language_of(text) == language


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("哈" * 200, "repeated phrase"),
        ("点击查看更多精彩内容。" * 30, "repeated phrase"),
        ("本页内容由用户上传\n" * 20, "repeated lines"),
        (PROSE * 3, "repeated passages"),
        (f"{PROSE}\n{PROSE}", "repeated lines"),
        (PROSE, None),
        ("□" * 40 + PROSE, None),
        ("| --- | --- |\n" + PROSE, None),
    ],
)
def test_repetition_is_told_by_its_kind(text, reason):
    assert filters.few_repeats(text, 0.3, 0.3, 0.5)[1] == reason


@given(st.text("ab春夏", min_size=32, max_size=80), st.floats(0.05, 0.9), st.floats(0.05, 0.9))
@settings(max_examples=200, deadline=None)
def test_repetition_is_what_counting_all_runs_gives(text, phrase, passages):
    runs = [[text[i : i + n] for i in range(len(text) - n + 1)] for n in (4, 16)]
    top = max(map(runs[0].count, runs[0]))
    expected = None
    if top >= 3 and top > phrase * len(text) / 4:
        expected = "repeated phrase"
    elif len(runs[1]) - len(set(runs[1])) > passages * len(runs[1]):
        expected = "repeated passages"
    assert filters.few_repeats(text, 1.0, phrase, passages)[1] == expected


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("signs", "。。。，，！！" * 9 + "好", "mostly signs: over 50% punctuation and symbols"),
        ("digits", "0123 4567 好", "mostly digits: over 40% digits"),
        ("chinese", "abcde 中文", "not Chinese: under 30% of the letters"),
        ("language", "これは日本語です", "language: ja"),
        ("length", "短", "too short: under 50 characters"),
        ("length", "长" * 1_000_001, "too long: over 1000000 characters"),
    ],
)
def test_a_filter_drops_with_a_reason_that_names_it(name, text, reason):
    assert apply_rules(text, rules_for([name], RuleSettings()))[1] == reason


def test_blocked_words_are_counted_and_latin_ones_are_whole(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("赌场  # 博彩\n\nsex\n六合彩\n", encoding="utf-8")
    limits = RuleSettings(blocklist=str(file), blocked=2)
    rules = rules_for(["blocklist"], limits)
    assert apply_rules("赌场开业", rules)[1] is None and apply_rules("赌场旁又有赌场", rules)[1] == "blocked words"
    assert apply_rules("SEX、六合彩", rules)[1] == "blocked words"
    assert apply_rules("Sussex and Essex, sexes", rules)[1] is None
    file.with_name("one.txt").write_text("赌\n", encoding="utf-8")
    with pytest.raises(ValueError, match="one character"):
        rules_for(["blocklist"], RuleSettings(blocklist=str(file.with_name("one.txt"))))
    with pytest.raises(FileNotFoundError, match="no blocklist at nowhere"):
        rules_for(["blocklist"], RuleSettings(blocklist="nowhere"))


def test_traditional_characters_become_simplified_and_the_quick_look_misses_none():
    opencc = pytest.importorskip("opencc")
    assert to_simplified("乾隆皇帝與後宮，頭髮發財") == ("乾隆皇帝与后宫，头发发财", None)
    assert to_simplified("日本の気象庁は発表を行いました") == ("日本の気象庁は発表を行いました", None)
    t2s = opencc.OpenCC("t2s")
    every = "".join(map(chr, [*range(0x3400, 0xA000), *range(0xF900, 0xFB00), *range(0x20000, 0x2A6E0)]))
    for text in [every[i : i + 7] for i in range(0, len(every), 7)]:
        assert to_simplified(text) == (t2s.convert(text), None)


# ---- exams -----------------------------------------------------------------------------------------------------------
def test_a_text_with_thirteen_characters_of_a_question_is_dropped(tmp_path):
    question = "中国古代的四大发明分别是指南针、造纸术、火药和印刷术，它们影响了世界。"
    rows = f'id,question,A,B,C,D,answer\n0,"{question}",甲,乙,丙,丁,A\n1,下列正确的是,甲,乙,丙,丁,B\n'
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "history_val.csv").write_text(rows, encoding="utf-8")
    assert questions_of(tmp_path) == [question, "下列正确的是"]
    rules = rules_for(["exam"], RuleSettings(exams=[str(tmp_path)]))
    found = (None, "contains an exam question", ())
    assert apply_rules("前文：四大发明分别是 指南针造纸术，后文", rules) == found  # 13, space and punctuation aside
    assert apply_rules("前文：四大发明分别是指南针造纸，后文", rules)[1] is None  # 12
    assert apply_rules("下列正确的是：", rules)[1] is None  # shorter than 13, so not looked for
    with pytest.raises(FileNotFoundError, match="no exam in"):
        rules_for(["exam"], RuleSettings(exams=[str(tmp_path / "val")]))
    with pytest.raises(ValueError, match="has 99 characters"):
        rules_for(["exam"], RuleSettings(exams=[str(tmp_path)], exam_run=99))


@given(st.lists(st.text("ab春", max_size=12), max_size=5), st.text("ab春。", max_size=30), st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_a_text_is_dropped_where_python_finds_a_run(questions, text, n):
    runs = {q[i : i + n] for q in questions for i in range(len(q) - n + 1)}
    dropped = any(run in text.replace("。", "") for run in runs)
    assert (without_questions(text, asked_in(questions, n))[0] is None) == dropped
