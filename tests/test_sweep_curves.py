"""The curves of a sweep in TensorBoard and W&B: short names, groups, hyperparameters."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import metadata

from loopjax import config as config_lib
from loopjax.callbacks import TensorBoard, WeightsAndBiases
from loopjax.sweep import names, points
from tests.test_callbacks import wandb  # noqa: F401
from tests.test_sweep import config_file

FOUR = """
    for rate in (1e-3, 1e-5):
        for seed in (0, 1):
            add(arg="1x2", learning_rate=rate, seed=seed)
    add({"optimizer.weight_decay": 0.0, "model.tie_embeddings": False}, name="untied")
"""
LABELS = ["1x2 lr=0.001 seed=0", "1x2 lr=0.001 seed=1", "1x2 lr=1e-5 seed=0", "1x2 lr=1e-5 seed=1",
          "untied"]  # fmt: skip


@pytest.fixture
def sweep(tmp_path):
    """The points of a sweep whose sweep.json is written, as the launchers do before they start."""
    path, directory = config_file(tmp_path, FOUR), tmp_path / "study"
    found = points.points(str(path), [], directory)
    points.write(directory, str(path), found)
    return found


def trained(point, steps=(1, 2, 3), nll=2.0, result=True):
    """What a run hands to its curves."""
    point.workdir.mkdir(exist_ok=True)
    board = TensorBoard(point.config, point.workdir, steps[0] - 1)
    for step in steps:
        final = {"eval/nll": nll} if result and step == steps[-1] else {}
        board.on_step({"step": step, "loss": 4.0 - step, "plan": "1x2", **final})
    if result:
        board.on_result({"steps": steps[-1], "heldout": {"nll": nll}})
    board.close()


def test_runs_have_short_names_wherever_tensorboard_is_pointed(sweep):
    assert [point.label for point in sweep] == LABELS
    for point in sweep:
        point.config.log_every = 1
        trained(point)
    directory = sweep[0].workdir.parent
    for root, prefix in ((directory / "tensorboard", ""), (directory, "tensorboard/"),
                         (directory.parent, "study/tensorboard/")):  # fmt: skip
        shown = EventMultiplexer().AddRunsFromDirectory(str(root))
        assert sorted(shown.Runs()) == sorted(prefix + label for label in LABELS)


def test_a_run_without_a_sweep_and_one_begun_earlier_have_curves_of_their_own(sweep, tmp_path):
    config, alone = config_lib.default(), tmp_path / "alone"
    alone.mkdir()
    TensorBoard(config, alone, 0).close()
    assert [file.parent for file in tmp_path.rglob("events.*")] == [alone / "tensorboard"]
    (sweep[0].workdir / "tensorboard").mkdir(parents=True)
    TensorBoard(sweep[0].config, sweep[0].workdir, 0).close()
    assert any((sweep[0].workdir / "tensorboard").iterdir())
    assert not (sweep[0].workdir.parent / "tensorboard").exists()


def test_fields_and_metrics_are_in_the_hparams_tab(sweep):
    trained(sweep[0])
    trained(sweep[4])
    found = {}
    for point in (sweep[0], sweep[4]):
        events = EventAccumulator(str(point.workdir.parent / "tensorboard" / point.label))
        events.Reload()
        found[point.label] = events.PluginTagToContent("hparams")
        last = events.Scalars("eval/nll")[-1]
        assert (last.step, last.value) == (3, 2.0)  # the final evaluation, as the metric
    session = metadata.parse_session_start_info_plugin_data(
        found[LABELS[0]][metadata.SESSION_START_INFO_TAG]
    )
    values = {name: getattr(v, v.WhichOneof("kind")) for name, v in session.hparams.items()}
    # Also what only another point sets, so that no cell of the table is empty.
    assert values == {
        "arg": "1x2", "learning_rate": 0.001, "seed": 0.0, "optimizer.weight_decay": 0.01,
        "model.tie_embeddings": True,
    }  # fmt: skip
    experiment = metadata.parse_experiment_plugin_data(found["untied"][metadata.EXPERIMENT_TAG])
    assert {info.name for info in experiment.hparam_infos} == set(values)
    assert [m.name.tag for m in experiment.metric_infos] == ["eval/nll", "loss"]
    assert metadata.SESSION_END_INFO_TAG in found["untied"]


def test_a_resumed_run_is_one_session_and_a_run_begun_anew_hides_the_old_curve(sweep):
    one = sweep[0]
    one.config.log_every = 1
    trained(one, (1, 2), result=False)
    trained(one, (3, 4))
    events = EventAccumulator(str(one.workdir.parent / "tensorboard" / one.label))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert set(events.PluginTagToContent("hparams")) == {
        metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG,
    }  # fmt: skip
    trained(one, (1,), result=False)
    events = EventAccumulator(str(one.workdir.parent / "tensorboard" / one.label))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [1]


def test_a_field_that_this_version_does_not_have_is_left_out(sweep):
    sweep[0].overrides["learning_rte"] = 1.0
    sweep[1].overrides["model.gate.kind"] = "relu"
    points.write(sweep[0].workdir.parent, "config.py", sweep)
    trained(sweep[0])


def test_wandb_has_the_sweep_as_a_group_and_the_point_as_a_name(sweep, wandb):  # noqa: F811
    sweep[1].config.wandb = "project"
    sweep[1].workdir.mkdir()
    WeightsAndBiases(sweep[1].config, sweep[1].workdir).close()
    assert wandb.runs[0]["group"] == "study" and wandb.runs[0]["name"] == LABELS[1]
    assert wandb.runs[0]["config"] == sweep[1].config.to_dict()


def test_labels_are_unique_and_can_be_directories():
    def labels(*fields):
        return [*names.labels([(f"p{n}", None, own) for n, own in enumerate(fields)]).values()]

    assert labels({"steps": 4, "growth.steps": 2}) == ["steps=4 growth_steps=2"]
    assert labels({"growth.noise": 1, "x.noise": 2}) == ["growth.noise=1 x.noise=2"]
    assert labels({"data_dir": "a/b"}, {"data_dir": "../c"}) == ["data_dir=a_b", "data_dir=.._c"]
    assert labels({"data_dir": "a/b"}, {"data_dir": "a_b"}) == ["p0", "p1"]
    assert labels({"mixture": {"web": 0.7, "math": 0.3}}) == ["mixture=web:0.7,math:0.3"]
    assert labels({"data_dir": "x" * 200}) == ["p0"] and labels({}) == ["p0"]
