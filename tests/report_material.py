"""Runs and results made by hand: the output of `train`, `analyze`, `eval`, ..., without training."""

import json

import numpy as np

from loopjax import checkpoint
from loopjax.analysis import depth_score, early_exit, effects, norms, similarity, trajectories
from loopjax.files import write_json
from loopjax.results import schema, store

MODEL = {"vocab_size": 40, "d_model": 16, "d_ff": 24, "n_heads": 4, "n_kv_heads": 2,
         "init_depth": 0, "dtype": "float32"}  # fmt: skip
STEPS = 20


def phase(start, stop, plan, operator="init", order=None):
    return {"start": start, "stop": stop, "plan": plan, "operator": operator, "order": order,
            "mixture": {"web": 1.0}}  # fmt: skip


STANDARD = [phase(0, STEPS, "12")]
LOOP = [phase(0, STEPS, "4x3")]
LIDAS = [
    phase(0, 4, "4"),
    phase(4, 9, "8", "lidas", [0, 1, 2, 3, 0, 1, 2, 3]),
    phase(9, 15, "12", "lidas", [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7]),
    phase(15, STEPS, "12", "data"),
]


def run(directory, phases=STANDARD, nll=2.0):
    """The directory of a finished run whose checkpoints are gone."""
    directory.mkdir(parents=True)
    plan = phases[-1]["plan"]
    unique = 4 if "x" in plan else 12
    rows = [
        {"step": step, "loss": 4 - step / 10, "flops": 100.0 * step, "plan": plan}
        | (
            {"eval/nll": 3 - step / STEPS, "mixture/web": 0.8, "mixture/math": 0.2}
            if step % 10 == 0 and step < STEPS
            else {}
        )
        for step in range(1, STEPS + 1)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "metrics.jsonl").write_text(lines)
    write_json(directory / "phases.json", phases)
    write_json(directory / "config.json", {"model": MODEL, "seq_len": 9, "depth": plan})
    write_json(directory / "result.json", {
        "steps": STEPS, "tokens": 1440, "plan": plan, "unique_layers": unique,
        "effective_layers": 12, "parameters": 100 * unique, "training_flops": 100.0 * STEPS,
        "wall_clock_s": 61.0, "compile_s": 1.0, "heldout": {"nll": nll, "accuracy": 0.5},
        "device": "1 x cpu", "versions": {},
    })  # fmt: skip
    return directory


def about(directory, plan="12", step=STEPS, weights=None, prompts="arithmetic", n=20, **settings):
    """What a diagnostic says it is of."""
    named = {"prompts": {"name": prompts, "source": "built in", "n": n}} if prompts else {}
    return {"checkpoint": str(directory / "checkpoints" / str(step)), "step": step,
            "weights": weights, "depth": plan, "dtype": "float32", "settings": settings} | named  # fmt: skip


