"""The rules that a person may ask for, by name: what they do, the order they run in, and sets of them.

A rule is str → (str, None) or (None, reason), as cleaning.normalize.clean_text is, which is the one that always runs.
Everything is made from names and RuleSettings, which are plain data, so a worker process can make its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

from cleaning import filters
from cleaning.boilerplate import strip_boilerplate
from cleaning.decontaminate import grams_of_exams, without_questions
from cleaning.markup import strip_blobs, strip_html, strip_invisible, strip_markdown_links, to_half_width
from cleaning.mojibake import repair_mojibake
from cleaning.normalize import clean_text
from cleaning.pii import mask_personal, mask_urls
from cleaning.settings import knob
from cleaning.simplify import converter, to_simplified


@dataclass(frozen=True)
class Rule:
    """A rule, ready to be applied to texts.

    Attributes:
        what: one sentence for a person.
        apply: str → (str, None) or (None, reason).
    """

    name: str
    what: str
    apply: Callable


@dataclass
class RuleSettings:
    """The limits of the rules; each belongs to the rule that its help names first."""

    max_broken: float = knob(0.01, "mojibake: largest share of unreadable characters in a text")
    min_characters: int = knob(50, "length: fewest characters, spaces not counted")
    max_characters: int = knob(1_000_000, "length: most characters, spaces not counted")
    max_signs: float = knob(0.5, "signs: largest share of punctuation and symbols")
    max_digits: float = knob(0.4, "digits: largest share of digits")
    languages: list[str] = knob(lambda: ["zh", "en"], "language: main languages to keep", list(filters.LANGUAGES))
    min_chinese: float = knob(0.3, "chinese: smallest share of Chinese characters among the letters")
    max_line_repeats: float = knob(0.3, "repeats: largest share of characters in lines that stood before")
    max_phrase: float = knob(0.3, "repeats: largest share of the most frequent four letters in a row")
    max_passages: float = knob(0.5, "repeats: largest share of sixteen letters in a row that stood before")
    blocklist: str = knob("", "blocklist: file with a word on each line")
    blocked: int = knob(1, "blocklist: so many occurrences drop a text")
    exams: list[str] = knob(list, "exam: folders of exams in C-Eval's layout")
    exam_run: int = knob(
        13, "exam: characters in a row that count as found; 20 spares texts that share a statute's name"
    )


def blocklist_rule(s):
    if not s.blocklist:
        raise ValueError("the rule blocklist needs a file with a word on each line: --blocklist FILE")
    filters.blocked_words(s.blocklist)  # what is wrong with the file is told before the first text
    return partial(filters.not_blocked, path=s.blocklist, limit=s.blocked)


def exam_rule(s):
    if not s.exams:
        raise ValueError("the rule exam needs the folder of an exam: --exams dataset/ceval-exam")
    return partial(without_questions, grams=grams_of_exams(tuple(s.exams), s.exam_run))


def simplified_rule(s):
    converter()  # OpenCC missing is told before the first text
    return to_simplified


# name: (what it does, RuleSettings → str → (str, None) or (None, reason)), in the order they run. Repairs come first,
# then what is taken out and masked, and the filters judge what is left.
RULES = {
    "mojibake": (
        "text read in a wrong encoding is read again in the right one, or dropped where bytes are lost",
        lambda s: partial(repair_mojibake, max_broken=s.max_broken),
    ),
    "clean": ("NFC, line ends, no control characters, not empty; always on", lambda s: clean_text),
    "html": ("HTML becomes its text: no tags, scripts, styles; entities as characters", lambda s: strip_html),
    "markdown": ("links and images of Markdown become their words", lambda s: strip_markdown_links),
    "invisible": ("zero-width spaces and marks of direction are taken out", lambda s: strip_invisible),
    "width": ("full-width letters, digits and spaces become half-width", lambda s: to_half_width),
    "blobs": ("base64 and other runs of 200 letters without a space are taken out", lambda s: strip_blobs),
    "boilerplate": ("lines of navigation, sharing, copyright and editors are taken out", lambda s: strip_boilerplate),
    "simplified": ("traditional characters become simplified (OpenCC t2s)", simplified_rule),
    "urls": ("web addresses become 〈网址〉", lambda s: mask_urls),
    "pii": ("phone, identity and card numbers, e-mails, public IP addresses are masked", lambda s: mask_personal),
    "length": (
        "texts that are too short or too long are dropped",
        lambda s: partial(filters.length_within, smallest=s.min_characters, largest=s.max_characters),
    ),
    "signs": (
        "texts that are mostly punctuation and symbols are dropped",
        lambda s: partial(filters.few_signs, limit=s.max_signs),
    ),
    "digits": ("texts that are mostly digits are dropped", lambda s: partial(filters.few_digits, limit=s.max_digits)),
    "language": (
        "texts in other languages are dropped",
        lambda s: partial(filters.in_languages, kept=frozenset(s.languages)),
    ),
    "chinese": (
        "texts with too few Chinese characters are dropped",
        lambda s: partial(filters.chinese_enough, limit=s.min_chinese),
    ),
    "repeats": (
        "texts that repeat lines, phrases or passages are dropped",
        lambda s: partial(filters.few_repeats, lines=s.max_line_repeats, phrase=s.max_phrase, passages=s.max_passages),
    ),
    "blocklist": ("texts with words of a list are dropped", blocklist_rule),
    "exam": ("texts that contain an exam question are dropped", exam_rule),
}
PRESETS = {
    # a Chinese crawl; poems under 50 characters are dropped too, and counted as "too short"
    "web": [
        "mojibake",
        "html",
        "invisible",
        "width",
        "blobs",
        "boilerplate",
        "pii",
        "length",
        "signs",
        "digits",
        "language",
        "repeats",
    ],
    # whole works: nothing is too short, and a refrain is no fault
    "books": ["mojibake", "html", "invisible", "width", "pii", "signs", "digits"],
    # repairs only; all that is dropped is text that nobody can read
    "light": ["mojibake", "html", "invisible", "pii"],
}


def check_settings(settings):
    """ValueError for a limit that cannot be met or has no effect."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, float) and not 0 <= value <= 1:
            raise ValueError(f"--{field.name} {value} is a share; it must lie between 0 and 1")
    if not 0 <= settings.min_characters <= settings.max_characters:
        raise ValueError(
            f"--min_characters {settings.min_characters} and --max_characters {settings.max_characters}: "
            "the first must be 0 or more, and not above the second"
        )
    wrong = [name for name in settings.languages if name not in filters.LANGUAGES]
    if wrong or not settings.languages:
        raise ValueError(
            f"--languages {' '.join(wrong) or 'without a name'}: choose among {' '.join(filters.LANGUAGES)}"
        )
    for name in ("blocked", "exam_run"):
        if getattr(settings, name) < 1:
            raise ValueError(f"--{name} {getattr(settings, name)}: it must be 1 or more")


