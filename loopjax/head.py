"""The cross-entropy of the output head, without logits of all tokens: [B, T, V] never exists.

Tokens are taken in chunks. The logits of a chunk give its losses and at once the gradients of its
inputs and of the head, so that training computes logits once and keeps nothing of them. A chunk
has `chunk_tokens` tokens: then its float32 logits take no more memory than the gradient of the head.

On a mesh the devices do this in `jax.shard_map`, each with its rows and its part of the vocabulary:

    head, in the compute type    gathered once over the axes that shard its width
    chunks                       log-sum-exp and target logits combined over those of the vocabulary
    gradient of the head         summed over a device's own tokens in float32; reduced once, at the
                                 end, by a reduce-scatter to the shards of the parameter

Shape letters are those of `model.py`; n is the tokens of a chunk.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from loopjax import kernels, sharded_weights
from loopjax.sharding import axes_of

_LEAST_TOKENS = 512  # of a chunk: enough for efficient matrix products in narrow models


def chunk_tokens(d_model: int) -> int:
    """Most tokens of a chunk. D tokens have logits as large as the gradient of the head, [D, V]."""
    return max(d_model, _LEAST_TOKENS)


def token_terms(log_sum_n, target_n) -> dict[str, jax.Array]:
    """The terms of the loss of each token: the cross-entropy "nll", and terms to add to it.

    Args:
      log_sum_n: log-sum-exp of the logits of each token.
      target_n: logit of its target.
    """
    return {"nll": log_sum_n - target_n}


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def weighted_loss(x_BTD, head, targets_BT, weights_BT, axes):
    """The weighted sum over tokens of all terms of the loss, and {term: its own weighted sum}.

    Only the first is differentiated, with respect to `x_BTD` and `head`.

    Args:
      x_BTD: input of the head, in the compute type.
      head: parameter, float32 [D, V]; or [V, D] of tied embeddings.
      targets_BT: int; a weight of 0 for those that are -1.
      weights_BT: float32, constants.
      axes: logical names of the axes of `head`: ("embed", "vocab") or ("vocab", "embed").
    """
    return _on_mesh(x_BTD, head, (targets_BT, weights_BT), axes, _local_loss)[0]


def _weighted_loss_fwd(x_BTD, head, targets_BT, weights_BT, axes):
    inputs = (targets_BT, weights_BT)
    return _on_mesh(x_BTD, head, inputs, axes, _local_loss_and_gradients, gradients=True)


def _weighted_loss_bwd(axes, gradients, cotangents):
    of_total, _ = cotangents
    dx_BTD, dhead = (of_total.astype(g.dtype) * g for g in gradients)
    return dx_BTD, dhead, None, None


weighted_loss.defvjp(_weighted_loss_fwd, _weighted_loss_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def weighted_losses(x_BTD, head, targets_BT, weights_BT, axes):
    """The weighted sum of `weighted_loss`, and {term: its value for each token, [B, T]}.

    Only the first is differentiated, here with respect to the weights too.
    """
    local = functools.partial(_local_loss, each=True)
    return _on_mesh(x_BTD, head, (targets_BT, weights_BT), axes, local, _EACH)[0]


def _weighted_losses_fwd(x_BTD, head, targets_BT, weights_BT, axes):
    inputs = (targets_BT, weights_BT)
    local = functools.partial(_local_loss_and_gradients, each=True)
    results, gradients = _on_mesh(x_BTD, head, inputs, axes, local, _EACH, gradients=True)
    return results, (*gradients, sum(results[1].values()))


def _weighted_losses_bwd(axes, gradients, cotangents):
    of_total, _ = cotangents
    dx_BTD, dhead, d_weights_BT = (of_total.astype(g.dtype) * g for g in gradients)
    return dx_BTD, dhead, None, d_weights_BT


weighted_losses.defvjp(_weighted_losses_fwd, _weighted_losses_bwd)


def token_losses(x_BTD, head, targets_BT, axes):
    """Negative log-likelihood of each target and whether the argmax is the target, [B, T] each.

    Both are meaningless where the target is -1. Its gradient keeps all logits; that of
    `weighted_loss` does not.
    """
    return _on_mesh(x_BTD, head, (targets_BT,), axes, _local_token_losses, True)[0]


# --- on a mesh ---------------------------------------------------------------------------------


_EACH = (False, True)  # a sum over all tokens, a value of each token


def _on_mesh(x_BTD, head, inputs, axes, local, by_token=False, gradients=False):
    """`local` on the devices of the mesh of the context; without a mesh, on whole arrays.

    Args:
      by_token: whether the results are of tokens, not sums over all; a prefix of their tree.
      gradients: whether `local` returns gradients.

    Returns what `local` does: (results, gradients or None).
    """
    where = sharded_weights.on_mesh(axes, head.shape)
    place = _Place(axes, where)
    run = functools.partial(local, place=place)
    if where is None:
        return run(x_BTD, head, *inputs)
    tokens = PartitionSpec(*where.rows)
    results = jax.tree.map(lambda yes: tokens if yes else PartitionSpec(), by_token)
    return jax.shard_map(
        run,
        in_specs=(tokens, where.spec, *(tokens for _ in inputs)),
        out_specs=(results, (tokens, where.spec) if gradients else None),
        check_vma=False,
    )(x_BTD, head, *inputs)


class _Place:
    """How the devices of a mesh share a head.

    Attributes:
      where: layout of the parameter; None without a mesh.
      transposed: whether the parameter is [V, D].
      tokens: mesh axes that shard the tokens.
      vocab: mesh axes that shard the logits along V.
      width: mesh axes that shard the parameter along D, but not the tokens.
    """

    def __init__(self, axes, where: sharded_weights.Layout | None):
        self.where, self.transposed = where, axes[0] == "vocab"
        used = dict(zip(axes, where.used, strict=True)) if where else {}
        self.tokens = tuple(axis for part in where.rows for axis in part) if where else ()
        self.vocab, self.width = (axes_of(used.get(name)) for name in ("vocab", "embed"))

    def gather(self, head, dtype):
        """The head [D, V] in the compute type, with the part of the vocabulary of this device."""
        head = head.astype(dtype)
        if self.where:
            head = self.where.gather(head)
        head_DV = head.T if self.transposed else head
        return jax.lax.all_gather(head_DV, self.width, tiled=True) if self.width else head_DV

    def scatter(self, dhead_DV):
        """The sum of the gradients of all devices, of which each keeps its shard of the parameter."""
        for axis in self.width:  # tokens are replicated over it, so each device has the sum
            size = dhead_DV.shape[0] // jax.lax.axis_size(axis)
            start = size * jax.lax.axis_index(axis)
            dhead_DV = jax.lax.dynamic_slice_in_dim(dhead_DV, start, size)
        dhead = dhead_DV.T if self.transposed else dhead_DV
        return self.where.sum(dhead) if self.where else dhead


def _summed(x, mesh_axes):
    return jax.lax.psum(x, mesh_axes) if mesh_axes else x


# --- on one device -----------------------------------------------------------------------------


def _local_loss(x_BTD, head, targets_BT, weights_BT, *, place, each=False):
    """((the loss, its terms), None); with `each` the terms of each token."""
    head_DV = place.gather(head, x_BTD.dtype)

    def chunk(sums, inputs):
        x_nD, targets_n, weights_n = inputs
        terms = token_terms(*_logits(x_nD, head_DV, targets_n, place.vocab)[-2:])
        return _added(sums, terms, weights_n), terms if each else None

    sums, terms_BT = _chunked(chunk, _no_terms(), x_BTD, targets_BT, weights_BT)
    total, terms = _totals(sums, place)
    return (total, terms_BT if each else terms), None


def _local_loss_and_gradients(x_BTD, head, targets_BT, weights_BT, *, place, each=False):
    """The same, with the gradients of `x_BTD` and `head`."""
    head_DV = place.gather(head, x_BTD.dtype)

    def chunk(carry, inputs):
        carry, (dx_nD, terms) = _with_gradients(carry, inputs, head_DV, place)
        return carry, (dx_nD, terms if each else None)

    start = _no_terms(), jnp.zeros(head_DV.shape, jnp.float32)
    (sums, dhead_DV), (dx_BTD, terms_BT) = _chunked(chunk, start, x_BTD, targets_BT, weights_BT)
    gradients = _summed(dx_BTD, place.vocab), place.scatter(dhead_DV)
    total, terms = _totals(sums, place)
    return (total, terms_BT if each else terms), gradients


def _with_gradients(carry, inputs, head_DV, place):
    """A chunk: the sums of the terms and the head's gradient so far; (d x [n, D], {term: [n]})."""
    sums, dhead_DV = carry
    x_nD, targets_n, weights_n = inputs
    logits_nV, most_n, sum_n, own_n, *of_token = _logits(x_nD, head_DV, targets_n, place.vocab)
    terms, pull = jax.vjp(token_terms, *of_token)
    d_log_sum_n, d_target_n = pull({name: weights_n for name in terms})
    is_target_nV = jnp.arange(logits_nV.shape[-1]) == own_n[:, None]
    dlogits_nV = jnp.exp(logits_nV - most_n[:, None]) * (d_log_sum_n / sum_n)[:, None]
    dlogits_nV += jnp.where(is_target_nV, d_target_n[:, None], 0.0)
    dx_nD, more_DV = kernels.matmul_gradients(x_nD, head_DV, dlogits_nV, jnp.float32)
    return (_added(sums, terms, weights_n), dhead_DV + more_DV), (dx_nD, terms)


