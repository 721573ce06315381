"""What a hub holds, and one file of it: Hugging Face and ModelScope through their own libraries.

Both are asked the same two questions: `listing` (which files, how large, with which checksum) and `fetch` (this file,
going on where a broken download stopped). What goes wrong becomes one sentence with the next step.
"""

import contextlib
import importlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from cleaning.files import NO_SPACE, safe_path

PAGES = {"huggingface": "https://huggingface.co", "modelscope": "https://modelscope.cn"}
TIMEOUT = 10  # seconds for an answer about a repository; files have the libraries' own limits
LOGIN = {
    "huggingface": "hf auth login (or set HF_TOKEN)",
    "modelscope": "modelscope login (or set MODELSCOPE_API_TOKEN)",
}
INSTEAD = {"huggingface": "try a mirror, --endpoint https://hf-mirror.com", "modelscope": "try later"}


class Unreachable(OSError):
    """No answer, or not the answer of a hub; another source may do."""


class NotThere(OSError):
    """The hub has no such repository, revision or file, or shows it only to others; another source may have it."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: `size` in bytes; one of the checksums may be known, both as hex digits."""

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass
class Listing:
    """What a repository holds: `commit` names exactly this state; `licence` as its page's header has it, or None."""

    commit: str
    licence: str | None = None
    files: list = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A repository of data on a hub; `endpoint` is the address of the hub, None for its own."""

    hub: str
    repo: str
    endpoint: str | None = None

    def page(self):
        """Where a person reads about it."""
        return f"{self.address()}/datasets/{self.repo}"

    def address(self):
        """The endpoint: given, from the environment, or the hub's own."""
        names = {"huggingface": ["HF_ENDPOINT"], "modelscope": ["MODELSCOPE_ENDPOINT"]}[self.hub]
        from_environment = next((os.environ[n] for n in names if os.environ.get(n)), None)
        return (self.endpoint or from_environment or PAGES[self.hub]).rstrip("/")

    def token(self):
        """Which credential the library sends: to the hub its own, to another address only one of the environment.

        Returns:
            None: what the library finds by itself; False: none.
        """
        variable = {"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}[self.hub]
        return None if self.address() == PAGES[self.hub] else os.environ.get(variable) or False


def listing(source, revision=None):
    """Listing of a repository at `revision` (branch, tag or commit; None: its main one).

    Raises:
        Unreachable, NotThere, ImportError.
    """
    return {"huggingface": huggingface_listing, "modelscope": modelscope_listing}[source.hub](source, revision)


def fetch(source, commit, file, folder):
    """A RemoteFile → its place in `folder`. What an earlier try left behind is continued, not fetched again.

    Raises:
        Unreachable, NotThere; OSError: no room on the disk.
    """
    target = safe_path(folder, file.path, source.repo)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if source.hub == "huggingface":
            huggingface_fetch(source, commit, file, target)
        else:
            modelscope_fetch(source, commit, file, folder)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise OSError(
            f"no room for {target} ({file.size:,} bytes); what came so far is kept: free some space and run the same "
            "command again, or choose another --output_dir"
        ) from error


def part_of(target):
    """Where the beginning of a file lies until it is whole."""
    return Path(f"{target}.part")


def by_hand(source, file, target, commit):
    """How a person fetches a file without this program."""
    where = {
        "huggingface": f"{source.address()}/datasets/{source.repo}/resolve/{commit}/{file.path}",
        "modelscope": f"{source.page()}/resolve/{commit}/{file.path}",
    }[source.hub]
    return f"or fetch {where} by hand, put it at {target}, and run the same command again"


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def huggingface_listing(source, revision):
    """See listing."""
    api = load("huggingface_hub").HfApi(endpoint=source.address(), token=source.token())
    with huggingface_errors(source, revision):
        info = api.dataset_info(source.repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
    card = info.card_data or {}
    told = card.get("license") or next((t[8:] for t in info.tags or () if t.startswith("license:")), None)
    licence = ", ".join(map(str, told)) if isinstance(told, list) else told
    files = [
        RemoteFile(f.rfilename, f.size or 0, f.lfs["sha256"] if f.lfs else None, None if f.lfs else f.blob_id)
        for f in info.siblings or ()
    ]
    return Listing(info.sha, licence, files)


def huggingface_fetch(source, commit, file, target):
    """See fetch. The library's own hf_hub_download starts from nothing after an interruption; its http_get does not."""
    hub = load("huggingface_hub")
    from huggingface_hub.file_download import http_get

    part = part_of(target)
    if part.exists() and part.stat().st_size > file.size:  # of another version
        part.unlink()
    url = hub.hf_hub_url(source.repo, file.path, repo_type="dataset", revision=commit, endpoint=source.address())
    with huggingface_errors(source, commit, f" {by_hand(source, file, target, commit)}"), open(part, "ab") as output:
        headers = hub.utils.build_hf_headers(token=source.token())
        http_get(
            url,
            output,
            resume_size=output.tell(),
            headers=headers,
            expected_size=file.size,
            displayed_filename=file.path,
        )
    os.replace(part, target)


@contextlib.contextmanager
def huggingface_errors(source, revision, otherwise=""):
    """A context in which the library's errors become Unreachable and NotThere."""
    errors = load("huggingface_hub").errors
    try:
        yield
    except errors.GatedRepoError as error:
        raise NotThere(
            f"{source.repo} is gated: accept its terms on {source.page()}, then {LOGIN[source.hub]}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise NotThere(f"{source.repo} has no revision {revision}; see {source.page()}/commits/main") from error
    except errors.RepositoryNotFoundError as error:
        raise NotThere(not_there(source)) from error
    except errors.HfHubHTTPError as error:
        raise answered(source, error.response.status_code, otherwise) from error
    except (errors.HTTPError, OSError) as error:
        if getattr(error, "errno", None):  # the disk's
            raise
        raise unreachable(source, error, otherwise) from error
    except (ValueError, KeyError, TypeError) as error:
        raise no_hub(source) from error


def no_hub(source):
    """The error for an address where something else answers, such as the login page of a network."""
    return Unreachable(f"{source.address()} does not answer as a hub does; {INSTEAD[source.hub]}")


def not_there(source):
    """The sentence for a repository that the hub does not show."""
    return (
        f"{source.address()} shows no data set {source.repo}: check the name on {source.page()}; if it is private, "
        f"{LOGIN[source.hub]}"
    )


def answered(source, status, otherwise=""):
    """The error for an HTTP status."""
    if status in (401, 403):
        return NotThere(f"{source.repo} is only for those who may see it ({status}): {LOGIN[source.hub]}{otherwise}")
    if status == 404:
        return NotThere(f"{source.address()} has not what it lists for {source.repo} (404);{otherwise or ' try later'}")
    return Unreachable(f"{source.address()} answered {status}; {INSTEAD[source.hub]}{otherwise}")


def unreachable(source, error, otherwise=""):
    """The error for a hub that does not answer."""
    while error.__cause__ or error.__context__:  # libraries wrap what the system said several times
        error = error.__cause__ or error.__context__
    reason = str(error).split("\n")[0][:120] or type(error).__name__
    again = ", and run the same command again: it goes on where it stopped" if otherwise else ""
    return Unreachable(
        f"no connection to {source.address()} ({reason}); check the network, {INSTEAD[source.hub]}{again};"
        f"{otherwise}".rstrip(";")
    )


# --- ModelScope -------------------------------------------------------------------------------------------------------


def modelscope_api(source):
    """The library's client, which otherwise tells of every page and asks four times, 7 seconds, of a dead network."""
    os.environ.setdefault("MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS", "2")
    hub = load("modelscope_hub")
    logging.getLogger("modelscope_hub").setLevel(logging.ERROR)
    token = "" if source.token() is False else source.token()
    return hub.HubApi(endpoint=source.address(), token=token)


def modelscope_listing(source, revision):
    """See listing. ModelScope names no commit and no licence here, so the revision stands for itself."""
    api = modelscope_api(source)
    with modelscope_errors(source):
        found = api.list_repo_files(source.repo, "dataset", revision=revision)
    files = [RemoteFile(f.path, f.size or 0, f.sha256 or None) for f in found if f.type != "tree"]
    return Listing(revision or "master", None, files)


def modelscope_fetch(source, commit, file, folder):
    """See fetch."""
    otherwise = f" {by_hand(source, file, folder / file.path, commit)}"
    api = modelscope_api(source)
    with modelscope_errors(source, otherwise):
        api.download_file(
            source.repo,
            "dataset",
            file.path,
            revision=commit,
            local_dir=folder,
            expected_sha256=file.sha256,
            file_size=file.size,
        )


@contextlib.contextmanager
def modelscope_errors(source, otherwise=""):
    """A context in which the library's errors become Unreachable and NotThere."""
    hub = load("modelscope_hub")
    try:
        yield
    except hub.NotExistError as error:
        raise NotThere(f"{not_there(source)};{otherwise}".rstrip(";")) from error
    except hub.APIError as error:
        raise answered(source, error.status_code, otherwise) from error
    except hub.FileIntegrityError as error:  # the library has tried again and deleted what came
        raise ValueError(
            f"a file of {source.repo} arrives damaged ({error}); try another --source,{otherwise}"
        ) from error
    except (hub.HubError, OSError) as error:
        if getattr(error, "errno", None):  # the disk's
            raise
        raise no_hub(source) if "Expecting value" in str(error) else unreachable(source, error, otherwise) from error
    except (ValueError, KeyError, TypeError) as error:
        raise no_hub(source) from error


def load(library):
    """The library of a hub; ImportError says what installs it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(f"{library} is missing; pip install -r requirements-data.txt") from error
