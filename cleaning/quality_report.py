"""How far a quality or domain classifier can be trusted, on texts it has not learnt from."""

import unicodedata

import numpy as np

from cleaning.ngrams import buckets, library
from cleaning.scorer import probabilities_of

REPORT = "how a classifier of texts does"  # the mark by which our .json is told from others
SHOWN = 10  # texts of each list
EXCERPT = 120  # characters of each
LOOKED_THROUGH = 2000  # texts, chosen by hash, in which cues and n-grams are looked for


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(scorer, examples, classes, weights):
    """What is to be known about a classifier.

    Args:
        scorer: Scorer.
        examples: N held-out texts, of cleaning.quality.Example.
        classes: (N,) their true class numbers; weights: (N,) how much each counts.
    Returns:
        A dict that JSON can hold: `brier`, `log_loss` (nats), `reliability` by tenths, `speaks_for`, lists of texts;
        for quality `auc`, `kept_at`, `cues`; for domains `accuracy`, `confusion` (rows: true), `precision`, `recall`.
    """
    p = probabilities_of(scorer.logits([e.text for e in examples]))
    own = np.maximum(p[np.arange(len(p)), classes], 1e-300)
    found = {
        "brier": mean((np.square(p).sum(axis=1) - 2 * own + 1) / (2 if p.shape[1] == 2 else 1), weights),
        "log_loss": mean(-np.log(own), weights),
        "speaks_for": strongest(scorer, *zip(*[(examples[i].text, classes[i]) for i in chosen(examples)])),
    }
    if scorer.about["kind"] == "quality":
        return found | quality(scorer, examples, classes, weights, p[:, 1])
    return found | domains(scorer, examples, classes, weights, p)


def mean(values, weights):
    return float(np.average(values, weights=weights))


def chosen(examples):
    """The indices of the same few of the held-out texts for whatever takes long."""
    return sorted(range(len(examples)), key=lambda i: examples[i])[:LOOKED_THROUGH]


def quality(scorer, examples, classes, weights, score):
    """The part of the report that is about telling good from raw; `score` (N,) is the probability of good."""
    auc = library("sklearn.metrics").roc_auc_score
    order = np.argsort(-score, kind="stable")
    above, below = order[score[order] >= 0.5], order[score[order] < 0.5]

    def listed(indices):
        return [told(examples[i], scorer.names[classes[i]], score[i]) for i in indices]

    return {
        "auc": float(auc(classes, score)),
        "reliability": reliability(score, classes == 1, weights),
        "kept_at": [
            {
                "min_quality": round(t, 1),
                "good": float((score[classes == 1] >= t).mean()),
                "raw": float((score[classes == 0] >= t).mean()),
            }
            for t in np.arange(1, 10) / 10
        ],
        "cues": cues(examples, classes, score, auc),
        "best": listed(order[:SHOWN]),
        "just_above": listed(above[::-1][:SHOWN]),
        "just_below": listed(below[:SHOWN]),
        "worst": listed(order[::-1][:SHOWN]),
    }


def domains(scorer, examples, classes, weights, p):
    """The part of the report that is about telling domains apart; p (N, K)."""
    K, said, sure = p.shape[1], p.argmax(axis=1), p.max(axis=1)
    confusion = np.bincount(K * classes + said, minlength=K * K).reshape(K, K)
    right = said == classes
    wrong = np.flatnonzero(~right)

    def listed(indices):
        rows = [told(examples[i], scorer.names[classes[i]], sure[i]) for i in indices]
        return [{**row, "said": scorer.names[said[i]]} for row, i in zip(rows, indices)]

    return {
        "accuracy": mean(right, weights),
        "confusion": confusion.tolist(),
        "precision": (confusion.diagonal() / np.maximum(confusion.sum(axis=0), 1)).tolist(),
        "recall": (confusion.diagonal() / confusion.sum(axis=1)).tolist(),
        "reliability": reliability(sure, right, weights),
        "surely_wrong": listed(wrong[np.argsort(-sure[wrong], kind="stable")][:SHOWN]),
        "least_sure": listed(np.argsort(sure, kind="stable")[:SHOWN]),
    }


def told(example, label, score):
    """One text as the report lists it."""
    place = f"{example.file}:{example.line}"
    return {"score": round(float(score), 6), "label": label, "place": place, "text": example.text[:EXCERPT]}


def reliability(said, happened, weights):
    """Per tenth of the probability that was `said`: how often it `happened`. Empty tenths are left out."""
    tenth = np.minimum((10 * said).astype(int), 9)
    return [
        {
            "from": t / 10,
            "to": (t + 1) / 10,
            "documents": int((tenth == t).sum()),
            "said": mean(said[tenth == t], weights[tenth == t]),
            "happened": mean(happened[tenth == t], weights[tenth == t]),
        }
        for t in np.unique(tenth).tolist()
    ]


# --- what it has learnt -----------------------------------------------------------------------------------------------


def shares_of_kinds(text):
    """{cue: value} of one text: its length and how much of it is of which kind of character."""
    kinds = [unicodedata.category(c) for c in text]
    letters = sum(kind in ("Lu", "Ll") for kind in kinds)
    size = max(len(text), 1)
    return {
        "length": len(text),
        "Chinese and other letters without case": sum(kind == "Lo" for kind in kinds) / size,
        "letters with case": letters / size,
        "digits": sum(kind[0] == "N" for kind in kinds) / size,
        "punctuation": sum(kind[0] == "P" for kind in kinds) / size,
        "different characters": len(set(text)) / size,
    }


