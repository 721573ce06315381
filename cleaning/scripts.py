"""Which scripts a text is written in: Chinese, English, digits, others; hints of simplified or traditional Chinese."""

import functools

import numpy as np

SCRIPTS = ("Chinese", "English", "digits", "other letters", "signs and spaces")
LANGUAGES = (
    *("simplified Chinese", "traditional Chinese", "Chinese, either", "English", "digits"),
    *("other letters", "signs only"),
)
IDEOGRAPHS = ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF), (0x3007, 0x3007))
LETTERS = ((ord("A"), ord("Z")), (ord("a"), ord("z")), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A))
DIGITS = ((ord("0"), ord("9")), (0xFF10, 0xFF19))
LAST = 0x110000
# Frequent characters that belong to only one way of writing: 为 is never traditional, 爲 and 為 are never simplified.
SIMPLIFIED = (
    "为国个会时这对数条当应来与关发务过机们经将进实内业说规动现处学区据无设门体间从员开长产军计构结权单则组东类问变请证统调责线没见义资级点标两样"
    "议运节复还称场书齐万给项参监该报检传记题车风码气执试阳职电战测马语况华确强态营层质护选认环达输约让论属许观园验队赵县备织办总张汉导号获举乐农"
)
TRADITIONAL = (
    "爲國個會時這對數條當應來與關發務過機們經將進實內業說規動現處學區據無設門體間從員開長產軍計構結權單則組東類問變請證統調責線沒見義資級點標兩樣"
    "議運節復還稱場書齊萬給項參監該報檢傳記題車風碼氣執試陽職電戰測馬語況華確強態營層質護選認環達輸約讓論屬許觀園驗隊趙縣備織辦總張漢導號獲舉樂農"
    "為裡衆啓說"
)


@functools.cache
def tables():
    """(class, hint) of every code point, uint8: class is an index into SCRIPTS; hint 1 simplified, 2 traditional."""
    kinds = np.full(LAST, SCRIPTS.index("signs and spaces"), dtype=np.uint8)
    basic = np.array([chr(c).isalpha() for c in range(0x10000)])  # nearly all letters there are
    kinds[:0x10000][basic] = SCRIPTS.index("other letters")
    for name, spans in (("Chinese", IDEOGRAPHS), ("English", LETTERS), ("digits", DIGITS)):
        for first, last in spans:
            kinds[first : last + 1] = SCRIPTS.index(name)
    hints = np.zeros(LAST, dtype=np.uint8)
    for value, characters in ((1, SIMPLIFIED), (2, TRADITIONAL)):
        hints[[ord(c) for c in characters]] = value
    return kinds, hints


def scripts_of(texts):
    """N texts → ((N, 5) characters of each script in each, (N, 2) of them only simplified and only traditional)."""
    kinds, hints = tables()
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    of_text = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    counts = np.bincount(of_text * 5 + kinds[points], minlength=5 * len(texts))
    found = np.bincount(of_text * 3 + hints[points], minlength=3 * len(texts))
    return counts.reshape(-1, 5), found.reshape(-1, 3)[:, 1:]


def languages_of(counts, found):
    """What scripts_of gives → (N,) index into LANGUAGES: the script with the most characters, signs left out."""
    most = counts[:, :4].argmax(axis=1)
    chinese = np.where(found[:, 0] > found[:, 1], 0, np.where(found[:, 1] > found[:, 0], 1, 2))
    return np.where(counts[:, :4].sum(axis=1) == 0, 6, np.where(most == 0, chinese, most + 2))
