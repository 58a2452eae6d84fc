"""Runs, data and results in a bucket: the same as local ones, bit for bit, or one sentence."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from flax.core import meta as boxes

from loopjax import config as config_lib
from loopjax import files, lease, lock, model, paths
from loopjax.checkpoint import Checkpoints, versions
from loopjax.checkpoint_files import read_meta
from loopjax.cli import main as cli
from loopjax.data import pipeline, remote_shards, token_shards
from loopjax.data.prepare import job
from loopjax.errors import MissingPackage, UserError
from loopjax.step import TrainState
from loopjax.train import train
from tests.faults import runs
from tests.gcs_emulator import Emulator
from tests.tiny_config import get_config

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gcsfs") is None, reason="needs pip install 'loopjax[gcs]'"
)


@functools.cache
def emulator() -> Emulator:
    """One for this process: TensorStore looks for its address once."""
    made = Emulator()
    os.environ.update(made.environment())
    return made


@pytest.fixture
def bucket():
    """An empty bucket, "gs://bucket"; one that may not be written and one that may not be read."""
    made = emulator()
    made.objects.clear()
    made.objects.update({"bucket": {}, "read-only": {}, "forbidden": {}, "hidden": {}})
    made.read_only, made.forbidden, made.hidden = {"read-only"}, {"forbidden"}, {"hidden"}
    made.served.clear()
    return made


class FakeObject:
    """A local file that is read as an object is."""

    def __init__(self, path):
        self.path = path

    def read_range(self, start: int, stop: int) -> bytes:
        return files.read_range(self.path, start, stop)


def written(path, records: list[bytes], options: str = "group_size:1,uncompressed"):
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


# --- records by ranges of bytes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "n", "last"), [(4096, 70, 4096), (4096, 40, 2), (8192, 20, 6001), (120, 1200, 7)]
)
def test_ranges_hold_the_records_that_array_record_reads(tmp_path, length, n, last):
    rng = np.random.default_rng(0)
    made = [rng.bytes(length) for _ in range(n - 1)] + [rng.bytes(last)]
    path = written(tmp_path / "shard", made)
    assert ArrayRecordReader(str(path)).num_records() == n
    records = remote_shards.Records(FakeObject(path), sum(map(len, made)), length)
    for k in range(n):
        assert records.read(k, k + 1) == made[k]
    for begin, end in ((0, n), (n // 3, n - 1), (n - 2, n)):
        assert records.read(begin, end) == b"".join(made[begin:end])


def test_what_is_no_such_record_is_refused(tmp_path):
    made = [bytes([k]) * 100 for k in range(9)]
    packed = written(tmp_path / "packed", made, "group_size:1,zstd:3")
    with pytest.raises(ValueError, match="not of uncompressed records"):
        remote_shards.Records(FakeObject(packed), 900, 100).read(2, 3)
    whole = written(tmp_path / "whole", made)
    with pytest.raises(ValueError, match="not of uncompressed records"):
        remote_shards.Records(FakeObject(whole), 910, 101).read(2, 3)
    whole.write_bytes(whole.read_bytes()[:500])
    with pytest.raises(ValueError, match="ends before its last record"):
        remote_shards.Records(FakeObject(whole), 900, 100).read(2, 6)


# --- paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["s3://bucket/run", "hf://user/run", "file:///tmp/run", "gs:/bucket/run"]
)
def test_urls_of_other_storage_are_refused(text):
    with pytest.raises(UserError, match=r"supported are local paths\s+and gs://BUCKET/NAME"):
        paths.location(text, "--workdir")


@pytest.mark.parametrize("text", ["gs://", "gs:///run", "gs://B/run"])
def test_a_url_names_a_bucket(text):
    with pytest.raises(UserError, match="names no bucket"):
        paths.location(text, "--workdir")


def test_the_extra_is_named_when_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(
        MissingPackage, match=r"--workdir 'gs://bucket/run' needs pip install 'loopjax\[gcs\]'"
    ):
        paths.location("gs://bucket/run", "--workdir")


def test_a_path_of_a_bucket_reads_like_one_of_a_disk(bucket, tmp_path):
    for root in (tmp_path, paths.of("gs://bucket/x")):
        files.write_json(root / "a.json", {"a": 1})
        files.write_text(root / "b.txt", "text\n")
        files.write_arrays(root / "c.npz", {"x": np.arange(3)})
        (root / "sub").mkdir(exist_ok=True)
        (root / "sub" / "d.txt").write_text("")
        assert files.read_json(root / "a.json") == {"a": 1}
        assert files.read_json(root / "none.json") is None
        assert [line for _, line in files.lines(root / "b.txt")] == [b"text"]
        assert files.read_arrays(root / "c.npz")["x"].tolist() == [0, 1, 2]
        assert files.size(root / "b.txt") == 5 and files.size(root / "sub") is None
        assert files.read_range(root / "b.txt", 1, 3) == b"ex"
        assert set(files.sizes(root)) == {"a.json", "b.txt", "c.npz"}
        assert files.sizes(root / "none") == {}
        assert {path.name for path in root.iterdir()} == {"a.json", "b.txt", "c.npz", "sub"}
        found = {(path.name, *sorted(names)) for path, _, names in files.walk(root)}
        assert found == {(root.name, "a.json", "b.txt", "c.npz"), ("sub", "d.txt")}
        assert root.is_dir() and not root.is_file() and (root / "a.json").is_file()
        (root / "b.txt").unlink()
        assert not (root / "b.txt").exists()
        (root / "b.txt").unlink(missing_ok=True)
        assert root.absolute() == root


def test_what_another_process_writes_is_seen(bucket):
    root = paths.of("gs://bucket/x")
    files.write_text(root / "a", "1")
    assert [path.name for path in root.iterdir()] == ["a"]
    bucket.write("gs://bucket/x/b", b"2")
    assert [path.name for path in root.iterdir()] == ["a", "b"] and (root / "b").is_file()


# --- a file that grows ---------------------------------------------------------------------------


def test_rows_are_in_the_object_when_they_have_settled(bucket):
    path = paths.of("gs://bucket/metrics.jsonl")
    file = files.appended(path)
    file.write('{"step": 1}\n')
    assert not path.exists()
    files.settle(file)
    file.write('{"step": 2}\n')
    assert files.read_rows(path) == [{"step": 1}]
    file.close()
    assert files.read_rows(path) == [{"step": 1}, {"step": 2}]
    again = files.appended(path)
    again.write('{"step": 3}\n')
    again.close()
    assert [row["step"] for row in files.read_rows(path)] == [1, 2, 3]


def test_an_object_grows_in_the_background(bucket, monkeypatch):
    monkeypatch.setattr(files, "UPLOAD_EVERY_S", 0.0)
    path = paths.of("gs://bucket/metrics.jsonl")
    file = files.appended(path)
    file.write("a\n")
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.read_text() == "a\n"


def test_rows_that_cannot_be_written_are_one_sentence(bucket):
    file = files.appended(paths.of("gs://read-only/metrics.jsonl"))
    file.write("a\n")
    with pytest.raises(
        UserError, match=r"gs://read-only/metrics.jsonl cannot be written \(The caller"
    ):
        files.settle(file)


# --- the lease -----------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(lease, "LEASE_S", 2.0)
    monkeypatch.setattr(lease, "RENEW_S", 0.4)
    monkeypatch.setattr(lease, "POLL_S", 0.1)


OTHER = {"host": "elsewhere", "pid": 7, "devices": "", "id": "another"}


def hold(bucket, expires: float, **about):
    bucket.write(
        "gs://bucket/run/lock", json.dumps({**OTHER, **about, "expires": expires}).encode()
    )


def test_a_lease_is_renewed_while_it_is_held_and_gone_afterwards(bucket, short):
    with lock.lock_of("gs://bucket/run") as held:
        held.take()
        first = json.loads(bucket.read("gs://bucket/run/lock"))
        assert lock.holder("gs://bucket/run")["pid"] == os.getpid() == held.owner()["pid"]
        time.sleep(2.5)
        held.check()
        assert json.loads(bucket.read("gs://bucket/run/lock"))["expires"] > first["expires"]
    assert bucket.below("gs://bucket/run/") == [] and lock.holder("gs://bucket/run") is None


def test_a_lease_that_is_renewed_elsewhere_is_one_sentence(bucket, short):
    with lock.lock_of("gs://bucket/run") as held, lock.lock_of("gs://bucket/run") as other:
        held.take()
        with pytest.raises(
            UserError,
            match=rf"--workdir gs://bucket/run is being trained by another process: its lease is that of "
            rf"process {os.getpid()} on \S+, which expires at \d+-\d+-\d+ [\d:]+ UTC, and is being renewed",
        ):
            other.take()
    with lock.lock_of("gs://bucket/run") as next_one:
        next_one.take()


def test_a_lease_of_a_process_that_is_gone_is_taken_when_it_expires(bucket, short, capsys):
    hold(bucket, time.time() + 0.7)
    begun = time.monotonic()
    with lock.lock_of("gs://bucket/run") as held:
        held.take()
        assert 0.4 < time.monotonic() - begun < 10
        assert held.owner()["id"] != "another"
    assert "waiting for the lease of process 7 on elsewhere" in capsys.readouterr().err


def test_a_lease_by_a_clock_that_is_ahead_is_taken_when_nobody_renews_it(bucket, short):
    hold(bucket, time.time() + 1e6)
    with lock.lock_of("gs://bucket/run") as held:
        held.take()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": "a", "pid": 1}'])
def test_an_object_that_is_no_lease_is_replaced(bucket, content):
    bucket.write("gs://bucket/run/lock", content)
    with lock.lock_of("gs://bucket/run") as held:
        held.take()
        assert held.owner()["pid"] == os.getpid()


def test_a_lease_that_was_lost_is_noticed_and_left_alone(bucket, short):
    with lock.lock_of("gs://bucket/run") as held:
        held.take()
        hold(bucket, time.time() + 60)
        time.sleep(1.0)
        with pytest.raises(UserError, match="was taken over by process 7 on elsewhere"):
            held.check()
    assert json.loads(bucket.read("gs://bucket/run/lock"))["id"] == "another"


def test_a_directory_that_was_removed_is_noticed(bucket, short):
    with lock.lock_of("gs://bucket/run") as held:
        held.take()
        bucket.objects["bucket"].clear()
        time.sleep(1.0)
        with pytest.raises(UserError, match="was removed or replaced while the run was training"):
            held.check()


# --- buckets that cannot be used -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gs://nowhere/run", "cannot be written: the bucket nowhere does not exist"),
        (
            "gs://read-only/run",
            "cannot be written: The caller does not have storage.objects.create",
        ),
        ("gs://hidden/run", "its bucket cannot be looked at, which deleting old checkpoints needs"),
        ("gs://forbidden/run", "cannot be read: The caller does not have storage.objects access"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_one_sentence(bucket, capsys, name, why):
    assert cli.main(["train", "--config=tests/tiny_config.py", f"--workdir={name}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("loopjax ")]
    assert why in line


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "gs://nowhere/run"],
        ["inspect", "gs://forbidden/run"],
        ["nll", "--checkpoint=gs://forbidden/run"],
        ["report", "out.html", "gs://nowhere/run"],
        ["results", "gs://forbidden/sweep"],
        ["sweep", "--config=configs/tiny.py", "--workdir=gs://bucket/sweep", "--sweep=seed=0,1"],
        ["prepare", "--output=gs://bucket/data", "tests"],
        ["export-hf", "gs://bucket/run", "out"],
    ],
    ids=" ".join,
)
def test_a_command_that_cannot_says_so_in_one_sentence(
    bucket, capsys, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"loopjax {command[0]}: ") and "gs://" in line
    assert not bucket.objects["bucket"]


# --- whole runs ----------------------------------------------------------------------------------


def config_with(data_dir):
    """Prepared text, and three layers grown from one."""
    config = get_config()
    config.data_dir = str(data_dir)
    config.mixture = {"text": 1.0}
    config.cooldown.mixture = {}
    config.model.vocab_size = 264
    config.checkpoint_every, config.eval_every = 4, 4
    return config


def rows(workdir) -> list[dict]:
    clock = ("tokens_per_s", "step_s", "mfu", "compile_s", "wall_clock_s")
    found = files.read_rows(paths.of(workdir) / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(clock)} for row in found]


def sums(workdir, step: int = 12) -> dict:
    return read_meta(paths.of(workdir) / "checkpoints", step)["checksums"]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """(data, run) on a disk."""
    root = tmp_path_factory.mktemp("local")
    text = root / "text.jsonl"
    documents = [f"document {i}: " + "lorem ipsum " * (i % 7) for i in range(300)]
    text.write_text("\n".join(json.dumps({"text": d}) for d in documents))
    job.prepare([text], root / "data" / "text", heldout=0.1, shard_size=4096)
    train(config_with(root / "data"), root / "run")
    return root


@pytest.fixture
def trained(bucket, local):
    """The bucket with the data, and with the run that was trained on a disk."""
    bucket.upload(local, "gs://bucket")
    return bucket


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_on_a_disk(bucket, local, tmp_path, capsys):
    bucket.upload(local / "data", "gs://bucket/data")
    train(config_with("gs://bucket/data"), "gs://bucket/run")
    assert rows("gs://bucket/run") == rows(local / "run")
    assert sums("gs://bucket/run") == sums(local / "run")
    ours = {url.removeprefix("gs://bucket/run/") for url in bucket.below("gs://bucket/run/")}
    theirs = {str(p.relative_to(local / "run")) for p in (local / "run").rglob("*") if p.is_file()}
    plain = {name for name in theirs if "/" not in name} - {"lock"}
    assert plain == {name for name in ours if "/" not in name}  # the lease was given back
    assert any(name.startswith("tensorboard/events") for name in ours)
    for url in bucket.below("gs://bucket/run/"):  # and it goes on where it is copied to
        file = tmp_path / url.removeprefix("gs://bucket/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bucket.read(url))
    train(config_with(local / "data"), tmp_path / "run")
    assert "resuming from step 12" in capsys.readouterr().err


def test_the_data_of_a_bucket_are_those_of_a_disk(trained, local):
    for split in token_shards.SPLITS:
        ours = token_shards.TokenShards("gs://bucket/data/text", split, 9)
        theirs = token_shards.TokenShards(local / "data" / "text", split, 9)
        assert len(ours) == len(theirs) > 10 and ours.fingerprint == theirs.fingerprint
        for i in range(len(ours)):
            np.testing.assert_array_equal(ours[i]["inputs"], theirs[i]["inputs"])


def test_a_shard_that_was_cut_off_is_named(trained, local):
    url = next(u for u in trained.below("gs://bucket/data/text/train/"))
    content = trained.read(url)
    trained.write(url, content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"shard {url} has \d+ bytes, but \d+ were written"):
        pipeline.open_sources(config_with("gs://bucket/data"), ["text"], "train")


def data_file(urls: list[str]) -> str:
    return max((u for u in urls if "/d/" in u), key=lambda u: len(emulator().read(u)))


@pytest.mark.slow
def test_a_cut_off_object_is_damage_and_the_checkpoint_before_is_used(trained, local, capsys):
    newest = data_file(trained.below("gs://bucket/run/checkpoints/12/params/"))
    trained.write(newest, trained.read(newest)[:100])
    assert cli.main(["nll", "--checkpoint=gs://bucket/run", "--batches=1"]) == 2
    assert "checkpoint gs://bucket/run/checkpoints/12 is damaged (" in capsys.readouterr().err
    config = config_with("gs://bucket/data")
    train(config, "gs://bucket/run")
    assert "checkpoint gs://bucket/run/checkpoints/12 is damaged (" in capsys.readouterr().err
    assert trained.below("gs://bucket/run/checkpoints.damaged/12.0/params/")
    assert sums("gs://bucket/run") == sums(local / "run")


@pytest.mark.slow
def test_a_checkpoint_whose_save_did_not_end_is_none(trained, local, capsys):
    del trained.objects["bucket"]["run/checkpoints/12/commit_success.txt"]
    assert cli.main(["inspect", "gs://bucket/run@12"]) == 2
    assert "no complete checkpoint at step 12; there are 4, 8" in capsys.readouterr().err
    assert cli.main(["inspect", "gs://bucket/run"]) == 0
    assert "checkpoints/12 is not a complete checkpoint; passed over" in capsys.readouterr().err
    train(config_with("gs://bucket/data"), "gs://bucket/run")
    assert sums("gs://bucket/run") == sums(local / "run")


def test_inspect_reads_the_parts_that_it_shows(bucket, capsys):
    config = get_config()
    config.model.update(vocab_size=16_384, d_model=128)
    cfg = config_lib.model_config(config)
    params = boxes.unbox(model.init_params(cfg, 3, jax.random.key(1)))
    about = {
        "plan": "3", "lineage": [{"step": 0, "operator": "init", "plan": "3", "order": None}],
        "phases": [], "data": {}, "tokenizer": "bytes", "config": config.to_dict(),
        "model": dataclasses.asdict(cfg), "versions": versions(), "branched_from": "",
        "wall_clock_s": 0.0,
    }  # fmt: skip
    with contextlib.closing(Checkpoints("gs://bucket/run/checkpoints")) as checkpoints:
        checkpoints.save(4, TrainState(jnp.zeros((), jnp.int32), params, {}), about)
        checkpoints.wait()
    whole = sum(len(bucket.read(url)) for url in bucket.below("gs://bucket/run/"))
    embed = params["embed"].nbytes
    bucket.served.clear()
    assert cli.main(["inspect", "gs://bucket/run", "--grep=final_norm", "--json"]) == 0
    served = bucket.served.total()
    assert json.loads(capsys.readouterr().out)["parameters"]["modules"][0]["name"] == "final_norm"
    assert embed < whole and served < embed / 20, f"{served:,} bytes of {whole:,}"


@pytest.mark.slow
def test_commands_that_read_a_run_take_one_of_a_bucket(trained, local, capsys, tmp_path):
    """They say the same as of the run on a disk."""

    def said(*argv) -> str:
        assert cli.main([*argv]) == 0
        text = capsys.readouterr().out
        return text.replace(str(local), "gs://bucket")

    for command in (
        ["inspect", "ROOT/run@8", "--layers", "--json"],
        ["nll", "--checkpoint=ROOT/run", "--all", "--batches=1", "--data-dir=ROOT/data"],
        ["generate", "--checkpoint=ROOT/run", "--prompt=document", "--max-new-tokens=4"],
        ["results", "ROOT", "--output=OUT/results"],
    ):
        here, there = (
            said(*(word.replace("ROOT", root).replace("OUT", str(tmp_path)) for word in command))
            for root in (str(local), "gs://bucket")
        )
        assert here == there and here.strip(), command


def test_results_can_be_written_to_a_bucket(trained, capsys):
    output = "gs://bucket/results"
    nll = ["nll", "--checkpoint=gs://bucket/run", "--batches=1", f"--output={output}/nll.json"]
    assert cli.main(nll) == 0
    assert json.loads(trained.read(f"{output}/nll.json"))["rows"][0]["step"] == 12
    pytest.importorskip("matplotlib")
    assert cli.main(["report", "gs://bucket/page.html", "gs://bucket/run", output]) == 0
    assert b"gs://bucket/run" in trained.read("gs://bucket/page.html")


@pytest.mark.slow
def test_a_run_branches_from_a_checkpoint_of_a_bucket(trained, tmp_path):
    config = config_with("gs://bucket/data")
    config.init_from = "gs://bucket/run@8"
    train(config, tmp_path / "branch")
    assert sums(tmp_path / "branch") == sums("gs://bucket/run")


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "nth"), [("step", 8), ("write", 2)])
def test_a_killed_run_of_a_bucket_resumes_with_the_same_bits(bucket, tmp_path, moment, nth):
    cluster = runs.Cluster(tmp_path / "cache")
    assert cluster.run(tmp_path / "whole", timeout=500)[0] == 0
    assert cluster.run("gs://bucket/run", moment=moment, nth=nth, timeout=500)[0] == -9
    left = json.loads(bucket.read("gs://bucket/run/lock"))
    saved = [
        url
        for url in bucket.below("gs://bucket/run/checkpoints/")
        if url.endswith("commit_success.txt")
    ]
    last = max(int(url.split("/")[5]) for url in saved)
    logged = [row["step"] for row in rows("gs://bucket/run")]
    assert logged[-1] >= last  # nothing before the checkpoint is lost
    code, err = cluster.run("gs://bucket/run", timeout=500)
    assert code == 0, err
    assert f"waiting for the lease of process {left['pid']}" in err
    assert f"resuming from step {last} of gs://bucket/run" in err
    assert rows("gs://bucket/run") == rows(tmp_path / "whole")
    assert sums("gs://bucket/run") == sums(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_train_in_a_bucket(bucket, tmp_path):
    cluster = runs.Cluster(tmp_path / "cache")

    def trained_by_two(workdir):
        flags = [f"--coordinator=localhost:{runs.free_port()}", "--num_processes=2"]
        both = [cluster.start(workdir, *flags, f"--process_id={i}", devices=1) for i in range(2)]
        ends = [runs.end(process, 500) for process in both]
        assert [code for code, _ in ends] == [0, 0], ends
        return rows(workdir), sums(workdir)

    assert trained_by_two("gs://bucket/run") == trained_by_two(tmp_path / "run")
    assert "gs://bucket/run/lock" not in bucket.below("gs://bucket/run/")


def test_storage_that_is_not_there_is_one_sentence_at_once(monkeypatch, capsys):
    monkeypatch.setattr(paths, "_find_host", paths._find_host.__wrapped__)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://no-such-host.invalid:80")
    flags = ["--config=configs/tiny.py:lidas", "--workdir=gs://bucket/run"]
    assert cli.main(["train", *flags]) == 2
    assert "--workdir 'gs://bucket/run': the storage cannot be reached: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_trace_of_a_run_in_a_bucket_is_on_this_machine(bucket, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    config = get_config()
    config.steps, config.cooldown.steps, config.growth.operator, config.eval_batches = 3, 1, "", 0
    train(config, "gs://bucket/run", profile_steps="2:2")
    place = tmp_path / "temporary" / "profile"
    assert f"the trace is in {place}" in capsys.readouterr().err
    assert list(place.rglob("*.xplane.pb")) and not (tmp_path / "gs:").exists()
