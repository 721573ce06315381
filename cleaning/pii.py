"""Personal data in text → placeholders: mobile and landline numbers, e-mails, identity and bank cards, addresses.

Nothing is dropped. What looks alike and is none (a part of a longer number, an order number, a version, a decorator, a
wrong check digit) stays. Found are the forms of mainland China; addresses are masked where they are public, so the
127.0.0.1 of a manual stays. Not found: names, street addresses, 400 numbers, passports, identity numbers of 15 digits,
e-mails that are spelt out ("at", "dot").
"""

import datetime
import ipaddress
import re
from typing import NamedTuple

# Plain words in single book-title marks: readable, rare in text, and unlike any control token of a tokenizer.
PLACEHOLDERS = {
    "mobile": "〈手机号〉",
    "landline": "〈电话号码〉",
    "email": "〈邮箱〉",
    "id": "〈身份证号〉",
    "card": "〈银行卡号〉",
    "ip": "〈IP地址〉",
    "url": "〈网址〉",
}
# one to one, so that places stay; the colon is left, because one between digits means a ratio or a time
HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) != "："}
FULL_WIDTH = re.compile("[０-９＠]|（0")
# Seven characters of a number, the fewest in any of the forms: most documents have none and are done.
NUMBER = re.compile(r"[0-9][0-9 ().—–-]{5}[0-9]")

START = r"(?<![0-9A-Za-z_])(?<![0-9][.-])(?<![0-9A-Za-z],)"
END = r"(?![0-9A-Za-z_]|[.-][0-9])"
# Area codes: three digits for the largest cities, else four. Source: the national numbering plan of 2003 and since.
THREE = r"(?:10|2[0-57-9])"
FOUR = (
    r"(?:3(?:1\d|35|49|5\d|7\d|9[1-8])|4(?:1\d|2[179]|3\d|5\d|6[4789]|7\d|8[23])"
    r"|5(?:1\d|2[37]|3\d|4[36]|5\d|6\d|7\d|80|9\d)|6(?:3\d|6[0238]|9[12])"
    r"|7(?:01|1\d|2[248]|3\d|4[3-6]|5\d|6[0236]|7\d|9\d)|8(?:1[2-8]|2[5-7]|3\d|5\d|7\d|8\d|9[1-8])"
    r"|9(?:0[1-9]|1\d|3\d|4[13]|5[1-5]|7\d|9\d))"
)
EIGHT = r"\d{4}(?:[- ]?\d{4})"
LOCAL = rf"(?:{THREE}S{EIGHT}|{FOUR}S(?:{EIGHT}|\d{{7}}))"
MOBILE = re.compile(
    r"(?:(?<![0-9A-Za-z_])|(?<=[Tt][Ee][Ll]))(?<![0-9][.-])(?P<country>(?:(?:\+|00)?86[- ]?)?)"
    r"1[3-9](?P<rest>\d{9}|\d-\d{4}-\d{4}|\d \d{4} \d{4}|\d{2}-\d{3}-\d{4}|\d{2} \d{3} \d{4})" + END
)
LANDLINE = re.compile(
    START
    + "(?:"
    + "|".join(
        [
            "0" + LOCAL.replace("S", "[-—–]"),
            "0" + LOCAL.replace("S", r" ?(?=[2-9])"),  # no subscriber's number begins with 0 or 1
            rf"\((?:0{THREE}\) ?{EIGHT}|0{FOUR}\) ?(?:{EIGHT}|\d{{7}}))",
            r"(?:\+|00)86[- ]?" + LOCAL.replace("S", "[- ]"),
        ]
    )
    + r")(?:(?:\s?转\s?|-)\d{1,5}(?!\d))?"
    + END
)
IDENTITY = re.compile(START + r"[1-8]\d{5}[ -]?(?:19|20)\d{6}[ -]?\d{3}[0-9Xx]" + END)
CARD = re.compile(
    START + r"(?:\d{4}(?P<gap>[ -])\d{4}(?P=gap)\d{4}(?P=gap)\d{3,4}(?:(?P=gap)\d{1,3})?|\d{15,19})" + END
)
# UnionPay 62, the old 9558, Visa, Mastercard, American Express, JCB. Source: ISO/IEC 7812 and the issuers' pages.
CARD_NUMBER = re.compile(r"62\d{14,17}|9558\d{12,15}|4\d{15}|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|35\d{14}")
PROVINCES = {*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71, 81, 82}
ADDRESS = re.compile(r"(?:(?<![0-9A-Za-z_.])|(?<=IP)|(?<=ip))\d{1,3}(?:\.\d{1,3}){3}(?![0-9A-Za-z_]|\.[0-9])")
EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+@/-])[A-Za-z0-9][A-Za-z0-9._%+-]*@(?:[A-Za-z0-9][A-Za-z0-9-]*\.)+(?P<top>[A-Za-z]{2,})"
    r"(?![A-Za-z0-9_@(-])"
)
URL = re.compile(
    r"(?<![A-Za-z])(?i:(?:https?|ftp)://(?=[A-Za-z0-9])|www\.(?=[A-Za-z0-9-]+\.[A-Za-z0-9]))"
    r"""[^\s"'<>`\\{}|^\[\]\x00-\x1f\x7f-\U0010ffff]+"""
)
# Domains that are no country: the common ones. A two-letter ending is a country unless it is a programmer's file.
# fmt: off
TOPS = {"com", "net", "org", "edu", "gov", "mil", "int", "info", "biz", "name", "pro", "mobi", "asia", "top", "xyz",
        "vip", "club", "site", "online", "shop", "app", "dev", "tech", "store", "work", "link", "live", "ltd", "wang",
        "ink", "email", "space", "website", "cloud", "group", "host", "press", "fun", "art", "world", "today", "media",
        "news", "blog", "life", "company", "center", "team", "design", "studio", "photo", "zone", "museum"}
