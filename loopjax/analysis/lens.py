"""Tuned Lens: predictions from the residual stream before each executed layer.

    logits_i = Unembed(norm(h_i + h_i W_i + b_i)),  i = 0 .. E - 1

h_i is what executed layer i reads; every pass of a loop has its own translators. Final norm and
head are the model's own, and frozen. W and b start at zero, which is the logit lens, and are trained
to minimize sum_i KL(p_final || p_i) on held-out text (Belrose et al. 2023, section 3; Kapl et al.
2025 and 2026 train one for each of their models).

The logits of all exits never exist at once: those of one exit at a few positions are computed, and
with them their share of the gradient, before those of the next.

A lens is one .npz file, which is also the checkpoint of its training:

    weight [E, D, D], bias [E, D]   float32
    losses [steps, E]               KL(p_final || p_i) of each exit on each batch, nats per token
    about                           JSON: schema, weights, plan, training settings and data
    optimizer/0, ...                only in an unfinished training
"""

import functools
import hashlib
import json
import pathlib
import zlib

import flax
import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from loopjax import kernels, model, paths
from loopjax.analysis.lens_training import DEFAULTS, Training
from loopjax.checkpoint import versions
from loopjax.data import pipeline
from loopjax.errors import UserError, first_line
from loopjax.evals import nll
from loopjax.files import opened, replaced
from loopjax.lm.batching import default_batch_tokens
from loopjax.lm.loaded_model import LanguageModel
from loopjax.progress import Progress
from loopjax.results import schema

# Logical axes of the arrays of a lens and of its optimizer, by their rank (a count has none).
AXES = {3: ("layers", "embed", "activation"), 2: ("layers", "activation"), 0: ()}


@flax.struct.dataclass
class Lens:
    """The translators of all exits; inside a scan over exits, that of one exit, without the axis E.

    Attributes:
      weight: float32 [E, D, D], [in, out]; zero for the identity.
      bias: float32 [E, D].
    """

    weight: jax.Array
    bias: jax.Array

    def translated(self, x_BTD):
        """Translated residuals at one exit, the input of the final norm, in the dtype of `x_BTD`."""
        x32_BTD = x_BTD.astype(jnp.float32)
        x32_BTD = x32_BTD + kernels.matmul(x32_BTD, self.weight) + self.bias
        return x32_BTD.astype(x_BTD.dtype)

    def residuals(self, params, tokens_BT, slots_BN, cfg, plan, placement=None):
        """Translated residuals of all exits at some positions, then the model's own.

        [E + 1, B, N, D], the residuals that `score.log_likelihoods` scores.
        """
        x_BTD, h_EBTD = residuals(params, tokens_BT, cfg, plan, placement)
        at = slots_BN[..., None]
        x_BND = jnp.take_along_axis(x_BTD, at, axis=1)
        h_EBND = jnp.take_along_axis(h_EBTD, at[None], axis=2)
        moved_EBND = jax.lax.map(lambda pair: pair[0].translated(pair[1]), (self, h_EBND))
        return jnp.concatenate([moved_EBND, x_BND[None]])


def logit_lens(lm: LanguageModel) -> Lens:
    """The lens with identity translators."""
    E, D = lm.plan.n_effective, lm.cfg.d_model
    return placed(Lens(np.zeros((E, D, D), np.float32), np.zeros((E, D), np.float32)), lm)


def placed(tree, lm: LanguageModel):
    """The arrays of a lens, or of its optimizer, on the mesh, sharded along its input width."""
    return jax.device_put(tree, _shardings(tree, lm.mesh, lm.rules))


def _shardings(tree, mesh, rules):
    specs = jax.tree.map(lambda leaf: PartitionSpec(*AXES[leaf.ndim]), tree)
    return nn.logical_to_mesh_sharding(specs, mesh, rules)


def residuals(params, tokens_BT, cfg, plan, placement=None):
    """(h_E, which the final norm reads, [B, T, D]; h_0 .. h_{E-1}, [E, B, T, D])."""
    args = (params, tokens_BT, cfg, plan, ("residual",))
    x_BTD, sown = model.intermediates(*args, placement=placement)
    return x_BTD, sown["residual"]


