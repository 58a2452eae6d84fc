"""The numbers of a checkpoint, as one dict that JSON can hold.

Arrays are read block by block and summed in float64 on the host, layer by layer; every norm, root
mean square (RMS) and cosine comes from those sums.
"""

import dataclasses
import math

import numpy as np

from loopjax import lineage
from loopjax.config_saved import from_saved
from loopjax.depth import DepthPlan
from loopjax.optim import make_optimizer
from loopjax.progress import Progress
from loopjax.weights.arrays import matching
from loopjax.weights.compare import compare
from loopjax.weights.saved import Leaf, Saved, open_saved
from loopjax.weights.stored import columns


@dataclasses.dataclass
class Sums:
    """Sums over the elements of one parameter, for each of its layers (one, if not stacked).

    Attributes:
      leaf: the parameter.
      weight: sums of squares of the weights, [U] or [1].
      first, second: the same of the first and second moment; None where the optimizer has none.
      update: the same of the direction of the last update; None where the moments do not give it.
      gram: inner products of the layers, [U, U], if they were asked for.
    """

    leaf: Leaf
    weight: np.ndarray
    first: np.ndarray | None
    second: np.ndarray | None
    update: np.ndarray | None
    gram: np.ndarray | None


def inspect(
    directory, step: int | None = None, *, layers: bool = False, other=None, grep=None
) -> dict:
    """What a checkpoint holds.

    Args:
      directory: a run's directory, or that of its checkpoints; "DIR@STEP" too.
      step: which checkpoint; the newest by default.
      layers: norms by layer, and cosines between layers.
      other: "DIR" or "DIR@STEP", a checkpoint to compare with.
      grep: regular expression; only parameters whose path ("params/layers/query") it matches are read.

    Raises UserError when a checkpoint is not there or is damaged, or has no such parameter.
    """
    saved = open_saved(directory, step)
    other = open_saved(other) if other else None
    names = {f"params/{name}": name for name in saved.params()}
    names = list(matching(names, grep, f"{saved.path}/params").values())
    read = [leaf for name, leaf in saved.leaves.items() if not name.startswith("ema/")]
    total = sum(leaf.bytes for leaf in read)
    if other:
        total += sum(leaf.bytes for s in (saved, other) for leaf in s.params().values())
    progress = Progress(total, "reading", in_bytes=True)
    stack = lineage.stages(saved.meta["lineage"])
    updates = saved.updates()
    sums = {name: measure(saved, name, updates, gram=layers, progress=progress) for name in names}
    out = {
        "checkpoint": about(saved),
        "plan": about_plan(DepthPlan.parse(saved.meta["plan"])),
        "lineage": about_lineage(saved.meta["lineage"], stack),
        "parameters": about_parameters(saved, sums, updates),
    }
    if layers:
        out["layers"] = about_layers(sums, stack)
    if other:
        out["against"] = compare(saved, other, progress, names if grep else None)
    progress.close()
    return out


def measure(saved: Saved, name: str, updates: int, *, gram: bool, progress=None) -> Sums:
    """The sums of one parameter and its moments, if it has any, in one pass over all of them.

    Of Adam's two moments the direction of update t is m_t / (1 - beta1^t) / (sqrt(v_t / (1 -
    beta2^t)) + epsilon) (Kingma & Ba 2015), before decay and learning rate. One moment alone (Lion,
    Muon) does not give the direction: that takes the gradient too.
    """
    leaf, adam = saved.params()[name], from_saved(saved.meta["config"]).optimizer
    layers = leaf.shape[0] if leaf.stacked else 1
    moments = [
        part
        for kind in ("mu", "nu")
        if (part := saved.moments(kind).get(name)) and part.shape == leaf.shape
    ]
    sums = Sums(
        leaf,
        weight=np.zeros(layers),
        first=np.zeros(layers) if moments else None,
        second=np.zeros(layers) if len(moments) == 2 else None,
        update=np.zeros(layers) if len(moments) == 2 and updates else None,
        gram=np.zeros((layers, layers)) if gram else None,
    )
    readers = [saved.read(part, leaf.blocks(), progress) for part in (leaf, *moments)]
    for blocks in zip(*readers, strict=True):
        for weight, *rest in columns(*(block.reshape(layers, -1) for block in blocks)):
            sums.weight += squares(weight)
            if gram and leaf.stacked:
                wide = weight.astype(np.float64)
                sums.gram += wide @ wide.T
            for total, moment in zip((sums.first, sums.second), rest, strict=False):
                total += squares(moment)
            if sums.update is not None:
                first, second = rest
                scale = np.sqrt(second * np.float32(1 / (1 - adam.beta2**updates)))
                direction = first / (scale + np.float32(adam.eps))
                sums.update += squares(direction) / (1 - adam.beta1**updates) ** 2
    return sums


def squares(x) -> np.ndarray:
    """Sums of squares of the rows of an array [rows, n], in float64."""
    return np.einsum("un,un->u", x, x, dtype=np.float64)