# fmt: on
FILES = {"js", "py", "ts", "md", "rs", "sh", "so"}
# What stands before a number that only looks like one of these, and after one that counts something.
OTHER_NUMBER = re.compile(
    r"(?:(?:订单|单|流水|合同|编|序列|工|学|票据|受理|货|证书|批|案|发票|凭证|回执)(?:编?号码?|代码)|订单|QQ群?号?码?"
    r"|(?:\b|_)(?:u?id|ID)|\border\w*|\b[Nn]o\.?)[\"']?\s*(?:是|为)?\s*[:：=＝]?\s*[\"']?$|[第约]\s*$|[A-Za-z_]/$|\d:$"
)
AMOUNT = re.compile(r"\s*(?:亿|万|元|美元|吨|公里|千米|千克|光年|年|个|次|人|件|字节|比特|台|株|只|颗|倍|%)|\.[A-Za-z]")
GROUP_BEFORE, GROUP_AFTER = re.compile(r"\d[ -]$"), re.compile(r" \d")
VERSION = re.compile(r"(?:版本?号?|[Vv]ersion|[Vv]er\.?|[Rr]elease)\s*[:：]?\s*$")
SHELL = re.compile(r"\b(?:ssh|scp|sftp|rsync)\b[^\n]*$")


class Found(NamedTuple):
    """A place in a text: from start to before end; `kind` is a key of PLACEHOLDERS."""

    start: int
    end: int
    kind: str


def is_plain_number(text, match):
    """Does a run of digits stand by itself, not as an order number, an amount, or in a row of groups of digits?"""
    start, end = match.span()
    before = text[max(0, start - 20) : start]
    if not match[0].isdigit() and (GROUP_BEFORE.search(before) or GROUP_AFTER.match(text, end)):
        return False
    return not (OTHER_NUMBER.search(before) or AMOUNT.match(text, end))


