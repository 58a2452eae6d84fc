"""Models, tasks and sizes of the experiments: in miniature, on one GPU, and as published."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Scale:
    """The settings of all experiments at one scale.

    Attributes:
      name: "mini", "gpu" or "paper".
      config: config file of the models; the variant of a row is appended.
      rows: {role of a model in the papers: config variant}.
      depth: number of executed layers.
      block: number of layers in a block.
      plateau: step at which the cooldown begins.
      math: config variant of the mathematical cooldown.
      retrofits: {role: plans of the cooldown that loop a block once more}.
      seeds: seeds of every model.
      text: data source whose held-out loss is compared; empty for the whole mixture.
      tasks: reasoning tasks.
      shots: number of shots of the reasoning tasks.
      limit: number of items per task; None for all.
      dev: number of them to choose an intervention by.
      new: task that only the cooldown trains.
      deeper: task that no model is trained on before the cooldown, harder than `tasks`; empty if none.
      words: tasks of the in-context experiment.
      tuning: tasks of fine-tuning.
      examples: numbers of fine-tuning pairs.
      tuning_seeds: seeds of fine-tuning.
      overrides: config overrides of fine-tuning.
      prompts: prompt sets; all for the depth score, the first for all other diagnostics.
      lens: flags of Tuned Lens training.
      omitted: {experiment that is not run at this scale: why}.
      machine: (number of devices, their name) to be sized for, if not this machine's CPU.
    """

    name: str
    config: str
    rows: dict[str, str]
    depth: int
    block: int
    plateau: int
    math: str
    retrofits: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    text: str
    tasks: tuple[str, ...]
    shots: int
    limit: int | None
    dev: int
    new: str
    words: tuple[str, ...]
    tuning: tuple[str, ...]
    examples: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    overrides: tuple[str, ...]
    prompts: tuple[str, ...]
    lens: tuple[str, ...]
    omitted: dict[str, str]
    machine: tuple[int, str] | None = None
    deeper: str = ""


MINI = Scale(
    name="mini",
    config="configs/study.py:mini,",
    rows={
        "standard": "standard",
        "midas": "midas",
        "lidas": "lidas",
        "one block": "standard-2",
        "loop": "loop-2x4",
        "middle loop": "loop-1-2x3-1",
    },
    depth=8,
    block=2,
    plateau=2040,
    math="math",
    retrofits={
        "standard": ("2-2x2-4", "4-2x2-2"),
        "lidas": ("2-2x2-4", "4-2x2-2"),
        "middle loop": ("1-2x4-1",),
    },
    seeds=(1, 2, 3, 4),  # 0 is that of the pilots
    text="stdlib",
    tasks=("trail_4", "trail_6", "trail_8"),
    shots=0,
    limit=500,
    dev=200,
    new="trail_12",
    deeper="trail_12",
    words=(),
    tuning=("trail_code_2", "trail_code_4"),
    examples=(64, 256),
    tuning_seeds=(1, 2, 3, 4),
    overrides=("learning_rate=1e-3", "steps=200", "batch_size=16", "eval_every=20", "patience=4"),
    prompts=("file:{output}/trails.jsonl",),
    lens=("--lens-steps=100", "--lens-tokens=16384"),
    omitted={
        "in_context": "models of this size do not learn from examples in the prompt (docs/study.md)",
        "igsm": "no model of this size learns it (docs/study.md)",
    },
)
GPU = dataclasses.replace(
    MINI,
    name="gpu",
    config="configs/study.py:gpu,",
    rows={
        "standard": "standard",
        "midas": "midas",
        "lidas": "lidas",
        "one block": "standard-4",
        "loop": "loop-4x6",
        "middle loop": "loop-4-4x4-4",
    },
    depth=24,
    block=4,
    retrofits={
        "standard": ("8-4x2-12", "12-4x2-8"),
        "lidas": ("8-4x2-12", "12-4x2-8"),
        "middle loop": ("4-4x5-4",),
    },
    plateau=5100,
    seeds=(1, 2, 3),
    text="text",
    tasks=("trail_6", "trail_8", "trail_12"),
    tuning_seeds=(1, 2, 3),
    limit=1000,
    new="trail_16",
    deeper="trail_16",
    tuning=("trail_code_4", "trail_code_8"),
    examples=(64, 128, 256, 512),
    overrides=("learning_rate=3e-4", "steps=200", "batch_size=16", "eval_every=20", "patience=4"),
    lens=(),
    omitted=dict.fromkeys(
        ("p_hop", "addition", "igsm", "two_phase", "loop_neural_networks"),
        "it has models of its own, for --scale=mini and --scale=paper",
    )
    | {"in_context": "nothing in its training data has examples in the prompt"},
    machine=(1, "h100"),
)
PAPER = Scale(
    name="paper",
    config="configs/smollm.py:1.7b,",
    rows={
        "standard": "baseline",
        "midas": "midas",
        "lidas": "lidas",
        "one block": "standard-4",
        "half": "standard-12",
        "loop": "loop-4x6",
        "half, looped": "loop-12x2",
        "middle loop": "loop-4-4x4-4",
    },
    depth=24,
    block=4,
    plateau=170_000,
    math="nemotron",
    retrofits={
        "standard": ("8-4x2-12", "12-4x2-8"),
        "lidas": ("8-4x2-12", "12-4x2-8"),
        "middle loop": ("4-4x5-4",),
    },
    seeds=(0,),
    text="",
    tasks=(
        "copying_random",
        "copying_real",
        "var_assign_basic_0",
        "var_assign_math_0",
        "var_assign_code_0",
    ),
    shots=5,
    limit=None,
    dev=200,
    new="gsm8k",
    words=(
        "copying_random",
        "copying_real",
        "var_assign_basic_0",
        "var_assign_math_0",
        "var_assign_code_0",
    ),
    tuning=("var_assign_code_1", "var_assign_code_2"),
    examples=(64, 128, 256, 512),
    tuning_seeds=(0, 1, 2),
    overrides=("learning_rate=5e-5", "steps=1000", "eval_every=20", "patience=5"),
    prompts=("gsm8k", "math", "mquake"),
    lens=(),
    omitted={},
    machine=(128, "a100-40gb"),
)
SCALES = {scale.name: scale for scale in (MINI, GPU, PAPER)}


def repeated(name: str, seeds: int | None) -> Scale:
    """The scale with this name, optionally with another number of seeds, from its first one.

    More models than seeds of fine-tuning are each fine-tuned, too.
    """
    scale = SCALES[name]
    if seeds is None:
        return scale
    first, first_tuning = scale.seeds[0], scale.tuning_seeds[0]
    tuning = max(seeds, len(scale.tuning_seeds))
    return dataclasses.replace(
        scale,
        seeds=tuple(range(first, first + seeds)),
        tuning_seeds=tuple(range(first_tuning, first_tuning + tuning)),
    )
