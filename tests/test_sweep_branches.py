"""Points of a sweep that branch from other points."""

import itertools
import pathlib
import shlex
from types import SimpleNamespace

import pytest

from loopjax.cli import main as cli
from loopjax.errors import UserError
from loopjax.files import read_json, write_json
from loopjax.sweep import branches, local, points, progress, slurm
from tests.test_sweep import begin, config_file, end

HEAD = "from loopjax.sweep import point\n"
SAVED = ["--config.checkpoint_every=1", "--config.keep_last=0"]


def sweep_of(folder, text, head=HEAD):
    folder.mkdir(exist_ok=True)
    return points.points(str(config_file(folder, text, head=head)), SAVED, folder / "runs")


@pytest.mark.parametrize(
    "base",
    ['point("base", 2)', "base.at(2)", '"DIR/base@2"', '"DIR/base/checkpoints@2"',
     '"DIR/base/checkpoints/2"'],
)  # fmt: skip
def test_a_point_names_another_by_reference_or_by_path(base, tmp_path):
    text = f"""
    base = add(name="base")
    add(name="branch", init_from={base}, learning_rate=1e-3)
    """
    runs = str(tmp_path / "runs")
    first, second = sweep_of(tmp_path, text.replace("DIR", runs))
    assert first.base is None and second.base == branches.Reference("base", 2)
    assert second.config.init_from.startswith(runs + "/base")
    assert branches.dependencies([first, second]) == {"base": set(), "branch": {"base"}}


def test_a_config_that_branches_from_the_directory_of_a_point_waits_for_it(tmp_path):
    text = """
    add(name="branch")
    add(name="base", init_from="")
    """
    path = config_file(tmp_path, text)
    path.write_text(
        path.read_text().replace(
            "    return config", f"    config.init_from = '{tmp_path}/runs/base'\n    return config"
        )
    )
    found = points.points(str(path), [], tmp_path / "runs")
    assert branches.dependencies(found) == {"branch": {"base"}, "base": set()}
    found = points.points(str(path), [], tmp_path / "elsewhere")
    assert branches.dependencies(found) == {"branch": set(), "base": set()}


def test_commands_come_in_an_order_that_works_whatever_the_order_of_add(tmp_path, capsys):
    lines = ['add(name="a", init_from=point("b"))', 'add(name="b", init_from=point("c", 2))',
             'add(name="c")', 'add(name="d")']  # fmt: skip
    for k, order in enumerate(itertools.permutations(lines)):
        if k % 5:
            continue
        text = "".join(f"    {line}\n" for line in order)
        path = config_file(tmp_path, text, head=HEAD)
        assert cli.main(["sweep", f"--config={path}", f"--workdir={tmp_path / str(k)}",
                         "--launcher=commands", *SAVED]) == 0  # fmt: skip
        printed = [
            pathlib.Path(shlex.split(line)[5]).name for line in capsys.readouterr().out.splitlines()
        ]
        assert sorted(printed) == list("abcd")
        assert printed.index("c") < printed.index("b") < printed.index("a")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('add(name="a", init_from=point("b"))\n    add(name="b", init_from=point("a"))',
         "points that branch from each other in a circle: a from b from a"),
        ('add(name="a", init_from=point("a"))', "in a circle: a from a"),
        ('add(name="base")\n    add(name="a", init_from=point("bse"))',
         "point a: init_from names the point 'bse', which the sweep does not have; did you mean base?"),
        ('add(name="base")\n    add(name="a", init_from=point("base", 7))',
         "point a: init_from is step 7 of base, which saves no such step (config.checkpoint_every=1"),
        ('add(name="base", keep_last=1)\n    add(name="a", init_from=point("base", 1))',
         "point a: init_from is step 1 of base, which keeps only its newest 1 checkpoints; set "),
        ('add(name="base")\n    add(name="a", data_dir=point("base"))',
         "point a: config.data_dir cannot be a point; only init_from can"),
        ('add(name="a", init_from=point("base", "2"))', "the step must be a whole number"),
        ("add(init_from=point(3))", "point(3): the name of a point must be a text"),
    ],
)  # fmt: skip
def test_a_point_that_can_never_start_is_refused_in_a_sentence(text, says, tmp_path):
    with pytest.raises(UserError) as refused:
        flags = ["--config.checkpoint_every=1"]
        flags += [] if "keep_last" in text else ["--config.keep_last=0"]
        path = config_file(tmp_path, f"    {text}\n", head=HEAD)
        points.points(str(path), flags, tmp_path / "runs")
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_a_step_among_the_newest_or_one_kept_forever_may_be_branched_from(tmp_path):
    text = '    add(name="base", STEPS)\n    add(name="a", init_from=point("base", 2))\n'
    for settings in ("keep_last=2", "keep_last=1, keep_every=2", "keep_last=0"):
        path = config_file(tmp_path, text.replace("STEPS", settings), head=HEAD)
        assert len(points.points(str(path), ["--config.checkpoint_every=1"], tmp_path / "w")) == 2