def rules_for(names, settings):
    """Rules in the order they run, `clean` among them.

    Args:
        names: of rules or presets, in any order.
        settings: RuleSettings.
    Raises:
        ValueError: an unknown name, a limit that is none, a rule whose file is not named; OSError: a file that is not
            there; ImportError: a library that is not installed.
    """
    unknown = [name for name in names if name not in RULES and name not in PRESETS]
    if unknown:
        raise ValueError(
            f"no rule {', '.join(unknown)}; there are {', '.join(RULES)}, and the sets {', '.join(PRESETS)}"
        )
    check_settings(settings)
    wanted = {"clean"}.union(*(PRESETS.get(name, [name]) for name in names))
    return [Rule(name, what, make(settings)) for name, (what, make) in RULES.items() if name in wanted]


def check_limits(rules, limits):
    """ValueError for a limit that was set although no rule named by `rules` reads it."""
    run = {rule.name for rule in rules_for(rules, limits)}
    for f in fields(limits):
        rule, default = f.metadata["help"].partition(":")[0], getattr(RuleSettings(), f.name)
        if getattr(limits, f.name) != default and rule not in run:
            raise ValueError(f"--{f.name} is a limit of the rule {rule}, which is not asked for: --rules {rule}")


def apply_rules(text, rules):
    """A text meets the rules, one after another.

    Returns:
        (text, None, changed) or (None, reason, changed); `changed` has the names of the rules that changed it. A text
        that comes out is as clean_text leaves it, whatever the rules made of it.
    """
    changed = []
    for rule in rules:
        new, reason = rule.apply(text)
        if reason:
            return None, reason, tuple(changed)
        if new != text:
            changed.append(rule.name)
            text = new
    if changed:
        text, reason = clean_text(text)  # an entity may name a control character, or all may have been taken out
        return text, reason, tuple(changed)
    return text, None, ()
