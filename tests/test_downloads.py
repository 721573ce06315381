"""Public data sets by name: fetched, checked, recorded, and every failure one sentence with the next step.

Both hubs' own libraries talk to an imitation on this machine (hub_imitation.py).
"""

import hashlib
import io
import json
import re
import socket
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from cleaning import downloads
from cleaning.archives import exam_tables, unpack
from cleaning.downloads import DownloadSettings, download
from cleaning.public_sets import SETS
from cleaning.readers import expand_inputs
from evaluation.exams import read_exam
from tests.hub_imitation import COMMIT, Hub, serving
from trainer.args import add_fields, make_parser

HUBS = ("huggingface", "modelscope")
FILES = {"a.jsonl": b'{"text": "one line"}\n' * 1500, "more/b.txt": b"a small file"}


@pytest.fixture(autouse=True)
def quiet_and_alone(monkeypatch, tmp_path):
    """No bars, no credentials or settings of the person who runs the tests."""
    for name in ("HF_ENDPOINT", "HF_TOKEN", "MODELSCOPE_ENDPOINT", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_MAX_ATTEMPTS", 1, raising=False)


@pytest.fixture
def hub():
    with serving(Hub("me/data", FILES)) as served:
        served.large.remove("more/b.txt")
        yield served


def settings(hub, tmp_path, source="huggingface", **flags):
    given = {"repo": "me/data", "source": source, "endpoint": hub.address, "output_dir": str(tmp_path / "d")}
    return DownloadSettings(**given | {"yes": True} | flags)


def record(tmp_path, name="data"):
    return json.loads((tmp_path / "d" / name / "SOURCE.json").read_text(encoding="utf-8"))


@pytest.fixture
def nobody():
    """An address where nobody listens, kept so that nobody else begins to."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


# --- fetching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", HUBS)
def test_files_arrive_whole_and_a_second_run_fetches_nothing(hub, tmp_path, capsys, source):
    download(settings(hub, tmp_path, source))
    for path, data in FILES.items():
        assert (tmp_path / "d/data" / path).read_bytes() == data
    told = record(tmp_path)
    assert {f["path"]: (f["bytes"], f["sha256"]) for f in told["files"]} == {
        path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in FILES.items()
    }
    assert (told["repository"], told["hub"], told["endpoint"]) == ("me/data", source, hub.address)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", told["date"])
    if source == "huggingface":
        assert told["revision"] == COMMIT and told["licence"]["hub"] == "cc-by-nc-4.0"
    hub.requests.clear()
    download(settings(hub, tmp_path, source))
    assert hub.requests == [] and "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("source", HUBS)
def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, tmp_path, source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # 10 MB; less of it is not written
    hub.cut_after = 7000
    download(settings(hub, tmp_path, source, files=["a.jsonl"]))
    assert (tmp_path / "d/data/a.jsonl").read_bytes() == FILES["a.jsonl"]
    assert hub.fetched == [("a.jsonl", 0), ("a.jsonl", 7000)]


def test_what_an_earlier_run_left_behind_is_continued(hub, tmp_path):
    (tmp_path / "d/data").mkdir(parents=True)
    (tmp_path / "d/data/a.jsonl.part").write_bytes(FILES["a.jsonl"][:9000])
    download(settings(hub, tmp_path, files=["a.jsonl"]))
    assert hub.fetched == [("a.jsonl", 9000)]
    assert (tmp_path / "d/data/a.jsonl").read_bytes() == FILES["a.jsonl"]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("path", FILES)
def test_a_file_with_the_right_size_and_wrong_content_is_refused_and_not_kept(hub, tmp_path, path):
    hub.served[path] = FILES[path].replace(b"a", b"b").replace(b"one", b"two")
    with pytest.raises(ValueError, match=r"arrived damaged \((SHA-256|another checksum).*run the same command again"):
        download(settings(hub, tmp_path, files=[path]))
    assert not (tmp_path / "d/data" / path).exists() and not (tmp_path / "d/data/SOURCE.json").exists()


def test_modelscope_refuses_a_damaged_file_too(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_HASH_RETRY_TIMES", 1)
    hub.served["a.jsonl"] = FILES["a.jsonl"].replace(b"one", b"two")
    with pytest.raises(ValueError, match="arrives damaged"):
        download(settings(hub, tmp_path, "modelscope", files=["a.jsonl"]))
    assert not (tmp_path / "d/data/a.jsonl").exists()


def test_a_changed_file_is_named_and_neither_kept_silently_nor_overwritten(hub, tmp_path):
    download(settings(hub, tmp_path))
    file = tmp_path / "d/data/a.jsonl"
    file.write_bytes(FILES["a.jsonl"].replace(b"one", b"two"))
    with pytest.raises(ValueError, match=r"a\.jsonl has changed since it was fetched .* run the same command again"):
        download(settings(hub, tmp_path))
    assert b"two" in file.read_bytes()


def test_a_missing_file_is_fetched_again_from_the_recorded_commit(hub, tmp_path):
    download(settings(hub, tmp_path))
    (tmp_path / "d/data/more/b.txt").unlink()
    hub.requests.clear()
    hub.fetched.clear()
    download(settings(hub, tmp_path))
    assert hub.fetched == [("more/b.txt", 0)] and f"/revision/{COMMIT}" in hub.requests[0]


def test_more_files_of_a_set_are_added_to_its_record(hub, tmp_path):
    download(settings(hub, tmp_path, files=["*.txt"]))
    download(settings(hub, tmp_path, files=["*.jsonl"]))
    assert [f["path"] for f in record(tmp_path)["files"]] == ["a.jsonl", "more/b.txt"]
    assert hub.fetched == [("more/b.txt", 0), ("a.jsonl", 0)]


def test_a_file_fetched_by_hand_is_taken_if_it_is_the_right_one(hub, tmp_path):
    (tmp_path / "d/data").mkdir(parents=True)
    (tmp_path / "d/data/a.jsonl").write_bytes(FILES["a.jsonl"])
    download(settings(hub, tmp_path, files=["a.jsonl"]))
    assert hub.fetched == []
    (tmp_path / "d/data/more").mkdir()
    (tmp_path / "d/data/more/b.txt").write_bytes(b"another file")
    with pytest.raises(ValueError, match=r"b\.txt is there but is not what .* has"):
        download(settings(hub, tmp_path))


def test_the_record_is_not_read_as_data(hub, tmp_path):
    download(settings(hub, tmp_path))
    assert [p.name for p in expand_inputs(tmp_path / "d/data")] == ["a.jsonl", "b.txt"]
    other = tmp_path / "d/data/other.json"
    other.write_text('{"format": "a text about formats", "text": "x"}', encoding="utf-8")
    assert other in expand_inputs(tmp_path / "d/data")


# --- the licence ------------------------------------------------------------------------------------------------------


def test_without_a_terminal_a_licence_needs_yes(hub, tmp_path, capsys):
    with pytest.raises(ValueError, match="read the licence of data on .*/datasets/me/data, then add --yes"):
        download(settings(hub, tmp_path, yes=False))
    assert hub.fetched == [] and "cc-by-nc-4.0" in capsys.readouterr().out


@pytest.mark.parametrize(("said", "fetched"), [("y", True), ("yes", True), ("", False), ("n", False)])
def test_at_a_terminal_a_person_is_asked(hub, tmp_path, monkeypatch, said, fetched):
    monkeypatch.setattr("sys.stdin", namedtuple("Terminal", "isatty")(lambda: True))
    if fetched:
        download(settings(hub, tmp_path, yes=False), ask=lambda _: said)
    else:
        with pytest.raises(ValueError, match="is not fetched"):
            download(settings(hub, tmp_path, yes=False), ask=lambda _: said)
    assert bool(hub.fetched) == fetched


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", HUBS)
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "shows no data set me/other: check the name on http.*/datasets/me/other; if it is private, .*login"),
        (403, r"only for those who may see it \(403\): .*login"),
        ("page", "does not answer as a hub does; try (a mirror|later)"),
    ],
)
def test_a_refusal_is_one_sentence_with_the_next_step(hub, tmp_path, source, status, said):
    hub.status["me/other"] = status
    with pytest.raises(OSError, match=said) as raised:
        download(settings(hub, tmp_path, source, repo="me/other"))
    assert "\n" not in str(raised.value) and not (tmp_path / "d").exists()


def test_a_gated_set_says_where_its_terms_are(hub, tmp_path):
    hub.status["me/data"] = "gated"
    with pytest.raises(OSError, match=r"gated: accept its terms on http.*/datasets/me/data, then hf auth login"):
        download(settings(hub, tmp_path))


def test_a_revision_or_a_file_that_is_not_there_is_named(hub, tmp_path):
    with pytest.raises(OSError, match="me/data has no revision v9"):
        download(settings(hub, tmp_path, revision="v9"))
    with pytest.raises(ValueError, match=r"has no \*\.csv; there: a\.jsonl, more/b\.txt\. Choose with --files"):
        download(settings(hub, tmp_path, files=["*.csv"]))


@pytest.mark.parametrize("source", HUBS)
def test_without_a_network_a_mirror_and_the_other_hub_are_named(hub, nobody, tmp_path, source, capsys):
    other = "modelscope" if source == "huggingface" else "huggingface"
    mirror = "try a mirror, --endpoint https://hf-mirror.com" if source == "huggingface" else "try later"
    expected = f"no connection to .*refused.*; check the network, {mirror}, or --source {other}$"
    with pytest.raises(OSError, match=expected) as raised:
        download(settings(hub, tmp_path, source, endpoint=nobody, repo=None, names=["minimind-dpo"]))
    assert "\n" not in str(raised.value) and "Traceback" not in capsys.readouterr().err


def test_when_the_network_ends_between_list_and_file_the_file_can_be_fetched_by_hand(hub, tmp_path):
    hub.cut_after = 0
    real = downloads.fetch

    def fetch_of_a_file_that_has_gone(source, commit, file, folder):
        hub.files.clear()
        real(source, commit, file, folder)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError) as raised:
        patch.setattr(downloads, "fetch", fetch_of_a_file_that_has_gone)
        download(settings(hub, tmp_path, files=["a.jsonl"]))
    link = f"{hub.address}/datasets/me/data/resolve/{COMMIT}/a.jsonl"
    assert f"fetch {link} by hand, put it at {tmp_path / 'd/data/a.jsonl'}" in str(raised.value)


def test_the_other_hub_is_tried_by_itself(nobody, tmp_path, monkeypatch, capsys):
    files = {"dpo.jsonl": b'{"chosen": 1}\n'}
    with serving(Hub("gongjy/minimind_dataset", files)) as hub:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.address)
        nowhere = {"endpoint": nobody, "output_dir": str(tmp_path / "d"), "yes": True}
        download(DownloadSettings(names=["minimind-dpo"], **nowhere))
    said = capsys.readouterr().out
    assert "trying modelscope" in said and record(tmp_path, "minimind-dpo")["hub"] == "modelscope"
    assert f"next: python data_process.py dpo --input {tmp_path / 'd/minimind-dpo'}" in said


def test_the_endpoint_of_the_environment_is_used(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    download(settings(hub, tmp_path, endpoint=None))
    assert record(tmp_path)["endpoint"] == hub.address


def test_too_little_room_is_said_before_anything_is_fetched(hub, tmp_path, monkeypatch):
    usage = namedtuple("Usage", "total used free")(10**6, 10**6, 10)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"^no room for 31,512 bytes in .*: 10 are free"):
        download(settings(hub, tmp_path))
    assert hub.fetched == []


def test_a_disk_that_fills_up_keeps_what_came(hub, tmp_path, small_files):
    with small_files(5000), pytest.raises(OSError, match=r"^no room for .*a\.jsonl .* what came so far is kept"):
        download(settings(hub, tmp_path, files=["a.jsonl"]))
    assert (tmp_path / "d/data/a.jsonl.part").read_bytes() == FILES["a.jsonl"][:5000]
    download(settings(hub, tmp_path, files=["a.jsonl"]))
    assert (tmp_path / "d/data/a.jsonl").read_bytes() == FILES["a.jsonl"]


def test_a_hub_cannot_write_outside_of_the_folder(hub, tmp_path):
    hub.files["../../evil.txt"] = b"x"
    with pytest.raises(ValueError, match=r"would lie outside of .*evil\.txt"):
        download(settings(hub, tmp_path))
    assert not list(tmp_path.rglob("evil.txt"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"repo": None}, "--list shows them"),
        ({"repo": "data"}, "not OWNER/NAME"),
        ({"names": ["ceval"]}, "--repo fetches one data set"),
        ({"repo": None, "names": ["cevall"]}, "no public set is called cevall; known: .*ceval.*--repo"),
        ({"repo": None, "names": ["seq-monkey"]}, "seq-monkey is not on huggingface"),
        ({"endpoint": "hf-mirror.com"}, "write https://"),
    ],
)
def test_flags_that_make_no_sense_are_refused_before_anything_is_asked(hub, tmp_path, flags, said):
    with pytest.raises(ValueError, match=said):
        download(settings(hub, tmp_path, **flags))
    assert hub.requests == []


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "x", "repository": "me/data", "files": []}'])
def test_a_record_of_something_else_is_refused(hub, tmp_path, text):
    (tmp_path / "d/data").mkdir(parents=True)
    (tmp_path / "d/data/SOURCE.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"SOURCE\.json (is not whole|describes something else)"):
        download(settings(hub, tmp_path))


@pytest.mark.parametrize("source", HUBS)
def test_a_saved_token_is_not_sent_to_another_address(hub, tmp_path, source, monkeypatch):
    (tmp_path / "no_token").write_text("hf_secret", encoding="utf-8")
    monkeypatch.setattr("modelscope_hub.config.HubConfig.load_token", lambda _: "ms_secret")
    monkeypatch.setattr("modelscope_hub.config._default_config", None, raising=False)
    download(settings(hub, tmp_path, source))
    assert not any("secret" in text for text in hub.credentials)
    monkeypatch.setenv({"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}[source], "chosen")
    download(settings(hub, tmp_path, source, output_dir=str(tmp_path / "e")))
    assert any("chosen" in text for text in hub.credentials)


# --- archives and the table -------------------------------------------------------------------------------------------

EXAM = "id,question,A,B,C,D,answer\n0,一加一等于几？,1,2,3,4,B\n"


def test_an_exam_that_comes_as_a_zip_can_be_sat_at_once(tmp_path, capsys):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("val/logic_val.csv", EXAM)
    with serving(Hub("ceval/ceval-exam", {"ceval-exam.zip": packed.getvalue()})) as hub:
        cfg = DownloadSettings(names=["ceval"], endpoint=hub.address, output_dir=str(tmp_path), yes=True)
        download(cfg)
        download(cfg)
    said = capsys.readouterr().out
    assert said.count("1 file(s) unpacked") == 1
    assert f"next: python ceval_eval.py --data_dir {tmp_path / 'ceval'}" in said
    assert [q.answer for q in read_exam(tmp_path / "ceval", "val").questions] == [1]


def test_an_exam_that_comes_as_tables_becomes_csv(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "logic").mkdir()
    row = {"id": 0, "question": "一加一，\n等于几？", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "B"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "logic/val-00000-of-00001.parquet")
    assert list(exam_tables(tmp_path)) == ["val/logic_val.csv"]
    (question,) = read_exam(tmp_path, "val").questions
    assert (question.subject, question.text, question.answer) == ("logic", "一加一，\n等于几？", 1)


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2"])
def test_a_tar_is_unpacked_once_and_its_links_are_not(tmp_path, ending):
    archive = tmp_path / f"a.{ending}"
    with tarfile.open(archive, f"w:{ending[4:]}") as file:
        info = tarfile.TarInfo("deep/x.jsonl")
        info.size = 3
        file.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("passwords")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    assert unpack(archive, tmp_path) == {"deep/x.jsonl": 3}
    before = (tmp_path / "deep/x.jsonl").stat().st_mtime_ns
    assert unpack(archive, tmp_path) == {"deep/x.jsonl": 3}
    assert (tmp_path / "deep/x.jsonl").stat().st_mtime_ns == before
    assert (tmp_path / "deep/x.jsonl").read_bytes() == b"abc" and not (tmp_path / "passwords").is_symlink()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "C:/evil", "..\\evil"])
def test_an_archive_cannot_write_outside_of_its_folder(tmp_path, name):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.addfile(tarfile.TarInfo(name))
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="would lie outside"):
        unpack(tmp_path / "a.tar", tmp_path / "in")


def test_a_broken_archive_is_one_sentence(tmp_path):
    (tmp_path / "a.tar.bz2").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be unpacked.*download it again"):
        unpack(tmp_path / "a.tar.bz2", tmp_path)


def test_every_set_can_be_asked_for_and_its_next_command_exists(capsys):
    download(DownloadSettings(list=True))
    shown, root = capsys.readouterr().out, Path(downloads.__file__).parent.parent
    assert len({entry.name for entry in SETS}) == len(SETS)
    for entry in SETS:
        assert entry.name in shown and entry.licence in shown and re.fullmatch(r"[\w.-]+", entry.name)
        assert entry.sources.keys() <= set(HUBS) and all(
            re.fullmatch(r"[\w.-]+/[\w.-]+", r) for r in entry.sources.values()
        )
        assert (root / entry.then.split()[1]).is_file() and entry.files and "{folder}" in entry.then


def test_the_settings_are_flags():
    parser = make_parser("x")
    add_fields(parser, DownloadSettings)
    typed = vars(parser.parse_args(["--names", "ceval", "cmmlu", "--yes", "--files", "*.csv", "--output-dir", "d"]))
    typed.pop("debug")
    cfg = DownloadSettings(**typed)
    assert (cfg.names, cfg.yes, cfg.files, cfg.output_dir) == (["ceval", "cmmlu"], True, ["*.csv"], "d")
