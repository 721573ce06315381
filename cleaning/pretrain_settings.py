"""What `data_process.py pretrain` can be asked for, and what that means: which files, which mixture, which scorers."""

import contextlib
from dataclasses import dataclass

from cleaning.minhash import NearDuplicates, check_near_duplicates
from cleaning.readers import expand_inputs
from cleaning.repeated_lines import RepeatedLines, check_repeated_lines
from cleaning.scorer import load_scorer
from cleaning.selection import ORDERS, Mixture, check_named, check_once, parse_weights
from cleaning.settings import knob


@dataclass
class PretrainSettings:
    """What `data_process.py pretrain` is asked for. Those without a flag here are flags of the script itself."""

    input: list
    output: str
    tokenizer: str
    seed: int = 0
    field: str | None = knob(None, "field with the text; unset: found by itself")
    rules: list[str] = knob(list, "cleaning rules, or sets of them: web, books, light; a wrong name lists all")
    dry_run: bool = knob(False, "show what the rules would do, and ten examples of each, and write nothing")
    val_fraction: float = knob(0.01, "share of the texts that is held out")
    mix: list[str] = knob(list, "PATH:WEIGHT instead of --input: draw from them in this ratio of tokens")
    max_repeats: float = knob(1.0, "with --mix: how often the texts of the scarcest source may be used")
    mix_domains: list[str] = knob(list, "NAME:WEIGHT, the same by the kinds that --domains tells apart")
    repeated_lines: int = knob(0, "leave out lines that stand in so many documents, such as footers; 0: none")
    near_duplicates: float = knob(
        0.0, "of texts that share so much of their runs of characters one stays; 0.8 is usual"
    )
    quality: str | None = knob(None, "scorer made by `data_process.py quality --good`; the best near-duplicate stays")
    min_quality: float = knob(0.0, "with --quality: drop texts that score less")
    domains: str | None = knob(None, "scorer made by `data_process.py quality --domains`")
    order: str | None = knob(
        None, "order of the texts; the longest or best come last. Unset: shuffle in a mixture, else source", ORDERS
    )
    anneal: float = knob(0.0, "share of the tokens, the best texts, that goes into NAME_anneal.bin instead")
    shard_tokens: int = knob(0, "write a folder of .bin files of this many ids; 0: one file")
    fresh: bool = knob(False, "start over instead of going on with an unfinished run")
    num_workers: int | None = knob(None, "processes; unset: one per core, or none for small inputs")

    def __post_init__(self):
        if self.order is None:
            self.order = "shuffle" if self.mix or self.mix_domains else "source"
        if not 0 <= self.val_fraction < 1:
            raise ValueError(
                f"--val_fraction {self.val_fraction} is not a share of the texts; give 0 up to below 1, such as 0.01"
            )
        if not 0 <= self.anneal < 1:
            raise ValueError(f"--anneal {self.anneal} is not a share of the tokens; give 0 up to below 1, such as 0.1")
        if not 0 <= self.min_quality <= 1:
            raise ValueError(f"--min_quality {self.min_quality} is not a score; give 0 to 1")
        if self.domains and not self.mix_domains:
            raise ValueError("--domains has no effect without --mix_domains; leave it out, or say what to mix")
        if self.quality and not (self.near_duplicates or self.min_quality or self.anneal or self.order == "quality"):
            raise ValueError(
                "--quality has no effect without --min_quality, --near_duplicates, --anneal or --order quality; "
                "leave it out, or say what the scores are for"
            )
        if self.max_repeats < 1:
            raise ValueError(f"--max_repeats {self.max_repeats}: a text is used at least once; give 1 or more")
        if (self.anneal or self.min_quality or self.order == "quality") and not self.quality:
            raise ValueError("--anneal, --min_quality and --order quality need scores: --quality out/quality.npz")
        if self.dry_run and not self.rules:
            raise ValueError("--dry_run shows what rules would do; name them: --rules web, or --rules html pii ...")
        check_named(self.input, self.mix)
        if self.mix and self.mix_domains:
            raise ValueError("--mix and --mix_domains are two mixtures; give one")
        if self.mix_domains and not self.domains:
            raise ValueError("--mix_domains needs to know the kinds: --domains out/domains.npz")
        if not (self.mix or self.mix_domains) and self.max_repeats != 1:
            raise ValueError("--max_repeats has no effect without --mix or --mix_domains; leave it out")
        if self.near_duplicates:
            with of_flag("near_duplicates"):
                check_near_duplicates(NearDuplicates(self.near_duplicates))
        with of_flag("repeated_lines"):
            check_repeated_lines(RepeatedLines(self.repeated_lines))
        if self.shard_tokens < 0:
            raise ValueError(f"--shard_tokens {self.shard_tokens}: give a number of ids, such as 100000000, or 0")


@contextlib.contextmanager
def of_flag(name):
    """A context in which an error names the flag that a person typed."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"--{name}: {error}") from error


def sources_of(cfg):
    """(files, group of each): those of --input, group 0, or of --mix with a group for each of its entries."""
    names = [name for name, _ in parse_weights(cfg.mix, "--mix")]
    groups = [expand_inputs(name) for name in names] if names else [expand_inputs(cfg.input)]
    files = [path for paths in groups for path in paths]
    check_once(files)
    return files, [number for number, paths in enumerate(groups) for _ in paths]


def mixture_of(cfg, groups):
    """The Mixture that --mix or --mix_domains asks for, or None; `groups`: that of each source."""
    if cfg.mix:
        names, weights = zip(*parse_weights(cfg.mix, "--mix"))
        return Mixture("source", dict(enumerate(groups)), list(weights), list(names))
    if not cfg.mix_domains:
        return None
    weights, names = dict(parse_weights(cfg.mix_domains, "--mix_domains", "NAME")), load_scorer(cfg.domains).names
    if unknown := set(weights).difference(names):
        raise ValueError(f"--mix_domains: {cfg.domains} tells {', '.join(names)} apart, not {', '.join(unknown)}")
    if len(weights) < len(cfg.mix_domains):
        raise ValueError("--mix_domains names a kind twice; give each one weight")
    return Mixture("domain", {names.index(n): i for i, n in enumerate(weights)}, list(weights.values()), list(weights))


def check_scorers(cfg):
    """ValueError, or FileNotFoundError, for a scorer that cannot be used for what it is named for."""
    for flag, kind in (("quality", "quality"), ("domains", "domains")):
        path = getattr(cfg, flag)
        if path and load_scorer(path).about["kind"] != kind:
            raise ValueError(f"--{flag} {path} is a classifier of the other kind; see data_process.py quality --help")
