"""Public data sets by name → dataset/<name>/, checked, with where they came from in SOURCE.json.

A set that is there already is verified and not fetched again, without a network. Nothing is fetched before its licence
was shown and agreed to.
"""

import fnmatch
import hashlib
import json
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cleaning.archives import unpack_all
from cleaning.binfile import sha256_of
from cleaning.files import DOWNLOADED, safe_path, write_files
from cleaning.hubs import NotThere, Source, Unreachable, fetch, listing
from cleaning.public_sets import LOOK, STATS, PublicSet, find_set, table
from cleaning.settings import knob

RECORD = "SOURCE.json"
NAMED = 8  # files named one by one on the screen
FILE = {"path": str, "bytes": int, "sha256": str}  # what a record holds of each file


@dataclass
class DownloadSettings:
    """Flags of `data_process.py download`."""

    names: list[str] = knob(list, "sets to fetch, by the names that --list shows")
    repo: str | None = knob(None, "any other data set on a hub: OWNER/NAME")
    source: str = knob("auto", "where to fetch from", choices=["auto", "huggingface", "modelscope"])
    endpoint: str | None = knob(None, "address of the hub or a mirror of it, such as https://hf-mirror.com")
    revision: str | None = knob(None, "branch, tag or commit of the repository")
    files: list[str] = knob(list, "patterns of the files to fetch, such as '*.jsonl', instead of the set's own")
    output_dir: str = knob("dataset", "folder that gets one folder per set")
    yes: bool = knob(False, "agree to the licence that is shown, without being asked")
    list: bool = knob(False, "show the sets that are known by name, and fetch nothing")


def check(cfg):
    """Raises ValueError for flags that make no sense, before anything is asked of a hub."""
    if not cfg.list and not cfg.names and not cfg.repo:
        raise ValueError("name a set to fetch (--list shows them), or any other with --repo OWNER/NAME")
    if cfg.repo and cfg.names:
        raise ValueError("--repo fetches one data set that has no name here; fetch the named ones in another command")
    if cfg.repo and not re.fullmatch(r"[\w.-]+/[\w.-]+", cfg.repo):
        raise ValueError(f"--repo {cfg.repo} is not OWNER/NAME, as in --repo ceval/ceval-exam")
    if cfg.endpoint and not re.match(r"https?://", cfg.endpoint):
        raise ValueError(f"--endpoint {cfg.endpoint} is not an address; write https://hf-mirror.com")
    if cfg.source != "auto":
        for entry in map(find_set, cfg.names):
            if cfg.source not in entry.sources:
                raise ValueError(f"{entry.name} is not on {cfg.source} as far as known; leave out --source")


def download(cfg, ask=input):
    """Fetches or verifies every set that `cfg` (DownloadSettings) names, and prints what it does.

    Args:
        ask: how a person at a terminal is asked; see input.
    Raises:
        ValueError: flags, a licence that nobody agreed to, a file that is not what it should be.
        OSError: no network, no such repository, no room; the sentence names the next step.
    """
    check(cfg)
    if cfg.list:
        print(table())
        return
    if cfg.repo:
        hubs = ["huggingface", "modelscope"] if cfg.source == "auto" else [cfg.source]
        name = cfg.repo.split("/")[1]
        entry = PublicSet(name, "", "", LOOK, dict.fromkeys(hubs, cfg.repo), tuple(cfg.files) or ("*",), STATS)
        entries = [entry]
    else:
        entries = [find_set(name) for name in dict.fromkeys(cfg.names)]
    for entry in entries:
        download_set(entry, cfg, ask)


