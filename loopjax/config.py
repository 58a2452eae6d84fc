"""Every option with its default: the SmolLM-1.7B recipe (Kapl et al. 2025, Appendix A).

A file in `configs/` starts from `default()` and changes some of the options; on the command line,
`--config.key=value` sets an option. Options not listed here are rejected. Dictionaries such as a
mixture are replaced as a whole: `--config.mixture='{"web": 0.7, "math": 0.3}'`.
"""

import dataclasses
import difflib
import math
from collections.abc import Sequence

from ml_collections import ConfigDict

from loopjax import losses, optim, paths
from loopjax.depth import DepthPlan
from loopjax.errors import UserError, field
from loopjax.loop_config import LoopConfig
from loopjax.model_config import ModelConfig

# Fields that a resumed run may change.
RUNTIME_FIELDS = (
    "checkpoint_every", "keep_last", "keep_every", "keep_per_decade", "eval_every",
    "eval_per_decade", "eval_batches", "eval_train", "log_every",
    "data_dir", "tokenizer", "data_threads", "microbatches", "mesh", "model.attention", "model.remat",
    "wandb", "watchdog",
)  # fmt: skip
# Fields that may change if phases and learning rates agree on the steps already done.
FUTURE_FIELDS = (
    "steps", "patience", "depth", "growth", "cooldown", "mixture", "mixture_update",
    "skip_bad_steps",
)  # fmt: skip
# Dictionaries whose keys are names of data sources, not fields.
BY_SOURCE = ("mixture", "cooldown.mixture", "mixture_update.bounds")
INIT_FIELDS = ("init_from", "init", "init_operator")  # what a run was initialized from
INITS = ("state", "weights", "moments")
MOST_PARAMETERS = 10**13
_MOST = 2**31 - 1  # steps and sizes of arrays are int32
# Whole numbers and what they may be; architecture, growth and mesh have checks of their own too.
_WHOLE = {
    "seed": (0, 2**32 - 1),
    "steps": (1, _MOST - 1),
    "batch_size": (1, _MOST),
    "seq_len": (1, _MOST),
    "microbatches": (1, _MOST),
    "log_every": (1, _MOST),
    "growth.block": (1, _MOST),
    "growth.steps": (0, _MOST),
    "growth.rewarm_steps": (0, _MOST),
    "losses.block": (1, _MOST),
    "losses.jacobian_steps": (0, 1000),
    "cooldown.steps": (0, _MOST),
    "model.init_depth": (0, _MOST),
    "warmup_steps": (0, _MOST),
    "checkpoint_every": (0, _MOST),
    "keep_last": (0, _MOST),
    "keep_every": (0, _MOST),
    "keep_per_decade": (0, 1000),
    "eval_every": (0, _MOST),
    "eval_per_decade": (0, 1000),
    "eval_batches": (0, _MOST),
    "patience": (0, _MOST),
    "skip_bad_steps": (0, _MOST),
    "watchdog.medians": (0, _MOST),
    "data_threads": (0, 1024),
}
_FINITE = ("growth.alpha", "growth.noise")
_PATHS = ("init_from", "data_dir", "tokenizer")
# Current names of the fields of earlier versions.
MOVED = {name: f"optimizer.{name}" for name in ("weight_decay", "beta1", "beta2", "eps")} | {
    "growth.depths": "growth.plans"
}


