"""What TensorBoard's HParams tab reads: the fields that a sweep sets, and its metrics, as protos."""

import json
import time

from ml_collections import ConfigDict
from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from loopjax.sweep.directory import Entry

METRICS = {"eval/nll": "held-out NLL", "loss": "training loss"}  # tags of scalars


def fields(config, points: list[Entry], point: Entry) -> dict:
    """{field: value} of a run for every config field that any point of its sweep sets.

    `arg`, the argument of `get_config`, is a field too. Values are numbers, booleans and text.
    """
    names = dict.fromkeys(field for entry in points for field in entry.overrides)
    values = {name: _field(config, name) for name in names}
    if any(entry.arg for entry in points):
        values = {"arg": point.arg} | values
    return {name: value for name, value in values.items() if value is not None}


def _field(config, name: str):
    """The value of a field, a dictionary as JSON; None for a field of another version."""
    for part in name.split("."):
        if not isinstance(config, ConfigDict) or part not in config:
            return None
        config = config[part]
    return json.dumps(config.to_dict()) if isinstance(config, ConfigDict) else config


def start(values: dict, group: str) -> list[summary_pb2.Summary.Value]:
    """The start of a session: the columns of the table, and the values of this run.

    Args:
      values: result of `fields`.
      group: name of the run; a resumed run is the same session.
    """
    experiment = api_pb2.Experiment(
        # A column that "differs" is shown.
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type=_type(value), differs=True)
            for name, value in values.items()
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=title)
            for tag, title in METRICS.items()
        ],
    )
    session = plugin_data_pb2.SessionStartInfo(group_name=group, start_time_secs=time.time())
    for name, value in values.items():
        kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(session.hparams[name], kind, value)
    return [
        _value(metadata.EXPERIMENT_TAG, experiment=experiment),
        _value(metadata.SESSION_START_INFO_TAG, session_start_info=session),
    ]


def end() -> list[summary_pb2.Summary.Value]:
    """The end of a session with a result."""
    done = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    return [_value(metadata.SESSION_END_INFO_TAG, session_end_info=done)]


def _type(value) -> int:
    kinds = {bool: api_pb2.DATA_TYPE_BOOL, str: api_pb2.DATA_TYPE_STRING}
    return kinds.get(type(value), api_pb2.DATA_TYPE_FLOAT64)


def _value(tag: str, **content) -> summary_pb2.Summary.Value:
    data = plugin_data_pb2.HParamsPluginData(**content)
    return summary_pb2.Summary.Value(
        tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR
    )
