"""What counts as damage, what is only unreadable now, and what a run never does to its checkpoints."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta as boxes

from loopjax import config as config_lib
from loopjax import model
from loopjax.checkpoint import Checkpoints, checksums, load_params, versions
from loopjax.checkpoint_files import Damaged, digest, locate, read_meta, reading
from loopjax.cli import main as cli
from loopjax.errors import UserError
from loopjax.step import TrainState
from loopjax.train import train
from tests.conftest import tiny_run


def tiny_state():
    config = tiny_run()
    cfg = config_lib.model_config(config)
    params = boxes.unbox(model.init_params(cfg, 3, jax.random.key(1)))
    return TrainState(jnp.zeros((), jnp.int32), params, {})


def about(step=0):
    config = tiny_run()
    return {
        "plan": "3", "lineage": [{"step": 0, "operator": "init", "plan": "3", "order": None}],
        "phases": [], "data": {}, "tokenizer": "bytes", "config": config.to_dict(),
        "model": dataclasses.asdict(config_lib.model_config(config)), "versions": versions(),
        "branched_from": "", "wall_clock_s": 0.0,
    }  # fmt: skip


def save(workdir, steps=(4, 8)) -> pathlib.Path:
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        for step in steps:
            checkpoints.save(step, tiny_state(), about(step))
        checkpoints.wait()
    return workdir


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def accept(meta):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tiny_state()
    )


def restored(run):
    """(step of the newest readable checkpoint, what was said)."""
    said = []
    with contextlib.closing(Checkpoints(run / "checkpoints")) as checkpoints:
        result = checkpoints.restore_latest(accept, said.append)
        return result[1]["step"], said


def snapshot(root):
    return sorted(
        (str(p.relative_to(root)), p.is_file() and p.read_bytes()) for p in root.rglob("*")
    )


PASSING = [
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
    MemoryError(),
    ValueError("RESOURCE_EXHAUSTED: Error reading [OS error 24: EMFILE Too many open files]"),
    ValueError('NOT_FOUND: Error reading "x" [OS error 5: EIO Input/output error]'),
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 10 bytes"),
]
PROVEN = [
    FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)),
    ValueError("DATA_LOSS: CRC-32C checksum verification failed"),
    ValueError("NOT_FOUND: Error opening [OS error 2: ENOENT No such file or directory]"),
    ValueError("the content of params/embed is not what was saved"),
]


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_an_error_that_may_pass_proves_nothing(saved, error):
    with (
        pytest.raises(UserError, match="cannot be read .*; nothing was changed") as raised,
        reading(saved),
    ):
        raise error
    assert not isinstance(raised.value, Damaged)


@pytest.mark.parametrize("error", PROVEN, ids=str)
def test_a_missing_piece_or_another_content_is_damage(saved, error):
    with pytest.raises(Damaged, match="is damaged"), reading(saved):
        raise error
    # Where the whole checkpoint is gone, so may be the disk.
    with pytest.raises(UserError, match="cannot be read"), reading(saved / "gone"):
        raise error


@contextlib.contextmanager
def no_free_descriptors():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is not in use
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_without_free_descriptors_a_resume_stops_and_leaves_every_checkpoint(run):
    before = snapshot(run)
    with contextlib.closing(Checkpoints(run / "checkpoints")) as checkpoints:
        checkpoints.restore_latest(accept)  # compiles
        with no_free_descriptors(), pytest.raises(UserError, match="Too many open files"):
            checkpoints.restore_latest(accept)
    assert snapshot(run) == before
    assert restored(run) == (8, [])


def test_damage_sets_aside_one_checkpoint_and_no_other(run):
    before = snapshot(run / "checkpoints" / "4")
    (run / "checkpoints" / "8" / "params" / "manifest.ocdbt").write_bytes(b"")
    step, said = restored(run)
    assert step == 4 and len(said) == 1 and "checkpoints/8 is damaged (" in said[0]
    assert snapshot(run / "checkpoints" / "4") == before
    assert [p.name for p in (run / "checkpoints.damaged").iterdir()] == ["8.0"]


def test_files_of_orbax_that_are_not_needed_do_not_matter(run):
    expected = checksums(load_params(run)[0])
    for name in ("_METADATA", "_sharding", "array_metadatas/process_0", "commit_success.txt"):
        (run / "checkpoints" / "8" / "params" / name).write_bytes(b"")
    (run / "checkpoints" / "8" / "_CHECKPOINT_METADATA").unlink()
    assert checksums(load_params(run)[0]) == expected
    assert restored(run) == (8, [])


def test_a_newer_checkpoint_of_another_version_is_not_damaged(run):
    file = run / "checkpoints" / "8" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    meta["model"]["experts"] = 4
    del meta["sha256"]
    file.write_text(json.dumps({**meta, "sha256": digest(meta)}))
    with pytest.raises(UserError, match="describes no model of this version") as error:
        restored(run)
    assert not isinstance(error.value, Damaged)
    assert not (run / "checkpoints.damaged").exists()


def test_a_field_of_another_type_is_told_in_one_sentence(run):
    file = run / "checkpoints" / "8" / "meta" / "metadata"
    whole = json.loads(file.read_text())
    del whole["sha256"]
    values = (None, 3.5, "x", [1], [{"step": 1}], {"a": 1}, 10**6, "1000000", True, {"seq_len": ""})
    for field in ("step", "plan", "lineage", "model", "config", "checksums", "phases", "data"):
        for value in values:
            if type(value) is type(whole[field]) and field in ("phases", "data"):
                continue  # read by a resumed run only, which compares them with its own
            meta = {**whole, field: value}
            file.write_text(json.dumps({**meta, "sha256": digest(meta)}))
            with pytest.raises(UserError, match=r"checkpoint \S+/8 (cannot be used|is damaged)"):
                load_params(run)


def test_parameters_that_the_model_of_the_code_has_not_are_named(run):
    """As after a change of the layer: the checkpoint can be read, but not run."""
    params, _ = load_params(run)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    shardings["layers"]["adapter"] = shardings["layers"].pop("gate")
    with pytest.raises(UserError, match="8 has layers/gate, unlike the model"):
        load_params(run, shardings=shardings)
    shardings["layers"]["gate"] = shardings["layers"]["up"]
    with pytest.raises(UserError, match="8 lacks layers/adapter, unlike the model"):
        load_params(run, shardings=shardings)


def test_a_save_is_looked_at_once_it_is_written(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(4, tiny_state(), about())
        checkpoints.manager.wait_until_finished()
        (tmp_path / "checkpoints" / "4" / "params" / "manifest.ocdbt").unlink()
        with pytest.raises(UserError, match=r"/4 is damaged .*, directly after it was written"):
            checkpoints.wait()
    assert not (tmp_path / "checkpoints.json").exists()


@pytest.mark.parametrize("name", ["br[1]x", "a* q?", "{a,b} ü"])
def test_characters_of_patterns_in_a_path_are_only_characters(tmp_path, name):
    (tmp_path / "a2" / "checkpoints").mkdir(parents=True)
    run = save(tmp_path / name, [4])
    assert restored(run) == (4, [])
    expected = checksums(tiny_state().params)
    assert checksums(load_params(run)[0]) == expected


def test_the_checkpoints_of_another_program_are_left_alone(tmp_path, tiny_config):
    foreign = tmp_path / "checkpoints" / "100" / "items"
    foreign.mkdir(parents=True)
    (foreign / "_METADATA").write_text("{}")
    (tmp_path / "checkpoints" / "200.orbax-checkpoint-tmp-1").mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="no checkpoint of loopjax; use another --workdir"):
        train(tiny_config, tmp_path)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("past", ["checkpoints.json", "checkpoints.damaged/4.0/x", "result.json"])
def test_a_run_with_a_past_never_starts_at_step_0_unasked(tmp_path, tiny_config, past):
    (tmp_path / past).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / past).write_text("{}")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="has no checkpoint to resume from, but a past") as error:
        train(tiny_config, tmp_path)
    assert str(tmp_path / past.partition("/")[0]) in str(error.value)
    assert snapshot(tmp_path) == before


def test_rows_of_a_run_whose_checkpoints_are_gone_are_a_past(tmp_path, tiny_config):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="a past .*metrics.jsonl"):
        train(tiny_config, tmp_path)


def test_what_a_checkpoint_is(run, tmp_path, capfd):
    directory = run / "checkpoints"
    assert locate(run) == locate(directory) == locate(directory / "8") == (directory, 8)
    assert locate(f"{run}@4") == locate(directory / "4") == (directory, 4)
    with pytest.raises(UserError, match=f"params is a part of a checkpoint; .* is {directory}/8$"):
        locate(directory / "8" / "params")
    shutil.copytree(directory / "8", tmp_path / "best")
    with pytest.raises(UserError, match="best is a checkpoint, but its name is not that of its"):
        locate(tmp_path / "best")
    capfd.readouterr()
    # What is left of a copy that was interrupted, a stray file, a temporary directory.
    shutil.copytree(directory / "8" / "params", directory / "12" / "params")
    (directory / "99").write_text("")
    (directory / "16.orbax-checkpoint-tmp-3").mkdir()
    assert locate(run) == (directory, 8)
    said = sorted(capfd.readouterr().err.splitlines())
    assert said == [
        f"{directory / n} is not a complete checkpoint; passed over" for n in ("12", "99")
    ]
    with pytest.raises(UserError, match="no complete checkpoint at step 12; there are 4, 8"):
        locate(f"{run}@12")


def test_a_directory_with_an_at_sign_is_a_directory(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "lr@3")
    assert locate(tmp_path / "lr@3")[1] == 8
    assert locate(f"{tmp_path / 'lr@3'}@4")[1] == 4


@pytest.mark.parametrize("url", ["gs:/bucket/run", "s3://b/r@4", "hf:/x", "file:///tmp/x"])
def test_a_url_is_no_checkpoint(url):
    with pytest.raises(UserError, match="is a URL of storage that is not supported"):
        locate(url)


@pytest.mark.parametrize("workdir", ["s3://bucket/run", "", "a\0b", "caf\udcc3\udca9"])
def test_a_workdir_that_is_no_local_path_is_refused(tmp_path, tiny_config, monkeypatch, workdir):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^--workdir "):
        train(tiny_config, workdir)
    assert not list(tmp_path.iterdir())


def test_inspect_does_not_need_the_record_of_the_time(run, capsys):
    for damage in (pathlib.Path.unlink, lambda path: path.write_text("{}")):
        damage(run / "checkpoints" / "8" / "_CHECKPOINT_METADATA")
        assert cli.main(["inspect", str(run)]) == 0
        assert "at an unknown time" in capsys.readouterr().out
    (run / "checkpoints" / "8" / "_CHECKPOINT_METADATA").write_text('{"init_')
    assert cli.main(["inspect", str(run)]) == 2
    err = capsys.readouterr().err
    assert "is damaged (_CHECKPOINT_METADATA is not JSON" in err and err.count("\n") == 1


def test_meta_is_read_as_it_was_saved(saved):
    meta = read_meta(saved / "checkpoints", 8)
    assert (meta["step"], meta["plan"]) == (8, "3")
    np.testing.assert_equal(
        meta["checksums"]["params/embed"], checksums(tiny_state().params)["embed"]
    )