def cues(examples, classes, score, auc):
    """How far trivial properties of a text explain what the classifier does.

    Returns:
        {cue: {`auc_alone`: what the cue reaches without any classifier, 0.5 is nothing, below it the cue speaks for
        raw; `follows`: rank correlation of score and cue within a class, the mean of both}}.
    """
    spearman = library("scipy.stats").spearmanr
    rows = np.array(chosen(examples))
    table = [shares_of_kinds(examples[i].text) for i in rows]
    found = {}
    for cue in table[0]:
        values = np.array([row[cue] for row in table])
        groups = [(score[rows][classes[rows] == c], values[classes[rows] == c]) for c in (0, 1)]
        varied = [pair for pair in groups if all(len(np.unique(side)) > 1 for side in pair)]
        found[cue] = {
            "auc_alone": float(auc(classes[rows], values)) if len(set(classes[rows])) == 2 else None,
            "follows": float(np.mean([spearman(*pair)[0] for pair in varied])) if varied else None,
        }
    return found


def strongest(scorer, texts, classes, how_many=20):
    """{class: the n-grams that tell it from the others most}.

    That is by weight times how much larger the share of its `texts` is that contain the n-gram.
    """
    K, classes = len(scorer.names), np.array(classes)
    met = {}  # n-gram → [bucket, number of texts of each class]
    for text, own in zip(texts, classes):
        numbers, _ = buckets([text], scorer.bits, scorer.longest)
        text = text.ljust(scorer.longest)
        for gram, bucket in {
            text[i : i + n]: b for i, row in enumerate(numbers.tolist()) for n, b in enumerate(row, 1)
        }.items():
            met.setdefault(gram, [bucket] + [0] * K)[1 + own] += 1
    grams, table = list(met), np.array(list(met.values()))
    share = table[:, 1:] / np.maximum(np.bincount(classes, minlength=K), 1)
    others = (share.sum(axis=1, keepdims=True) - share) / (K - 1)
    weights = scorer.weights[table[:, 0]]
    weights = np.hstack([-weights, weights]) if K == 2 else weights - weights.mean(axis=1, keepdims=True)
    power = np.maximum(weights, 0) * (share - others)
    best = np.argsort(-power, axis=0, kind="stable")[:how_many]
    return {name: [grams[i] for i in best[:, c] if power[i, c] > 0] for c, name in enumerate(scorer.names)}


# --- printing ---------------------------------------------------------------------------------------------------------


def show(report, drops):
    """Prints a report for a person."""
    for name, counts in report["documents"].items():
        used = ", ".join(f"{counts[part]:,} to {part}" for part in ("train", "calibrate", "test"))
        print(f"{name:<12} {counts['read']:>11,} texts read; {used}")
    print(drops.table())
    print(f"\non the texts to test: Brier {report['brier']:.4f}, log loss {report['log_loss']:.4f} nats", end=", ")
    if report["kind"] == "quality":
        print(f"AUC {report['auc']:.4f} (0.5 is chance)\n\n{'--min_quality':<14} {'good kept':>10} {'raw kept':>10}")
        for row in report["kept_at"]:
            print(f"{row['min_quality']:<14} {row['good']:>10.1%} {row['raw']:>10.1%}")
    else:
        print(f"accuracy {report['accuracy']:.2%}")
        show_confusion(report)
    print(f"\n{'said':<12} {'documents':>10} {'on average':>10} {'happened':>10}")
    for row in report["reliability"]:
        tenth = f"{row['from']:.1f} to {row['to']:.1f}"
        print(f"{tenth:<12} {row['documents']:>10,} {row['said']:>10.3f} {row['happened']:>10.3f}")
    print("\nspeaks most for")
    for name, grams in report["speaks_for"].items():
        print(f"{name:<12} {' '.join(map(repr, grams))}")
    if "cues" in report:
        print(f"\n{'cue':<40} {'AUC alone':>10} {'score follows':>14}")
        for cue, row in report["cues"].items():
            alone, follows = ("    -" if v is None else f"{v:.2f}" for v in (row["auc_alone"], row["follows"]))
            print(f"{cue:<40} {alone:>10} {follows:>14}")
    for title in ("best", "just_above", "just_below", "worst", "surely_wrong", "least_sure"):
        if title in report:
            print(f"\n{title.replace('_', ' ')}")
            for row in report[title]:
                said = f" said {row['said']}" if "said" in row else ""
                print(f"  {row['score']:.4f} {row['label']}{said}  {row['place']}: {row['text'][:60]}")


def show_confusion(report):
    """The table of what was taken for what, one row per true class."""
    print("\nrows: true, columns: said")
    print(f"{'':<12}", *(f"{number:>6}" for number in range(len(report["labels"]))), f"{'recall':>8} {'precision':>10}")
    rows = zip(report["labels"], report["confusion"], report["recall"], report["precision"])
    for number, (name, row, recall, precision) in enumerate(rows):
        told = " ".join(f"{count:>6,}" for count in row)
        print(f"{f'{number} {name}':<12} {told} {recall:>8.1%} {precision:>10.1%}")