def finite(value):
    """The value with None for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cosines(gram: np.ndarray) -> np.ndarray:
    """Cosines from inner products, to the 12 digits that float64 sums of products hold."""
    norms = np.sqrt(np.diag(gram))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.round(np.clip(gram / np.outer(norms, norms), -1, 1), 12)


def about(saved: Saved) -> dict:
    """Which checkpoint it is, and where it stands in its run."""
    meta, config = saved.meta, saved.meta["config"]
    leaf = next(iter(saved.params().values()))
    return {
        "directory": str(saved.path.parent),
        "step": meta["step"],
        "steps": config["steps"],
        "tokens": meta["step"] * config["batch_size"] * config["seq_len"],
        "written": saved.written,
        "wall_clock_s": meta["wall_clock_s"],
        "format": meta["format"],
        "versions": meta["versions"],
        "branched_from": meta.get("branched_from"),
        "source": meta.get("source"),
        "devices": math.prod(leaf.mesh.values()),
        "mesh": leaf.mesh,
        "model": meta["model"],
        "mixture": meta["phases"][-1]["mixture"] if meta["phases"] else {},
    }


def about_plan(plan: DepthPlan) -> dict:
    return {
        "text": str(plan),
        "unique": plan.n_unique,
        "executed": plan.n_effective,
        "segments": [dataclasses.asdict(segment) for segment in plan.segments],
        "order": list(plan.order),
    }


def about_lineage(events: list[dict], stack: list[lineage.Stage]) -> dict:
    """Events, stages, and for each layer its index in every stage (its ancestor first)."""
    return {
        "events": events,
        "stages": [{"step": s.step, "operator": s.operator, "layers": len(s.order)} for s in stack],
        "descent": [list(chain) for chain in lineage.descent(stack)],
    }


def about_parameters(saved: Saved, sums: dict[str, Sums], updates: int) -> dict:
    """Counts, and a row for each parameter with its norms and its last update."""
    plan, leaves = DepthPlan.parse(saved.meta["plan"]), saved.params().values()
    layer = sum(leaf.size // plan.n_unique for leaf in leaves if leaf.stacked)
    unique = sum(leaf.size for leaf in leaves)
    rate = None
    if updates:
        rate = float(make_optimizer(from_saved(saved.meta["config"]))[1](saved.meta["step"] - 1))
    modules = []
    for name, s in sums.items():
        sharding = None if s.leaf.spec is None else [_axes(axis) for axis in s.leaf.spec]
        shape = {"shape": list(s.leaf.shape), "dtype": s.leaf.dtype, "sharding": sharding}
        modules.append({"name": name, **shape, **_ratios([s], rate)})
    return {
        "unique": unique,
        "effective": unique + (plan.n_effective - plan.n_unique) * layer,
        "updates": updates,
        "learning_rate": rate,
        "modules": modules,
        "all": _ratios(list(sums.values()), rate),
    }


def _axes(axis) -> list[str]:
    if axis is None:
        return []
    return [axis] if isinstance(axis, str) else list(axis)


def _ratios(sums: list[Sums], rate: float | None) -> dict:
    """Norm, RMS values and update-to-weight ratio of parameters taken together."""
    size = sum(s.leaf.size for s in sums)

    def rms(kind: str) -> float | None:
        parts = [getattr(s, kind) for s in sums]
        if any(part is None for part in parts):
            return None
        return math.sqrt(float(sum(part.sum() for part in parts)) / size)

    weight, update = rms("weight"), rms("update")
    return {
        "norm": math.sqrt(float(sum(s.weight.sum() for s in sums))),
        "rms": weight,
        "first_moment_rms": rms("first"),
        "second_moment_rms": rms("second"),
        "update_rms": update,
        "update_ratio": rate * update / weight if update is not None and weight else None,
    }


def about_layers(sums: dict[str, Sums], stack: list[lineage.Stage]) -> dict:
    """Norms by layer; cosines of neighbors, of copies and of all pairs.

    "matrices" takes the matrices of a layer as one vector; norm scales are left out of it, since
    scales near 1 would make any two layers look alike.
    """
    stacked = {n.removeprefix("layers/"): s for n, s in sums.items() if s.leaf.stacked}
    grams = {kind: s.gram for kind, s in stacked.items()}
    depth = len(stack[-1].order)
    matrices = [s.gram for s in stacked.values() if len(s.leaf.shape) == 3]
    grams["matrices"] = sum(matrices, np.zeros((depth, depth)))
    cosine = {kind: cosines(gram) for kind, gram in grams.items()}

    def pair(i, j):
        return {"layers": [i, j], "cosine": {k: float(c[i, j]) for k, c in cosine.items()}}

    return {
        "norms": {kind: np.sqrt(s.weight).tolist() for kind, s in stacked.items()},
        "neighbors": [pair(i, i + 1) for i in range(depth - 1)],
        "copies": [{**pair(i, j), "since": step} for i, j, step in lineage.siblings(stack)],
        "similarity": cosine["matrices"].tolist(),
    }