def default() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    # Checkpoint to initialize from, DIR or DIR@STEP, and what to load from it. "state": everything,
    # the run branches off at that step (e.g. with another cooldown); "weights": parameters only,
    # for a new run; "moments": parameters and optimizer moments, for a new run.
    config.init_from = ""
    config.init = "state"
    config.init_operator = ""  # growth operator, "untie" or "tie" that leads to config.depth

    # Length and depth of the run.
    config.steps = 200_000
    config.batch_size = 1024  # sequences per update, over all devices
    config.seq_len = 2048  # tokens per sequence, T
    config.microbatches = 1  # gradient accumulation steps per batch
    config.depth = "24"  # depth plan at the end of growth: "24", "4x6", "4-4x4-4", ...
    config.growth = ConfigDict()
    config.growth.operator = ""  # "midas", "lidas", "stack", "gstack"; empty: no new layers
    config.growth.block = 4  # layers added per stage
    # Plan of each stage, "4,8,24" or "2-2x2-2,2-2x4-2"; empty: one block more per stage.
    config.growth.plans = ""
    config.growth.alpha = 1.0  # PROP-alpha: stage i gets steps in proportion to i^alpha
    config.growth.steps = 0  # steps of all stages together; 0: all steps before the cooldown
    # Start of each stage but the first, in steps or as a fraction of all, "0.8"; empty: PROP-alpha.
    config.growth.starts = ""
    # Change of new layers: "zero_output", "noise", "random"; empty: none.
    config.growth.transform = ""
    config.growth.noise = 0.01  # standard deviation of "noise", relative to each matrix's RMS
    # Moments at growth: "copy", "zero" (of new layers), "reset" (all).
    config.growth.moments = "copy"
    config.growth.rewarm_steps = 0  # updates of a linear warm-up after each growth step; 0: none
    config.cooldown = ConfigDict()
    config.cooldown.steps = 30_000  # last steps, with a decaying learning rate; -1: 15% of all
    config.cooldown.depth = ""  # plan in the cooldown (retrofitted recurrence); empty: unchanged
    config.cooldown.operator = ""  # growth operator, "untie" or "tie" that leads to that plan
    config.cooldown.mixture = ConfigDict()  # mixture in the cooldown; empty: unchanged

    # Data: weights of built-in sources and of folders in data_dir (`loopjax prepare`).
    config.mixture = ConfigDict({"stdlib": 1.0})
    # Weights that follow the held-out evaluations: w_i is multiplied by exp(rate x gap_i).
    config.mixture_update = ConfigDict()
    config.mixture_update.rate = 0.0  # step size of the weights' logarithms; 0: weights stay
    config.mixture_update.metric = "nll"  # gap: "nll" above its bound, or "accuracy" below it
    config.mixture_update.bounds = ConfigDict()  # bound of each source: {"web": 2.9, "math": 1.8}
    config.mixture_update.smoothing = 0.0  # share of the gap before in an average over evaluations
    config.mixture_update.floor = 0.01  # smallest share of a source
    config.data_dir = ""  # directory of prepared data, and of files of prompts and completions
    config.tokenizer = ""  # tokenizer of raw text; empty: the data's or init_from's, else bytes
    config.data_threads = 4  # threads that read examples ahead, per process

    # Learning rate, the same for all parameters.
    config.learning_rate = 5e-4
    config.schedule = "trapezoid"  # "trapezoid", "cosine", "constant"
    config.warmup_steps = 2000  # linear warm-up; -1: 1% of all steps

    # Terms added to the loss (docs/recurrence.md).
    config.losses = ConfigDict()
    config.losses.block_cosine = 0.0  # weight of 1 - the cosine of successive blocks; 0: off
    config.losses.block = 4  # layers per block
    # Exits after repetitions of a loop that have a loss: "mean" of all, "random": the last and an
    # earlier one; empty: the last.
    config.losses.per_repetition = ""
    # Exit gate, trained "joint" with the model or as "gate" alone; empty: none.
    config.losses.exit_gate = ""
    config.losses.exit_entropy = 0.1  # weight of the entropy of the exits with "joint"
    # Weight of a repetition's spectral norm above jacobian_most; 0: off.
    config.losses.jacobian = 0.0
    config.losses.jacobian_most = 1.0  # spectral norm of a repetition's Jacobian without a penalty
    config.losses.jacobian_steps = 2  # power iterations that estimate the spectral norm

    # Optimizer; each uses some of these fields and rejects the others (`optim.OPTIMIZERS`).
    config.clip_norm = 1.0  # largest norm of the gradient of all parameters
    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # "adamw", "muon" (for the matrices of layers), "lion"
    config.optimizer.weight_decay = 0.01  # decay of matrices and embeddings
    config.optimizer.beta1 = 0.9  # decay rate of the first moment
    config.optimizer.beta2 = 0.95  # decay rate of the second moment
    config.optimizer.eps = 1e-8  # added to the root of the second moment
    config.optimizer.momentum = 0.95  # momentum of muon
    # Decay rate per update of a moving average of the parameters, such as 0.999; 0: no average.
    config.ema = 0.0

    # Output, and how often (in steps).
    config.checkpoint_every = 1000  # steps between checkpoints; 0: only at the end
    config.keep_last = 3  # newest checkpoints to keep; 0: all
    config.keep_every = 0  # checkpoints at multiples of this step are kept permanently; 0: none
    config.keep_per_decade = 0  # log-spaced checkpoints per factor of 10, kept permanently; 0: none
    config.eval_every = 0  # steps between held-out evaluations; 0: only at the end
    config.eval_per_decade = 0  # log-spaced evaluations per factor of 10 in steps; 0: none
    config.eval_train = False  # evaluate a fixed sample of the training data as well
    config.eval_batches = 16  # batches per source and evaluation; 0: no evaluation
    config.patience = 0  # evaluations without improvement that end the run; 0: no early stopping
    # Steps between rows in TensorBoard and W&B, and between norms by layer in metrics.jsonl.
    config.log_every = 10
    config.wandb = ""  # Weights & Biases project; empty: off

    # What is not right. A process that ends for one of the last three has exit code 75: restart it.
    config.skip_bad_steps = 0  # updates in a row with nan or inf that stop; fewer are skipped
    config.watchdog = ConfigDict()
    config.watchdog.medians = 100  # step times without a step that count as a hang; 0: never
    config.watchdog.least_s = 300.0  # seconds without a step, at least, that count as a hang
    config.watchdog.silence_s = 30.0  # seconds without a sign of life before a process is lost

    # Architecture: the fields of `model_config.ModelConfig`.
    config.model = ConfigDict()
    config.model.vocab_size = 49_152
    config.model.d_model = 2048  # width of the residual stream
    config.model.d_ff = 8192  # width of the SwiGLU hidden layer
    config.model.n_heads = 32  # query heads
    config.model.n_kv_heads = 32  # key/value heads; fewer than n_heads: grouped-query attention
    config.model.head_dim = 0  # width of a head; 0: d_model / n_heads
    config.model.rope_theta = 10_000.0  # base of the rotary frequencies
    config.model.rope_scaling = ""  # "llama3:FACTOR:LOW:HIGH:ORIGINAL"; empty: none
    config.model.attention_bias = False  # biases of queries, keys and values (Qwen2)
    config.model.qk_norm = False  # RMSNorm of query and key heads (Qwen3)
    config.model.post_norm = ""  # RMSNorm "output" of each sublayer (Ouro), "stream" (Huginn)
    config.model.embed_scale = 1.0  # factor of the embeddings
    config.model.norm_eps = 1e-5  # epsilon of RMSNorm
    config.model.tie_embeddings = True  # output head is the transposed embedding
    config.model.init_depth = 0  # executed layers that initialization is scaled for; 0: all
    config.model.dtype = "bfloat16"  # compute type; parameters are float32
    # Implementation: "splash" (TPU), "cudnn" (GPU), "xla", "chunks"; "auto": by platform and shape.
    config.model.attention = "auto"
    config.model.remat = "none"  # recomputed: "none", "dots", "attention", "full", "offload"

    # Loops: what happens where a segment of a plan repeats (`loop.py`, docs/recurrence.md).
    config.loop = ConfigDict()
    config.loop.norm = False  # RMSNorm between repetitions and after the last
    config.loop.final_norm = ""  # the final norm too, "between" (Ouro), "after" the last (Huginn)
    config.loop.start = ""  # state before the first: "zeros", "normal"; empty: start of the loop
    # Start of the loop, before each repetition: "add", "concat"; after each: "after"; empty: no.
    config.loop.inject = ""
    config.loop.inject_scale = 1.0  # factor of what "add" and "after" add
    config.loop.residual = ""  # around a repetition: "outer", "outer_delta", "scaled"; empty: none
    # "loops": outputs of sublayers by 1 / (N sqrt(L)); "deeploop": the stream by (2 model.init_depth)^0.5.
    config.loop.residual_scale = ""
    config.loop.residual_lambda = 1.0  # numerator of that factor
    config.loop.embedding = False  # learned vector of each repetition
    config.loop.lora_rank = 0  # rank of each repetition's addition to every matrix; 0: none
    config.loop.own = 0  # repetitions with weights of their own; 0: the most of this run
    # Number of repetitions of an update: "uniform:2:8", "huginn:MEAN", "lognormal:MEAN:SIGMA";
    # empty: as the plan says.
    config.loop.repeats = ""
    config.loop.most = 0  # cap of "huginn" and "lognormal"; 0: none
    config.loop.backprop = 0  # last repetitions, which have a gradient; 0: all

    # Devices per mesh axis (one may be -1: the rest), and the mesh axes of each logical axis.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.mesh.slice_axis = "data"  # mesh axis between TPU slices: "data", "fsdp"
    config.mesh.rules = ConfigDict()
    config.mesh.rules.batch = "data,fsdp"
    config.mesh.rules.seq = ""
    config.mesh.rules.activation = ""
    config.mesh.rules.vocab = "tensor"
    config.mesh.rules.embed = "fsdp"
    config.mesh.rules.heads = "tensor"
    config.mesh.rules.kv_heads = "tensor"
    config.mesh.rules.head_size = ""
    config.mesh.rules.mlp = "tensor"
    config.mesh.rules.norm = ""
    config.mesh.rules.layers = ""
    return config