def diagnose(output, run, plan="12", E=12, shift=0.0, which=None, **kwargs):
    """Files of all diagnostics, or of those named."""
    layers = np.arange(E) / E + shift
    matrix = np.triu(np.full((E, E), 0.25 + shift), 1)
    matrix[:, 2::4] *= 3
    matrix = np.triu(matrix, 1)
    moves = np.arange(1.0, 9)[:, None] * np.ones(4)
    lens = {"training": {"steps": 60, "tokens": 8192}}
    made = {
        "norms": norms.Norms(
            np.arange(E + 1.0), *[layers] * 7, {"residual": layers}, np.arange(E + 1.0), 99
        ),
        "future_local": effects.Effects(matrix, matrix, None, 10, 40),
        "future": effects.Effects(matrix, matrix, layers, 10, 40),
        "current_attention": effects.Effects(matrix, matrix, layers, 20, 0),
        "depth_score": depth_score.DepthScore(3.25 + shift, layers, {"2": 3.0, "3": 3.5}, 20, 0),
        "similarity": similarity.Similarity(np.eye(E // 4), 4, 0.0),
        "trajectories": trajectories.Trajectories(
            0, 3, 1 / moves[1:], 90 / moves[2:], 1 / moves[2:], np.full((4, 3), 1 / 3), np.full(4, 0.9),
            0.9 + shift, 0.95 + shift, 1e-3, 1 / moves[1:, 0], 1 - 0.1 / moves[:, 0], 0.5 / moves[:, 0],
            10, 99, 40,
        ),
        "overlap": early_exit.Agreement(layers, layers, layers, 20, 99),
        "exit_accuracy": early_exit.ExitAccuracy(
            ("copying_real", "nothing"), np.stack([layers, 0 * layers]), np.array([0.5, 0.0]),
            np.stack([2 * layers, np.full(E, np.nan)]), np.array([40, 40]),
        ),
    }  # fmt: skip
    for name, result in made.items():
        if which is None or name in which:
            settings = {"block": 4} if name == "similarity" else {}
            settings |= lens if name in ("overlap", "exit_accuracy") else {}
            prompts = None if name in ("similarity", "exit_accuracy") else "arithmetic"
            said = about(run, plan, **{"prompts": prompts, **settings, **kwargs})
            stem = name if prompts is None else f"{name}-{kwargs.get('prompts', prompts)}"
            store.save(output, stem, said, result, 1.0, name)


def described(run, plan="12", step=STEPS):
    return {"checkpoint": str(run / "checkpoints" / str(step)), "step": step, "depth": plan,
            "trained_depth": "12", "unique_layers": 12, "effective_layers": 12, "lineage": [
                {"step": 0, "operator": "init", "plan": "12", "order": None}],
            "model": MODEL | {"init_depth": 12}, "config": {"seq_len": 9}}  # fmt: skip


def settings(run, plan="12", **more):
    return {"checkpoint": str(run / "checkpoints" / str(STEPS)), "weights": None, "depth": plan,
            "num_fewshot": 2, "limit": 40, **more}  # fmt: skip


def evaluated(path, run, plan="12", value=0.5):
    task = {"metrics": {"acc,none": value, "acc_stderr,none": 0.02, "acc_norm,none": 0.1}}
    group = {"metric": "acc", "value": value, "stderr": 0.01}
    plans = {plan: {"model": described(run, plan), "tasks": {"copying_real": task},
                    "groups": {"reasoning_primitives": group}}}  # fmt: skip
    write_json(path, {**schema.header("eval"), "settings": settings(run), "plans": plans})


def intervened(path, run, op="swap", plan="12", sizes=(1, 2), value=0.5):
    rows = [
        {"size": size, "start": start, "times": 1 if op == "repeat" else None, "order": [],
         "tasks": {"copying_real": {"accuracy": value - start / 40, "relative": 1.0}}}
        for size in sizes
        for start in range(6)
    ]  # fmt: skip
    write_json(path, {
        **schema.header("intervene"), "settings": settings(run, plan, op=op), "model": described(run, plan),
        "metrics": {"copying_real": "acc"}, "chance": {"copying_real": 0.1},
        "unmodified": {"copying_real": {"accuracy": value}}, "rows": rows,
    })  # fmt: skip


def shown_examples(path, run, plan="12", value=0.3):
    rows = [
        {"shots": k, "accuracy": value + k / 20, "interval": [value - 0.1, value + 0.3], "n": 40}
        for k in (0, 1, 2, 4)
    ]
    write_json(path, {**schema.header("icl"), "settings": settings(run, plan), "model": described(run, plan),
                      "curves": {"copying_real": {"rows": rows, "most_shots": 4}},
                      "chance": {"copying_real": 0.1}})  # fmt: skip


def measured(path, run, steps=(10, STEPS), plan="12"):
    rows = [
        {"step": s, "depth": plan, "nll": 3 - s / 40, "accuracy": 0.4, "sources": {}} for s in steps
    ]
    write_json(path, {**schema.header("nll"), "checkpoint": str(run / "checkpoints"), "mixture": {"web": 1.0}, "batches": 1,
                      "model": described(run, plan), "rows": rows})  # fmt: skip


def everything(run, plan="12", shift=0.0):
    """All kinds of results, in the directory of a run."""
    diagnose(run / "signature", run, plan, shift=shift)
    evaluated(run / "eval.json", run, plan, 0.5 + shift)
    for op in ("swap", "skip", "reverse", "repeat"):
        intervened(run / f"{op}.json", run, op, plan, value=0.5 + shift)
    shown_examples(run / "icl.json", run, plan, 0.3 + shift)
    measured(run / "nll.json", run, plan=plan)


def saved(run, step, plan="12", phases=STANDARD, seed=0, **about):
    """A checkpoint of a run: what it says about itself, and one array instead of the weights."""
    weights = np.random.default_rng(seed).normal(size=(4, 4)).astype(np.float32)
    keys = ("operator", "plan", "order")
    events = [
        {"step": p["start"], **{key: p[key] for key in keys}} for p in phases if p["start"] < step
    ]
    meta = {"plan": plan, "lineage": events, "model": MODEL | {"init_depth": 12},
            "config": {"seq_len": 9}, "wall_clock_s": 30.0, "phases": [], "data": {},
            "versions": {}} | about  # fmt: skip
    checkpoint.save_params(
        run / "checkpoints", step, {"embed": weights.shape},
        lambda name, pieces: [((slice(None),), weights)], meta,
    )  # fmt: skip


def tuned(directory, base, examples, seed=0, value=0.5, operator="", plan="12", **fields):
    """A run that was fine-tuned from the last checkpoint of another, and evaluated."""
    run(directory, [phase(0, STEPS, plan)])
    config = json.loads((directory / "config.json").read_text())
    pairs = f"var_assign_code_1:{examples // 2}+var_assign_code_2:{examples // 2}"
    began = {"init": "weights", "init_from": str(base), "init_operator": operator}
    config |= began | {"seed": seed, "mixture": {pairs: 1.0}} | fields
    write_json(directory / "config.json", config)
    if value is not None:
        evaluated(directory / "tuned.json", directory, plan, value)
    return directory
