"""Small corpora for tests of what is done to text."""

import random

NOUNS, VERBS, PLACES = (
    "小明 老师 北京 孩子 天气 朋友".split(),
    "看见 喜欢 画出 买来 走过".split(),
    "河边 学校 山上 家里".split(),
)


def sentences(n, seed=0):
    """n different texts of several sentences."""
    rng = random.Random(seed)
    words = lambda: f"{rng.choice(NOUNS)}在{rng.choice(PLACES)}{rng.choice(VERBS)}了{rng.randint(1, 999)}只鸟。"  # noqa: E731
    return [f"{i}：" + "".join(words() for _ in range(rng.randint(2, 12))) for i in range(n)]


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
