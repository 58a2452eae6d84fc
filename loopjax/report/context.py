"""What the sections of a page are built from: the models, how they look, the group's settings."""

import dataclasses

from loopjax.plots.roles import Look
from loopjax.report.collect import Collection
from loopjax.report.families import Family, families, reference


@dataclasses.dataclass(frozen=True)
class Group:
    """Models that are compared with one another.

    Attributes:
      title: heading; "" for none.
      text: paragraph below the heading (HTML).
      paths: runs, checkpoints and results, each optionally "LABEL=PATH".
      metric: column of metrics.jsonl for the training curves; the held-out NLL by default.
      label: label of that metric's axis; that of the NLL by default.
      unit: what a token of these models is; every NLL and loss is in nats per this unit.
      accuracies: (source, title) of held-out accuracies that are shown beside the NLL.
      wanted: whether the page ends with the commands for missing results.
    """

    title: str
    text: str
    paths: list
    metric: str = "eval/nll"
    label: str = ""
    unit: str = "token"
    accuracies: tuple[tuple[str, str], ...] = ()
    wanted: bool = True

    @property
    def nll(self) -> str:
        """The label of an axis of held-out NLL."""
        return f"held-out NLL (nats per {self.unit})"

    @property
    def metric_label(self) -> str:
        return self.label or self.nll


@dataclasses.dataclass(frozen=True)
class Context:
    """The argument of every section's `build`.

    Attributes:
      models: the entries that the section shows.
      looks: {label: color, marker and line}.
      group: the settings of the group.
    """

    models: Collection
    looks: dict[str, Look]
    group: Group

    @property
    def families(self) -> list[Family]:
        return families(self.models.entries)

    @property
    def reference(self) -> str:
        """The label of the family that others are compared with."""
        return reference(self.families).label