def download_set(entry, cfg, ask):
    """One set: verified if it is there, else fetched."""
    folder = Path(cfg.output_dir, entry.name)
    patterns = cfg.files or list(entry.files)
    record = read_record(folder, entry)
    same = record is not None and record["asked"] == {"files": patterns, "revision": cfg.revision}
    if same and verified(folder, record):
        size = sum(file["bytes"] for file in record["files"])
        print(f"{folder}: {len(record['files'])} file(s), {size:,} bytes, all as they were fetched; nothing to do")
    else:
        source, found = first_source(entry, cfg, record if same else None)
        chosen = choose(found, patterns, source)
        agree(entry, source, found, chosen, cfg.yes, ask)
        files = fetch_files(folder, source, found.commit, chosen)
        record = make_record(entry, source, found, patterns, cfg.revision, merged(folder, files, record))
        write_record(folder, record)
        print(f"fetched and checked: {folder}, described in {folder / RECORD}")
    if entry.unpack and not unpacked(folder, record):
        record["unpacked"] = unpack_all(folder, entry.unpack == "exam")
        write_record(folder, record)
        print(f"{len(record['unpacked']):,} file(s) unpacked in {folder}")
    print(f"next: {entry.then.format(folder=folder)}")


# --- what is there ----------------------------------------------------------------------------------------------------