def exit_logprobs(lens: Lens, params, x_BTD, cfg):
    """log p_i, float32 [B, T, V], from the residuals at the exit of `lens`."""
    return jax.nn.log_softmax(model.unembed(params, lens.translated(x_BTD), cfg))


def kl(logp, logq):
    """KL(p || q) over the last axis, in nats."""
    return jnp.sum(jnp.exp(logp) * (logp - logq), axis=-1)


def add_exits(of_exit, totals, params, lens: Lens, tokens_BT, cfg, plan, chunk: int):
    """`totals` plus, for every exit, the sum of `of_exit` over all chunks of positions.

    Args:
      of_exit: function (translator, h [B, n, D], log p_final [B, n, V], mask [B, n]) -> tree.
      totals: tree of the same structure, with a leading axis E.
      tokens_BT: int, -1 for padding, which the mask leaves out.
      chunk: n, the positions of each row whose logits exist at a time.
    """
    padding = -tokens_BT.shape[1] % chunk
    tokens_BT = jnp.pad(tokens_BT, ((0, 0), (0, padding)), constant_values=-1)
    x_BTD, h_EBTD = residuals(params, jnp.maximum(tokens_BT, 0), cfg, plan)

    def add_chunk(totals, start):
        def cut(x_BT):
            return jax.lax.dynamic_slice_in_dim(x_BT, start, chunk, axis=1)

        final_BnV = jax.nn.log_softmax(model.unembed(params, cut(x_BTD), cfg))
        mask_Bn = cut(tokens_BT) >= 0

        def add_exit(_, inputs):
            total, translator, h_BTD = inputs
            found = of_exit(translator, cut(h_BTD), final_BnV, mask_Bn)
            return None, jax.tree.map(jnp.add, total, found)

        return jax.lax.scan(add_exit, None, (totals, lens, h_EBTD))[1], None

    return jax.lax.scan(add_chunk, totals, jnp.arange(0, tokens_BT.shape[1], chunk))[0]


