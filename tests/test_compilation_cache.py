"""Compiled programs are kept from one process to the next."""

import json
import os
import subprocess
import types

import pytest

from loopjax import compilation_cache
from loopjax.errors import UserError
from loopjax.files import read_rows
from tests.test_cli import ROOT, train_command


class Settings(types.SimpleNamespace):
    """JAX's config as `enable` finds it and leaves it."""

    def update(self, name, value):
        setattr(self, name, value)


@pytest.fixture
def settings(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in os.environ:
        if name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT")):
            monkeypatch.delenv(name)
    made = Settings(jax_compilation_cache_dir=None)
    monkeypatch.setattr(compilation_cache, "jax", types.SimpleNamespace(config=made))
    return made


def test_programs_are_kept_in_the_cache_directory_of_the_user_by_kind_of_host(settings, tmp_path):
    compilation_cache.enable()
    programs = tmp_path / "loopjax" / "programs" / compilation_cache.host_name()
    assert settings.jax_compilation_cache_dir == str(programs)
    assert settings.jax_persistent_cache_min_compile_time_secs == 0.0
    assert programs.is_dir() and not [*programs.iterdir()]


def test_a_directory_that_is_set_already_is_used_as_it_is(settings, tmp_path):
    settings.jax_compilation_cache_dir = "/theirs"
    compilation_cache.enable()
    assert settings == Settings(jax_compilation_cache_dir="/theirs")
    assert not [*tmp_path.iterdir()]


def test_the_flag_moves_the_cache_and_turns_it_off(settings, tmp_path):
    settings.jax_compilation_cache_dir = "/theirs"
    compilation_cache.enable(str(tmp_path / "mine"))
    host = compilation_cache.host_name()
    assert settings.jax_compilation_cache_dir == str(tmp_path / "mine" / host)
    compilation_cache.enable("off")
    assert settings.jax_enable_compilation_cache is False


def test_a_setting_of_the_environment_is_left(settings, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "9")
    compilation_cache.enable()
    assert not hasattr(settings, "jax_persistent_cache_min_compile_time_secs")
    assert settings.jax_persistent_cache_min_entry_size_bytes == -1


@pytest.mark.parametrize("directory", ["", "gs://bucket/programs"])
def test_a_path_that_no_directory_can_have_is_refused(settings, directory):
    with pytest.raises(UserError, match="^--compilation_cache "):
        compilation_cache.enable(directory)


def test_where_nothing_can_be_written_a_message_says_so_and_nothing_is_set(
    settings, tmp_path, capfd
):
    (tmp_path / "loopjax").write_text("a file, where a directory is needed")
    compilation_cache.enable()
    assert settings == Settings(jax_compilation_cache_dir=None)
    said = capfd.readouterr().err
    assert said.startswith("compiled programs are not kept: ") and str(tmp_path) in said


def test_another_kind_of_cpu_has_another_directory(monkeypatch):
    names = {compilation_cache.host_name()}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {*range(1000)}, raising=False)
    names.add(compilation_cache.host_name())
    read = compilation_cache.pathlib.Path.read_text
    without = lambda path, *args: read(path, *args).replace(" sse2", "")  # noqa: E731
    monkeypatch.setattr(compilation_cache.pathlib.Path, "read_text", without)
    names.add(compilation_cache.host_name())
    assert len(names) == 3


def test_the_programs_used_last_stay_when_there_are_too_many(tmp_path):
    for number, name in enumerate("dacb"):
        path = tmp_path / f"host-{number % 2}" / f"{name}-cache"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + ord(name), 1000))
    compilation_cache.remove_oldest(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.rglob("*-cache")) == ["c-cache", "d-cache"]
    compilation_cache.remove_oldest(tmp_path, 250)
    assert len([*tmp_path.rglob("*-cache")]) == 2


@pytest.mark.slow
def test_a_second_process_compiles_nothing_and_makes_the_same_bits(tmp_path):
    """Also when an entry is damaged, as by a process that was killed while it wrote."""
    own = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    env = {key: value for key, value in os.environ.items() if key not in own}
    env |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}

    def run(name):
        done = subprocess.run(
            train_command(tmp_path / name), env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        assert done.returncode == 0, done.stderr
        (host,) = (tmp_path / "cache" / "loopjax" / "programs").iterdir()
        entries = {path.name: path for path in host.glob("*-cache")}
        losses = [row["loss"] for row in read_rows(tmp_path / name / "metrics.jsonl")]
        heldout = json.loads((tmp_path / name / "result.json").read_text())["heldout"]
        return entries, losses, heldout

    cold = run("cold")
    assert any(name.startswith("jit_train_step") for name in cold[0])
    assert run("warm") == cold
    for name, path in cold[0].items():
        if name.startswith("jit_train_step"):
            path.write_bytes(path.read_bytes()[:-100])
    assert run("damaged") == cold