def resolved(config: ConfigDict) -> ConfigDict:
    """A copy in which lengths of -1 are replaced by fractions of `steps`.

    The fractions are those of the paper: 1% warm-up, 15% cooldown.
    """
    config = ConfigDict(config.to_dict())
    if config.warmup_steps == -1:
        config.warmup_steps = round(0.01 * config.steps)
    if config.cooldown.steps == -1:
        config.cooldown.steps = round(0.15 * config.steps)
    return config


def model_config(config: ConfigDict, plans: Sequence[DepthPlan] = ()) -> ModelConfig:
    """The architecture as the frozen dataclass that the modules take.

    Args:
      plans: plans of the phases; by default those that the config names.
    """
    fields = dict(config.model)
    if not fields["init_depth"]:
        with field("depth"):
            fields["init_depth"] = DepthPlan.parse(config.depth).n_effective
    try:
        gate = bool(config.losses.exit_gate)
        cfg = ModelConfig(**fields, loop=_loop_config(config, plans), exit_gate=gate)
    except ValueError as error:  # its message begins with the name of the field
        raise UserError(f"config.{error}") from None
    with field("depth"):
        check_size(cfg, DepthPlan.parse(config.depth).n_unique)
    return cfg


def _loop_config(config: ConfigDict, plans: Sequence[DepthPlan]) -> LoopConfig:
    """The options of loops, with R = `own` if an option has weights; ValueError for invalid ones."""
    loop = LoopConfig(**config.loop)
    if not loop.has_weights or loop.own:
        return loop
    if not plans:
        plans = [DepthPlan.parse(text) for text in (config.depth, config.cooldown.depth) if text]
    most = max(segment.repeats for plan in plans for segment in plan.segments)
    # A law without a cap has a tail that does not deserve weights.
    bounded = loop.law and (loop.most or not loop.law.is_capped)
    return dataclasses.replace(loop, own=max(most, loop.law.largest if bounded else 1))


