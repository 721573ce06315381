"""The data statistics of data_process.py stats in a report: lengths, languages, files, origins, what was unusable."""

from evaluation.markup import at, count, decimal, folded, h, list_at, number, percent, table, table_at, words
from evaluation.report_bars import histogram_chart, share_chart

MOST_FILES = 60
MOST_DOMAINS = 12
FILE_HEAD = (
    *("file", "documents", "characters", "bytes", "tokens", "characters per token", "bytes per token"),
    *("exact copies", "median, characters", "median, tokens"),
)


def statistics_part(path, figures):
    """One file of statistics as a part of the page."""
    total = table_at(figures, "total")
    charts = [length_chart(total, unit) for unit in ("characters", "tokens")]
    charts += [made_up_of(title, total, key) for title, key in SHARES]
    charts.append(origins(figures))
    charts = [chart for chart in charts if chart]
    parts = [h("h3", f"What the text is: {path}"), lengths_said(figures, total), files_table(figures, total)]
    parts.append(h("div", charts, class_="charts") if charts else None)
    drops = [[words(reason), count(n)] for reason, n in table_at(total, "dropped").items()]
    if drops:
        parts.append(folded("Records without usable text", table(["reason", "records"], drops)))
    return h("article", parts)


SHARES = (("Characters by script", "scripts"), ("Documents by what most of their letters are", "languages"))


def length_chart(total, unit):
    """How many documents are how long; None where that is not known."""
    groups = [
        group
        for group in list_at(total, "lengths", unit, "histogram")
        if isinstance(group, list) and len(group) == 3 and all((number(value) or 0) >= 0 for value in group)
    ]
    groups = [[number(value) or 0 for value in group] for group in groups]
    return histogram_chart(f"Documents by length in {unit}", groups, unit)


def counted(table_of_counts):
    """[(name, count)] of a dict, where the counts are numbers."""
    return [(name, n) for name, n in table_of_counts.items() if (number(n) or 0) > 0]


def made_up_of(title, total, key):
    """Shares of scripts or languages."""
    parts = counted(table_at(total, key))
    return share_chart(title, parts, sum(n for _, n in parts)) if parts else None


def origins(figures):
    """The most frequent origins, as shares of all documents."""
    pairs = [pair for pair in list_at(figures, "domains") if isinstance(pair, list) and len(pair) == 2]
    parts = [(str(name), n) for name, n in pairs if (number(n) or 0) > 0][:MOST_DOMAINS]
    whole = max(number(at(figures, "total", "documents")) or 0, *(n for _, n in parts)) if parts else 0
    return share_chart("Documents by where they say they are from", parts, whole) if parts else None


def lengths_said(figures, total):
    """Medians and tails in a sentence."""
    said, error = [], number(at(figures, "exactness", "percentiles"))
    within = f" (right within {percent(error)})" if error else ""
    for unit in ("characters", "tokens"):
        lengths = table_at(total, "lengths", unit)
        low, high = (number(at(lengths, "percentiles", q)) for q in ("5", "95"))
        if None not in (low, high, number(at(lengths, "median"))):
            middle = f"half of the documents have at most {count(at(lengths, 'median'))} {unit}"
            said.append(f"{middle}, nine in ten between {count(low)} and {count(high)}{within}")
    rate, same = number(at(total, "duplicate_rate")), count(at(total, "duplicates"))
    if rate is not None:
        said.append(f"{same} documents ({percent(rate, 2)}) are exact copies of an earlier one")
    sentence = "; ".join(said)
    return h("p", f"{sentence[:1].upper()}{sentence[1:]}.") if said else None


def files_table(figures, total):
    """One row per file, and one for all."""
    files = table_at(figures, "files")
    size = lambda name: number(at(files, name, "documents")) or 0  # noqa: E731
    shown = sorted(files, key=size, reverse=True)[:MOST_FILES]
    rows = [file_row(name, files[name]) for name in files if name in set(shown)]
    if len(files) != 1:
        rows.append(file_row("all", total))
    left = f"{len(files) - MOST_FILES} smaller files are not shown." if len(files) > MOST_FILES else None
    return [table(FILE_HEAD, rows, "Files"), h("p", left, class_="soft") if left else None]


def file_row(name, figures):
    """The figures of a file as a row."""
    rate = number(at(figures, "duplicate_rate"))
    return [
        words(name),
        *(count(at(figures, key)) for key in ("documents", "characters", "bytes", "tokens")),
        *(decimal(at(figures, key), 2) for key in ("characters_per_token", "bytes_per_token")),
        percent(rate, 2),
        *(count(at(figures, "lengths", unit, "median")) for unit in ("characters", "tokens")),
    ]