def _local_token_losses(x_BTD, head, targets_BT, *, place):
    head_DV = place.gather(head, x_BTD.dtype)
    V = head_DV.shape[-1]

    def chunk(_, inputs):
        x_nD, targets_n = inputs
        logits_nV, most_n, _, own_n, *of_token = _logits(x_nD, head_DV, targets_n, place.vocab)
        # The first of several largest logits counts, as in jnp.argmax.
        first_n = jnp.argmax(logits_nV, axis=-1)
        first_n = jnp.where(jnp.max(logits_nV, axis=-1) == most_n, first_n, V)
        if place.vocab:
            offset = targets_n - own_n
            most = V * jax.lax.axis_size(place.vocab)
            first_n = jax.lax.pmin(jnp.where(first_n < V, first_n + offset, most), place.vocab)
        return None, (token_terms(*of_token)["nll"], first_n == targets_n)

    return _chunked(chunk, None, x_BTD, targets_BT)[1], None


def _logits(x_nD, head_DV, targets_n, vocab_axes):
    """The logits of a chunk, the vocabulary being sharded over `vocab_axes`.

    Returns:
      logits [n, V] of this device's part of the vocabulary;
      the largest logit [n] and the sum of the exponentials of logits minus it [n], of all parts;
      the target's position in this part [n], which may be outside;
      the log-sum-exp [n]; the target's logit [n].
    """
    logits_nV = kernels.matmul(x_nD, head_DV, dtype=jnp.float32)
    most_n = jnp.max(logits_nV, axis=-1)
    own_n = targets_n
    V = head_DV.shape[-1]
    if vocab_axes:
        most_n = jax.lax.pmax(most_n, vocab_axes)
        own_n = targets_n - V * jax.lax.axis_index(vocab_axes)
    sum_n = jnp.sum(jnp.exp(logits_nV - most_n[:, None]), axis=-1)
    target_n = jnp.take_along_axis(logits_nV, jnp.clip(own_n, 0, V - 1)[:, None], axis=-1)[:, 0]
    target_n = jnp.where((own_n >= 0) & (own_n < V), target_n, 0.0)
    sum_n, target_n = _summed(jnp.stack([sum_n, target_n]), vocab_axes)
    return logits_nV, most_n, sum_n, own_n, most_n + jnp.log(sum_n), target_n