def check_size(cfg: ModelConfig, n_unique: int) -> None:
    """Raises ValueError for a model that no machine can hold, before anything of it is made."""
    count = sum(math.prod(shape) for shape in cfg.parameter_shapes(n_unique).values())
    if count > MOST_PARAMETERS:
        raise ValueError(
            f"{n_unique} layers of this width and vocabulary have {count:.3g} parameters, more than "
            f"{MOST_PARAMETERS:.0e}"
        )


def check(config: ConfigDict) -> None:
    """Raises UserError for invalid values."""
    if config.init not in INITS:
        raise UserError(f"config.init={config.init!r} must be one of {', '.join(INITS)}")
    if config.init_operator and (config.init == "state" or not config.init_from):
        raise UserError(
            f"config.init_operator={config.init_operator!r} requires config.init_from and "
            "config.init='weights' or 'moments' (when branching, use config.cooldown.operator)"
        )
    values = flatten(config.to_dict())
    for name, (least, most) in _WHOLE.items():
        if not least <= values[name] <= most:
            bound = f"at least {least}" if values[name] < least else f"at most {most}"
            raise UserError(f"config.{name}={values[name]} must be {bound}")
    for name in _FINITE:
        if not math.isfinite(values[name]):
            raise UserError(f"config.{name}={values[name]} must be finite")
    for name in _PATHS:
        if values[name]:
            paths.check(values[name], f"config.{name}")
    if config.eval_train and not config.eval_batches:
        raise UserError("config.eval_train=True requires config.eval_batches, its size")
    if config.patience and not (config.eval_every and config.eval_batches):
        raise UserError(
            f"config.patience={config.patience} requires config.eval_every and config.eval_batches"
        )
    optim.check(config, default())
    losses.of(config)
    for name in (
        "learning_rate", "clip_norm", "optimizer.eps", "watchdog.least_s", "watchdog.silence_s",
    ):  # fmt: skip
        if not 0 < values[name] < float("inf"):
            raise UserError(f"config.{name}={values[name]} must be positive")
    for name in ("beta1", "beta2", "weight_decay", "momentum"):
        if not 0 <= config.optimizer[name] < 1:
            raise UserError(
                f"config.optimizer.{name}={config.optimizer[name]} must lie within 0..1"
            )
    if not 0 <= config.ema < 1:
        raise UserError(f"config.ema={config.ema} must be at least 0 and below 1")
    if config.batch_size % config.microbatches:
        raise UserError(
            f"config.microbatches={config.microbatches} does not divide "
            f"config.batch_size={config.batch_size}"
        )


