"""Names of points: of their directories, and short ones for TensorBoard and W&B."""

import json
import pathlib
import re

from ml_collections import ConfigDict

from loopjax.errors import UserError
from loopjax.sweep.directory import FAILED, FILE

# Other names in the directory of a sweep, and the one by which a directory is taken for a run.
RESERVED = (
    "slurm", "tensorboard", FILE, "results.csv", "results.md", "results.png", "results.pdf",
    "checkpoints",
    FAILED,  # --retry failed
)  # fmt: skip
LONGEST_NAME = 120
# Short forms in labels; any other field is its last part.
SHORT = {
    "learning_rate": "lr", "batch_size": "batch", "optimizer.weight_decay": "wd",
    "optimizer.name": "optimizer", "growth.operator": "growth", "growth.steps": "growth_steps",
    "cooldown.steps": "cooldown", "cooldown.depth": "cooldown_depth", "init_from": "from",
    "cooldown.mixture": "cooldown_mixture", "cooldown.operator": "cooldown_operator",
}  # fmt: skip


def text(value) -> str:
    """A value as text for the command line."""
    value = value.item() if hasattr(value, "item") else value  # NumPy scalars
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    return json.dumps(value) if isinstance(value, dict) else str(value)


def default(arg: str | None, fields: dict, directory: pathlib.Path) -> str:
    """The changed fields, in characters that shells, lists and URLs leave alone: "lidas__seed-1".

    Sweeps of earlier versions have "lidas,seed=1"; a run of that name is found again.
    """
    earlier = _joined(arg, fields, ",", "=", "+")
    if re.fullmatch(r"[\w.,=+-]+", earlier, re.ASCII) and (directory / earlier).is_dir():
        return earlier
    return _joined(arg, fields, "__", "-", "_")


def _joined(arg: str | None, fields: dict, between: str, equals: str, items: str) -> str:
    parts = [arg] if arg else []
    for field, value in fields.items():
        shown = text(value)
        if isinstance(value, dict):
            shown = items.join(f"{key}-{text(part)}" for key, part in value.items())
        parts.append(f"{field}{equals}{shown}")
    kept = "".join({*between, *equals, *items} - {"-"})
    return re.sub(rf"[^\w.{kept}-]+", "_", between.join(parts), flags=re.ASCII) or "default"


def check(name: str) -> None:
    """Raises UserError for a name that no point can have."""
    allowed = rf"\w[\w.,=+-]{{0,{LONGEST_NAME - 1}}}"
    if not re.fullmatch(allowed, name, re.ASCII) or name in RESERVED:
        raise UserError(
            f"invalid name {name!r} of a point; set name= to at most {LONGEST_NAME} letters, digits "
            "and . , = + - _"
        )


def labels(points) -> dict[str, str]:
    """{name: label} such as "lidas lr=0.001 seed=0", each a possible name of a directory.

    Args:
      points: (name, arg, fields) of each point; fields is None where the user has chosen the name,
        which is then the label.
    """
    fields = dict.fromkeys(field for _, _, own in points for field in own or ())
    short = {field: SHORT.get(field, field.rpartition(".")[2]) for field in fields}
    taken = list(short.values())
    short = {f: name if taken.count(name) == 1 else f for f, name in short.items()}
    found = {name: _label(name, arg, own, short) for name, arg, own in points}
    shown = list(found.values())
    return {name: label if shown.count(label) == 1 else name for name, label in found.items()}


def _label(name: str, arg: str | None, fields: dict | None, short: dict[str, str]) -> str:
    if fields is None:
        return name
    parts = [arg] if arg else []
    for field, value in fields.items():
        shown = re.sub(r"e([+-])0+", r"e\1", text(value))  # 1e-05
        if isinstance(value, dict):
            shown = ",".join(f"{key}:{text(part)}" for key, part in value.items())
        parts.append(f"{short[field]}={shown}")
    label = re.sub(r"[^\w.,:=+@ -]+", "_", " ".join(parts), flags=re.ASCII).strip(". ")
    return label if label and len(label) <= LONGEST_NAME else name
