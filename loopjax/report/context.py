"""What the sections of a page are built from: the models, their colors, the group's settings."""

import dataclasses

from loopjax.report.collect import Collection

NLL = "held-out NLL (nats per token)"


@dataclasses.dataclass(frozen=True)
class Group:
    """Models that are compared with one another.

    Attributes:
      title: heading; "" for none.
      text: paragraph below the heading (HTML).
      paths: runs, checkpoints and results, each optionally "LABEL=PATH".
      metric: column of metrics.jsonl for the training curves; the held-out NLL by default.
      label: label of that metric's axis.
      accuracies: (source, title) of held-out accuracies that are shown beside the NLL.
      wanted: whether the page ends with the commands for missing results.
    """

    title: str
    text: str
    paths: list
    metric: str = "eval/nll"
    label: str = NLL
    accuracies: tuple[tuple[str, str], ...] = ()
    wanted: bool = True


@dataclasses.dataclass(frozen=True)
class Context:
    """The argument of every section's `build`.

    Attributes:
      models: the entries that the section shows.
      colors: {label: color}.
      group: the settings of the group.
    """

    models: Collection
    colors: dict[str, str]
    group: Group