def is_identity(text, match):
    """A province, a date that has been, and the check digit of GB 11643-1999 (ISO 7064, MOD 11-2)."""
    number = re.sub("[ -]", "", match[0]).upper()
    weights = (pow(2, 17 - i, 11) for i in range(18))
    total = sum((10 if digit == "X" else int(digit)) * weight for digit, weight in zip(number, weights))
    return total % 11 == 1 and has_birthday(number)


def has_birthday(number):
    """Do the first 14 digits name a province and a day from 1900 to today?"""
    try:
        born = datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    return int(number[:2]) in PROVINCES and datetime.date(1900, 1, 1) <= born <= datetime.date.today()


def is_card(text, match):
    """An issuer's prefix and length, and the check digit of ISO/IEC 7812 (Luhn)."""
    number = re.sub("[ -]", "", match[0])
    if not CARD_NUMBER.fullmatch(number) or (len(number) == 18 and has_birthday(number)):
        return False
    digits = [int(digit) for digit in reversed(number)]
    total = sum(digits[::2]) + sum(2 * digit - 9 * (digit > 4) for digit in digits[1::2])
    return total % 10 == 0 and len(set(number)) > 2 and is_plain_number(text, match)


def is_public_address(text, match):
    """A public IPv4 address that is no version or section number: those have small parts."""
    try:
        address = ipaddress.IPv4Address(match[0])
    except ValueError:
        return False
    usual = address.is_global and not address.is_multicast and max(address.packed) > 30
    return usual and not VERSION.search(text[max(0, match.start() - 12) : match.start()])


def is_email(text, match):
    """A known domain, not the login of a command, a URL or a Git address."""
    top, (start, end) = match["top"].lower(), match.span()
    if top not in TOPS and (len(top) != 2 or top in FILES):
        return False
    line = text[text.rfind("\n", 0, start) + 1 : start]
    is_login = (
        SHELL.search(line) or "://" in line.rpartition(" ")[2] or re.match(r":[\w~/.]", text[end : end + 2], re.A)
    )
    return not is_login


def is_phone(text, match):
    """Digits that stand by themselves; those of a number with the country's code may stand anywhere."""
    return match.groupdict().get("country") or is_plain_number(text, match)


NUMBERS = (
    ("id", IDENTITY, is_identity),
    ("card", CARD, is_card),
    ("mobile", MOBILE, is_phone),
    ("landline", LANDLINE, is_phone),
    ("ip", ADDRESS, is_public_address),
)


def find_personal(text):
    """The personal data in a text: list of Found in order, none of which overlap."""
    plain = text.translate(HALF_WIDTH) if FULL_WIDTH.search(text) else text
    kinds = [("email", EMAIL, is_email)] if "@" in plain else []
    kinds += NUMBERS if NUMBER.search(plain) else ()
    found, taken = [], set()
    for kind, pattern, is_one in kinds:
        for match in pattern.finditer(plain):
            places = range(*match.span())
            if taken.isdisjoint(places) and is_one(plain, match):
                found.append(Found(*match.span(), kind))
                taken.update(places)
    return sorted(found)


def find_urls(text):
    """Web addresses from their scheme or www. to the last character that may end one: list of Found in order."""
    if "://" not in text and "www." not in text.lower():
        return []
    found = []
    for match in URL.finditer(text):
        url = match[0]
        depth = 0
        for at, character in enumerate(url) if ")" in url else ():
            depth += (character == "(") - (character == ")")
            if depth < 0:  # the bracket began before the address
                url = url[:at]
                break
        url = url.rstrip(".,;:!?*")
        found.append(Found(match.start(), match.start() + len(url), "url"))
    return found


def masked(text, found):
    """`text` with the places in `found` replaced by their placeholders."""
    parts, at = [], 0
    for start, end, kind in found:
        parts += [text[at:start], PLACEHOLDERS[kind]]
        at = end
    return "".join([*parts, text[at:]]) if found else text


def mask_personal(text):
    """str → (str, None), a rule."""
    return masked(text, find_personal(text)), None


def mask_urls(text):
    """str → (str, None), a rule."""
    return masked(text, find_urls(text)), None