def positions_at_once(lm: LanguageModel, n_rows: int, T: int) -> int:
    """`chunk` for batches of `n_rows`: large enough to keep devices busy, with small logits."""
    cpu = lm.mesh.devices.flat[0].platform == "cpu"
    most = (2**21 if cpu else 2**27) // lm.cfg.vocab_size * lm.batch_parts // n_rows
    chunks = -(-T // max(1, most))
    return -(-T // chunks)


# Training:


def train(
    path,
    lm: LanguageModel,
    training: Training = DEFAULTS,
    *,
    mixture: dict | None = None,
    data_dir=None,
    checkpoint_every: int = 25,
    batch_tokens: int | None = None,
    progress: str = "tuned lens",
) -> Lens:
    """The lens of a model: read from `path` if it exists, else trained and saved there.

    After an interruption, the same call resumes from the file and gives a bit-identical lens. Raises
    UserError if the file has another model, plan, training or data.

    Args:
      mixture, data_dir: sources and their directory, as `nll.measure` takes them; the held-out
        split is read in windows of the model's context, repeatedly if it is short.
      checkpoint_every: steps between two writes of the file.
      batch_tokens: tokens per forward pass; by default chosen for the platform.
      progress: label of the progress line; empty for no progress line.
    """
    path, data = paths.of(path), _Windows(lm, training, mixture, data_dir)
    how = training.settings | {"dtype": lm.cfg.dtype}
    about = json.loads(json.dumps(_identity(lm) | how | data.about))
    lens, losses = logit_lens(lm), np.zeros((training.steps, lm.plan.n_effective), np.float32)
    state, done = (lens, training.make_optimizer().init(lens)), 0
    if path.exists():
        found, arrays = _read(path)
        _check(path, found, about, lm)
        if found["step"] == training.steps:
            return placed(Lens(arrays["weight"], arrays["bias"]), lm)
        leaves = [arrays[name] for name in _names(state)]
        state = jax.tree.unflatten(jax.tree.structure(state), leaves)
        done, losses = found["step"], arrays["losses"]
    else:  # fail now if the file cannot be written
        _save(path, {**about, "step": 0}, state, losses)
    parts, rows = data.cut(lm, batch_tokens or default_batch_tokens(lm))
    chunk = positions_at_once(lm, rows, data.seq_len)
    with lm.on_mesh(), Progress(training.steps, progress, done=done) as shown:
        update = _updater(lm.cfg, lm.plan, training, parts, chunk, lm.mesh, lm.rules)
        state = placed(state, lm)
        for step in range(done, training.steps):
            state, loss_E = update(lm.params, state, lm.put(data.batch(step, parts * rows)))
            losses[step] = jax.device_get(loss_E)
            if not np.isfinite(losses[step]).all():
                raise UserError(f"the lens's loss is not finite at step {step + 1}")
            shown.update(note=f"loss {losses[step].sum():.4f}")
            if (step + 1) % checkpoint_every == 0 and step + 1 < training.steps:
                _save(path, {**about, "step": step + 1}, state, losses)
    _save(path, {**about, "step": training.steps}, state[:1], losses)
    return state[0]


class _Windows:
    """The batches of a training, as a function of the step: `n_rows` windows of `seq_len` tokens."""

    def __init__(self, lm: LanguageModel, training: Training, mixture, data_dir):
        sources, weights = nll.open_heldout(lm, mixture, data_dir)
        self.mixing = pipeline.Mixing([(0, weights)], list(sources), 1, training.seed)
        self.parents = [
            _shuffled(source, f"{training.seed} {name}") if source.finite else source
            for name, source in sources.items()
        ]
        # Windows of the data may be longer than the context of the model.
        self.seq_len = min(lm.context, len(self.parents[0][0]["inputs"]))
        self.n_rows = max(1, training.tokens // self.seq_len)
        content = json.dumps({name: source.fingerprint for name, source in sources.items()})
        digest = hashlib.sha256(content.encode()).hexdigest()
        self.about = {"seq_len": self.seq_len, "mixture": weights, "data": digest}

    def cut(self, lm: LanguageModel, batch_tokens: int) -> tuple[int, int]:
        """(parts of a batch that are computed one after another, rows of each)."""
        most = lm.batch_parts * max(1, batch_tokens // self.seq_len // lm.batch_parts)
        parts = -(-self.n_rows // most)
        return parts, lm.batch_parts * -(-self.n_rows // (parts * lm.batch_parts))

    def batch(self, step: int, rows: int) -> np.ndarray:
        """int32 [rows, T]; rows beyond those of the batch are padding (-1)."""
        out = np.full((rows, self.seq_len), -1, np.int32)
        for r in range(self.n_rows):
            source, position = self.mixing[step * self.n_rows + r]
            out[r] = self.parents[source][position]["inputs"][: self.seq_len]
        return out


def _shuffled(source, key: str):
    """A source that is repeated and reshuffled in every epoch, with a seed derived from `key`."""
    return grain.MapDataset.source(source).shuffle(seed=zlib.crc32(key.encode())).repeat()


@functools.lru_cache(maxsize=8)
def _updater(cfg, plan, training: Training, parts: int, chunk: int, mesh, rules):
    """The compiled update; the state has the same sharding in fresh and in resumed training."""
    optimizer, E, D = training.make_optimizer(), plan.n_effective, cfg.d_model
    gradient = functools.partial(loss_and_gradient, cfg=cfg, plan=plan, parts=parts, chunk=chunk)

    def update(params, state, tokens_BT):
        """((lens, optimizer state) after a batch, KL of each exit on it [E])."""
        lens, opt_state = state
        losses_E, grads = gradient(params, lens, tokens_BT)
        updates, opt_state = optimizer.update(grads, opt_state, lens)
        return (optax.apply_updates(lens, updates), opt_state), losses_E

    lens = Lens(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((E, D, D), (E, D))))
    shardings = _shardings((lens, jax.eval_shape(optimizer.init, lens)), mesh, rules)
    return jax.jit(update, donate_argnums=1, out_shardings=(shardings, None))


def loss_and_gradient(params, lens: Lens, tokens_BT, *, cfg, plan, parts: int, chunk: int):
    """KL(p_final || p_i) [E], nats per token of the batch, and the gradient of their sum.

    Args:
      tokens_BT: int, -1 for padding; B is a multiple of `parts`.
      parts: how many pieces of the batch run through the model one after another.
      chunk: positions of each row whose logits exist at a time.
    """
    n_tokens = jnp.sum(tokens_BT >= 0)

    @jax.value_and_grad
    def of_exit(translator, h_BnD, final_BnV, mask_Bn):
        kl_Bn = kl(final_BnV, exit_logprobs(translator, params, h_BnD, cfg))
        return jnp.sum(jnp.where(mask_Bn, kl_Bn, 0.0)) / n_tokens

    def add_part(totals, tokens_BT):
        args = (params, lens, tokens_BT, cfg, plan, chunk)
        return add_exits(of_exit, totals, *args), None

    zero = jnp.zeros(plan.n_effective), jax.tree.map(jnp.zeros_like, lens)
    # Part m takes rows m, m + M, ...: each device keeps the rows that it has.
    tokens_MBT = tokens_BT.reshape(-1, parts, tokens_BT.shape[1]).swapaxes(0, 1)
    return jax.lax.scan(add_part, zero, tokens_MBT)[0]


# The file:


def load(path, lm: LanguageModel) -> Lens:
    """A trained lens; raises UserError if the file belongs to another model or plan."""
    path = paths.of(path)
    found, arrays = _read(path)
    _check(path, found, _identity(lm), lm)
    if found["step"] < found["steps"]:
        raise UserError(f"lens {path} is unfinished, at step {found['step']} of {found['steps']}")
    return placed(Lens(arrays["weight"], arrays["bias"]), lm)


def _identity(lm: LanguageModel) -> dict:
    """The model of a lens: its weights, and the order in which they run."""
    return {"weights": lm.digest, "depth": str(lm.plan), "order": str(lm.order)}


def _save(path: pathlib.Path, about: dict, state: tuple, losses: np.ndarray) -> None:
    """Replaces the file atomically."""
    about = json.dumps({**schema.header("lens"), **about, "versions": versions()})
    arrays = dict(zip(_names(state), jax.device_get(jax.tree.leaves(state)), strict=True))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not `files.write_arrays`, which compresses: weights do not compress, so it is slow.
        with replaced(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, about=np.array(about), losses=losses, **arrays)
    except OSError as error:
        raise UserError(f"lens {path} cannot be written: {error.strerror}") from None


def _names(state: tuple) -> list[str]:
    """Names of the leaves of (lens,) or (lens, optimizer state)."""
    n = len(jax.tree.leaves(state)) - 2
    return ["weight", "bias", *(f"optimizer/{i}" for i in range(n))]


def _read(path: pathlib.Path) -> tuple[dict, dict]:
    """(about, arrays) of a file; raises UserError for a damaged one."""
    if not path.is_file():
        raise UserError(f"lens {path} does not exist")
    try:
        with opened(path) as file, np.load(file) as stored:
            arrays = dict(stored)
        about = json.loads(str(arrays.pop("about")))
        identity = schema.identify(path, about | {"losses": None})
    except schema.Unreadable as error:
        raise UserError(f"lens {path} cannot be used: {error}") from None
    except Exception as error:
        raise UserError(f"lens {path} is damaged, or not a lens ({first_line(error)})") from None
    if identity["schema"] != "loopjax.lens":
        raise UserError(f"lens {path} is not a lens, but a file of {identity['schema']}")
    return about, arrays


def _check(path: pathlib.Path, found: dict, wanted: dict, lm: LanguageModel) -> None:
    """Raises UserError if a lens belongs to another model or was trained with other settings."""
    for key, value in wanted.items():
        if found.get(key) == value:
            continue
        reasons = {
            "weights": f"is for other weights than those of {lm.path}",
            "depth": f"is for the plan {found['depth']}, not {value}",
            "order": f"is for the layer order {found['order']}, not {value}",
            "data": "was trained on other data; choose another file",
            "amsgrad": "is of an earlier version, whose adam took smaller steps; choose another file",
        }
        differs = f"was trained with {key}={found.get(key)}, not {value}; choose another file"
        raise UserError(f"lens {path} {reasons.get(key, differs)}")