def flatten(tree: dict, prefix: str = "") -> dict:
    """{"model.d_model": 64, ...} of a nested dict."""
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def unused(values: dict) -> set[str]:
    """The fields of a flattened config that have no effect on its run.

    For example `growth.block` without growth, or `optimizer.beta1` of an optimizer without it.
    """
    adds = bool(values["growth.operator"])  # layers
    grows = adds or bool(values["growth.plans"])
    spread = grows and not values["growth.starts"]  # by PROP-alpha
    optimizer = optim.OPTIMIZERS.get(values["optimizer.name"])
    changes = any(  # of the plan or the data in the cooldown
        value for name, value in values.items()
        if name.startswith("cooldown.") and name != "cooldown.steps"
    )  # fmt: skip
    loops = any(
        DepthPlan.parse(values[name]).is_looped
        for name in ("depth", "cooldown.depth")
        if values[name]
    )
    used = {
        "loop": loops,
        "loop.inject_scale": loops and values["loop.inject"] in ("add", "after"),
        "loop.residual_lambda": loops and values["loop.residual_scale"] == "loops",
        "growth": grows,
        "growth.operator": True,
        "growth.plans": True,
        "growth.block": adds and not values["growth.plans"],
        "growth.alpha": spread,
        "growth.steps": spread,
        "growth.transform": adds,
        "growth.noise": adds and values["growth.transform"] == "noise",
        "growth.moments": adds,
        "mixture_update": bool(values["mixture_update.rate"]),
        "mixture_update.rate": True,
        "losses.block": bool(values["losses.block_cosine"]),
        "losses.jacobian_most": bool(values["losses.jacobian"]),
        "losses.jacobian_steps": bool(values["losses.jacobian"]),
        "losses.exit_entropy": values["losses.exit_gate"] == "joint",
        "init": bool(values["init_from"]),
        "init_operator": bool(values["init_from"]),
        # Also where growth ends by default, and what the trapezoid decays over.
        "cooldown.steps": changes
        or values["schedule"] == "trapezoid"
        or (spread and not values["growth.steps"]),
        **{
            f"optimizer.{name}": True for name in ("name", *(optimizer.fields if optimizer else ()))
        },
        "optimizer": optimizer is None,
    }
    return {name for name in values if not used.get(name, used.get(name.partition(".")[0], True))}


def is_by_source(field: str) -> bool:
    """Whether a flattened field is one of a source, such as "mixture.web", and not of every config."""
    return any(field.startswith(f"{name}.") for name in BY_SOURCE)


def unknown_field(config: ConfigDict, name: str) -> str:
    """The error message for an override of a field that does not exist."""
    if name in MOVED:
        return f"config.{name} does not exist; use config.{MOVED[name]}"
    known = [*flatten(config.to_dict()), *config.keys()]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"config.{name} does not exist" + (f"; did you mean config.{close[0]}?" if close else "")
