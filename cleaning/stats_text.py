"""Data statistics as a person reads them in a terminal."""

WIDEST = 40  # columns of a bar
SHOWN = 10  # domains


def figure(value, spec=","):
    """A number; '-' where it is not known."""
    return "-" if value is None else format(value, spec)


def report(figures, drops):
    """What `statistics` returns → lines."""
    total = figures["total"]
    lines = ["", *file_lines(figures)]
    for unit in ("characters", "tokens"):
        if total["lengths"][unit]:
            lines += ["", *length_lines(total["lengths"][unit], unit)]
    if "scripts" in total:
        lines += ["", *share_lines("characters by script", total["scripts"])]
        hints = f"{total['only_simplified']:,} only simplified, {total['only_traditional']:,} only traditional"
        lines += [f"  of the characters: {hints} of some 140 frequent pairs"]
        lines += ["", *share_lines("documents by what most of their letters are", total["languages"])]
    if figures["domains"]:
        lines += [
            "",
            *share_lines("documents by where they say they are from", dict(figures["domains"][:SHOWN]), total),
        ]
    rate = f"{total['duplicates']:,} of {total['documents']:,} documents, {total['duplicate_rate']:.2%}"
    return "\n".join([*lines, "", f"exact duplicates: {rate}", drops.table()])


def file_lines(figures):
    """One line per file, and one for all."""
    names = [*figures["files"], "all"] if len(figures["files"]) != 1 else list(figures["files"])
    width = max(map(len, names))
    head = f"{'documents':>11} {'characters':>14} {'bytes':>14} {'tokens':>14} {'chars/token':>11} {'duplicates':>10}"
    lines = [f"{'file':<{width}} {head}"]
    for name in names:
        f = figures["files"].get(name, figures["total"])
        counts = f"{f['documents']:>11,} {figure(f['characters']):>14} {figure(f['bytes']):>14}"
        rate = figure(f["characters_per_token"], ".2f")
        lines.append(f"{name:<{width}} {counts} {figure(f['tokens']):>14} {rate:>11} {f['duplicate_rate']:>10.2%}")
    return lines


def length_lines(lengths, unit):
    """Mean, percentiles and a histogram of bars."""
    percentiles = "  ".join(f"{q} %: {value:,.0f}" for q, value in lengths["percentiles"].items())
    lines = [f"length in {unit}: mean {lengths['mean']:,.1f}, from {lengths['shortest']:,} to {lengths['longest']:,}"]
    lines.append(f"  {percentiles}")
    most = max(count for *_, count in lengths["histogram"])
    for low, high, count in lengths["histogram"]:
        span = f"{low:,}" if low == high else f"{low:,}-{high:,}"
        bar = "#" * max(1, round(WIDEST * count / most)) if count else ""
        lines.append(f"  {span:>19} {count:>11,} {bar}".rstrip())
    return lines


def share_lines(title, counts, total=None):
    """A line with its share per name that was met."""
    whole = (total["documents"] if total else sum(counts.values())) or 1
    width = max((len(name) for name in counts), default=0)
    return [title] + [f"  {name:<{width}} {n:>14,} {n / whole:>7.1%}" for name, n in counts.items() if n]