def _no_terms():
    scalar = jax.ShapeDtypeStruct((1,), jnp.float32)
    return {name: jnp.zeros(()) for name in jax.eval_shape(token_terms, scalar, scalar)}


def _added(sums, terms, weights_n):
    return {name: sums[name] + jnp.sum(weights_n * term) for name, term in terms.items()}


def _totals(sums, place):
    sums = {name: _summed(value, place.tokens) for name, value in sums.items()}
    return sum(sums.values()), sums


def _chunked(chunk, start, x_BTD, *tokens_BT):
    """(carry, outputs [B, T, ...]) of `chunk`, scanned over chunks of tokens of the same size.

    Tokens added to fill the last chunk are of target -1 and weight 0.
    """
    B, T, D = x_BTD.shape
    N = B * T
    parts = -(-N // chunk_tokens(D))
    size = -(-N // parts)

    def cut(x, fill):
        flat = x.reshape(N, *x.shape[2:])
        if parts * size > N:
            widths = [(0, parts * size - N)] + [(0, 0)] * (flat.ndim - 1)
            flat = jnp.pad(flat, widths, constant_values=fill)
        return flat.reshape(parts, size, *flat.shape[1:])

    inputs = (cut(x_BTD, 0), *(cut(x, -1 if x.dtype.kind == "i" else 0) for x in tokens_BT))
    carry, outputs = jax.lax.scan(chunk, start, inputs)

    def whole(x):
        return x.reshape(-1, *x.shape[2:])[:N].reshape(B, T, *x.shape[2:])

    return carry, jax.tree.map(whole, outputs)