def test_a_point_is_ready_when_the_checkpoint_is_there_or_the_base_is_finished(tmp_path):
    text = """
    add(name="base")
    add(name="at", init_from=point("base", 2))
    add(name="after", init_from=point("base"))
    """
    base, at, after = sweep_of(tmp_path, text)
    saved = base.workdir / "checkpoints" / "2" / "meta"
    assert branches.ready(base) and not branches.ready(at) and not branches.ready(after)
    saved.mkdir(parents=True)
    assert not branches.ready(at)  # a checkpoint is complete with its metadata
    (saved / "metadata").write_text("{}")
    assert branches.ready(at) and not branches.ready(after)
    write_json(base.workdir / "result.json", {})
    assert branches.ready(after)


def test_what_branches_from_a_failed_point_waits_and_says_so(tmp_path, capsys):
    text = """
    add(name="last", init_from=point("middle"))
    add(name="middle", init_from=point("base"))
    add(name="base")
    """
    last, middle, base = sweep_of(tmp_path, text)
    sweep = local._Sweep([last, middle, base], [local.ANY] * 2, progress.Screen(), [])
    sweep.pending.remove(base)
    sweep.failed["base"] = "exit code 2"
    sweep._start()
    assert not sweep.running and not sweep.pending
    assert sweep.blocked == {
        "middle": "waits for base, which failed", "last": "waits for middle, which waits too",
    }  # fmt: skip
    assert not local.summary([last, middle, base], sweep.failed, sweep.screen, "", sweep.blocked)
    said = capsys.readouterr().err
    assert "0 of 3 points finished, 1 failed, 2 waiting for others" in said
    assert "  middle  waits for base, which failed\n" in said


def test_on_slurm_a_point_is_submitted_behind_the_job_of_what_it_branches_from(
    tmp_path, monkeypatch
):
    text = """
    middle = add(name="middle", init_from=point("base"))
    add(name="last", init_from=middle)
    add(name="base")
    add(name="other")
    add(name="elsewhere", init_from=point("trained", 2))
    add(name="trained")
    """
    found, submissions = branches.in_order(sweep_of(tmp_path, text)), []

    def submit(group, executor, after):
        submissions.append(([p.name for p in group], after))
        return {p.name: SimpleNamespace(job_id=f"job of {p.name}") for p in group}

    monkeypatch.setattr(slurm, "_submit", submit)
    (tmp_path / "slurm").mkdir()
    executor = SimpleNamespace(folder=tmp_path / "slurm")
    new = [p for p in found if p.name != "trained"]  # by a process that is no job
    held = slurm._submit_all(new, {}, executor, progress.Screen())
    assert submissions == [
        (["base", "other"], ""), (["middle"], "job of base"), (["last"], "job of middle")
    ]  # fmt: skip
    assert [p.name for p in held] == ["elsewhere"]
    assert read_json(tmp_path / "slurm" / "jobs.json") == {
        name: f"job of {name}" for name in ("base", "other", "middle", "last")
    }


@pytest.mark.slow
def test_points_that_branch_are_trained_after_what_they_branch_from(tmp_path):
    text = """
    add(name="late", init_from=point("early"), init="weights")
    add({"cooldown.mixture": {"p_hop_2": 1.0}}, name="early", init_from=point("base", 2))
    add(name="base")
    """
    path, runs = config_file(tmp_path, text, head=HEAD), tmp_path / "runs"
    _, err = end(begin(path, runs, "--jobs=2", *SAVED))
    assert "3 of 3 points finished" in err
    log = (runs / "early" / "train.log").read_text()
    assert f"branching from step 2 of {runs}/base/checkpoints" in log
    log = (runs / "late" / "train.log").read_text()
    assert f"initialized from the weights of {runs}/early/checkpoints@3" in log