def read_record(folder, entry):
    """SOURCE.json of an earlier download, None without one; ValueError if it is of something else."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        same = record["format"] == DOWNLOADED and record["repository"] in entry.sources.values()
        whole = all(isinstance(file[key], kind) for file in record["files"] for key, kind in FILE.items())
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not whole ({error}); delete it and run the same command again") from error
    if not same or not whole:
        raise ValueError(f"{path} describes something else ({record.get('repository')}); choose another --output_dir")
    return record


def write_record(folder, record):
    """The record → SOURCE.json."""
    write_files(folder, {RECORD: json.dumps(record, ensure_ascii=False, indent=1)})


def unpacked(folder, record):
    """Whether everything that came out of the archives is still there; to look into a large one again takes long."""
    sizes = record.get("unpacked") or {}
    places = {folder / name: size for name, size in sizes.items()}
    return bool(places) and all(p.exists() and p.stat().st_size == size for p, size in places.items())


def verified(folder, record):
    """Whether all files of a record are there and unchanged; False if one is missing, ValueError if one differs."""
    print(f"{folder}: verifying {len(record['files'])} file(s)")
    missing = []
    for file in record["files"]:
        path = safe_path(folder, file["path"], folder / RECORD)
        if not path.exists():
            missing.append(file["path"])
        elif path.stat().st_size != file["bytes"] or sha256_of(path) != file["sha256"]:
            raise ValueError(
                f"{path} has changed since it was fetched ({path.stat().st_size:,} bytes, {file['bytes']:,} then); "
                "move it away if you want to keep it, else delete it, and run the same command again"
            )
    if missing:
        print(f"not there any more, and fetched again: {', '.join(missing)}")
    return not missing


# --- what a hub has ---------------------------------------------------------------------------------------------------


def first_source(entry, cfg, record=None):
    """(Source, Listing) of the first hub that answers; --endpoint is the address of the first one asked.

    Args:
        record: of an earlier download that is to be completed, so from the same commit.
    """
    hubs = list(entry.sources) if cfg.source == "auto" else [cfg.source]
    if record and record["hub"] in hubs:
        hubs.sort(key=lambda hub: hub != record["hub"])
    for i, hub in enumerate(hubs):
        source = Source(hub, entry.sources[hub], None if i else cfg.endpoint)
        revision = record["revision"] if record and hub == record["hub"] else cfg.revision
        try:
            return source, listing(source, revision)
        except (Unreachable, NotThere) as error:
            if i == len(hubs) - 1 or cfg.revision:  # which names a state of one repository; the other hub has others
                untried = [f", or --source {hub}" for hub in entry.sources if hub not in hubs[: i + 1]]
                raise type(error)(f"{error}{''.join(untried)}") from error
            print(f"{error}\ntrying {hubs[i + 1]}")


def choose(found, patterns, source):
    """The RemoteFiles that match; what matches nothing is printed, and nothing at all is a ValueError."""
    chosen = [f for f in found.files if any(fnmatch.fnmatchcase(f.path, pattern) for pattern in patterns)]
    chosen = [f for f in chosen if f.path != RECORD]
    if not chosen:
        there = ", ".join(f.path for f in found.files[:NAMED]) or "nothing"
        raise ValueError(
            f"{source.page()} has no {' or '.join(patterns)}; there: {there}"
            f"{', …' if len(found.files) > NAMED else ''}. Choose with --files, or name an older --revision"
        )
    unmatched = [p for p in patterns if not any(fnmatch.fnmatchcase(f.path, p) for f in chosen)]
    if unmatched:
        print(f"not there, left out: {', '.join(unmatched)}")
    return chosen


def agree(entry, source, found, chosen, yes, ask):
    """Shows licence and size, and goes on only if that is fine; ValueError otherwise."""
    print(f"{entry.name}: {source.page()} at {found.commit}")
    print(f"licence: {entry.licence}; the hub says: {found.licence or 'nothing'}")
    for file in chosen[:NAMED]:
        print(f"{file.size:>16,}  {file.path}")
    print(f"{sum(file.size for file in chosen):>16,}  bytes in {len(chosen)} file(s)")
    if yes:
        return
    if not sys.stdin.isatty():
        raise ValueError(f"read the licence of {entry.name} on {source.page()}, then add --yes to fetch it")
    if ask("fetch under this licence? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ValueError(f"{entry.name} is not fetched")


# --- fetching ---------------------------------------------------------------------------------------------------------


def fetch_files(folder, source, commit, chosen):
    """Fetches what is not there yet, checks all against what the hub says of them, and returns them as recorded."""
    targets = {file: safe_path(folder, file.path, source.repo) for file in chosen}
    missing = [file for file, target in targets.items() if not target.exists()]
    recorded = []
    for file in chosen:
        if file not in missing:
            problem, entry = compare(targets[file], file, commit)
            if problem:
                raise ValueError(
                    f"{targets[file]} is there but is not what {source.page()} has ({problem}); move it away or delete "
                    "it, and run the same command again"
                )
            recorded.append(entry)
    check_room(folder, sum(file.size for file in missing))
    for file in missing:
        fetch(source, commit, file, folder)
        problem, entry = compare(targets[file], file, commit)
        if problem:
            targets[file].unlink()
            raise ValueError(
                f"{file.path} arrived damaged ({problem}) and was deleted; run the same command again, or use another "
                "--source or --endpoint"
            )
        recorded.append(entry)
    return recorded


def check_room(folder, needed):
    """OSError if the disk cannot hold so many bytes more."""
    free = shutil.disk_usage(next(p for p in [folder, *folder.parents] if p.exists())).free
    if needed > free:
        raise OSError(
            f"no room for {needed:,} bytes in {folder}: {free:,} are free; free some space, choose another "
            "--output_dir, or fewer --files"
        )


def compare(path, file, commit):
    """(how a file differs from the RemoteFile it should be, or None; how it is recorded)."""
    size, digest = path.stat().st_size, sha256_of(path)
    problem = None
    if size != file.size:
        problem = f"{size:,} bytes, not {file.size:,}"
    elif file.sha256 and digest != file.sha256:
        problem = f"SHA-256 {digest[:16]}…, not {file.sha256[:16]}…"
    elif file.git_sha1 and git_sha1_of(path) != file.git_sha1:
        problem = "another checksum than git's"
    return problem, {"path": file.path, "bytes": size, "sha256": digest, "revision": commit}


def git_sha1_of(path):
    """The name that git gives to a file's content; hubs tell it for small files."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def merged(folder, files, before):
    """Files as recorded now, and those of an earlier record that are still there; each has its own commit."""
    now = {file["path"] for file in files}
    kept = [f for f in (before or {"files": []})["files"] if f["path"] not in now and (folder / f["path"]).exists()]
    return sorted(kept + files, key=lambda file: file["path"])


def make_record(entry, source, found, patterns, revision, files):
    """What SOURCE.json says."""
    return {
        "format": DOWNLOADED,
        "version": 1,
        "name": entry.name,
        "hub": source.hub,
        "repository": source.repo,
        "endpoint": source.address(),
        "page": source.page(),
        "revision": found.commit,
        "asked": {"files": patterns, "revision": revision},
        "date": time.strftime("%Y-%m-%d"),
        "licence": {"table": entry.licence, "hub": found.licence},
        "files": files,
    }
