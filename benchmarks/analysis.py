"""Diagnostics of `loopjax analyze`, compared with a plain loop over prompts and layers.

    python benchmarks/analysis.py [--depth 12] [--prompts 4] [--tokens 128 256] [--rounds 3]

The loop makes one compiled forward pass of one row for each prompt, boundary and ablated layer (for
local effects: one block for each pair of layers), copies the activations to the host and compares
them in NumPy. Both run the same random model on the same random prompts and must give the same
numbers. `compile_s` is the first call minus a later one; `waiting` is the share of a call in which
Python waits for the device.
"""

import contextlib
import functools
import statistics
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from common import SIZES, alternate, config_of, emit, parser, ratio, spread

from loopjax import model, sharding
from loopjax.analysis import depth_score, early_exit, effects, lens, norms
from loopjax.analysis.activations import activations
from loopjax.config import default
from loopjax.depth import DepthPlan
from loopjax.lm.batching import padded
from loopjax.lm.loaded_model import LanguageModel

TOLERANCE = 1e-3  # absolute, of effects and relative norms; NumPy and XLA add in other orders


def random_model(size: str, depth: str) -> LanguageModel:
    """A random model on one device."""
    config = config_of(size, depth).model
    fields = {key: config[key] for key in model.ModelConfig.__dataclass_fields__}
    plan = DepthPlan.parse(depth)
    fields |= {"remat": "none", "init_depth": plan.n_effective}
    cfg = model.ModelConfig(**fields)
    params = nn.meta.unbox(model.init_params(cfg, plan.n_unique, jax.random.key(0)))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.MESH_AXES)
    rules = sharding.axis_rules(default().mesh)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return LanguageModel(
        jax.device_put(params, place), cfg, plan, None, SIZES[size][6], mesh, rules, {}, None
    )


class Loop:
    """The plain loop."""

    def __init__(self, lm: LanguageModel):
        self.lm, cfg, plan = lm, lm.cfg, lm.plan
        self.ablated = jax.jit(self._ablated, static_argnames="sublayers")
        self.block = jax.jit(self._block)
        self.plain = jax.jit(functools.partial(activations, cfg=cfg, plan=plan))
        self.at_exit = jax.jit(self._at_exit)

    def _ablated(self, params, tokens_1T, source, hidden_T, sublayers):
        """(updates [E, T, D], distributions [T, V]) without one layer at some tokens."""
        cfg, plan = self.lm.cfg, self.lm.plan
        x_1TD = model.outside_stack(params, cfg, tokens_1T, "embedded")
        context = model.context_of(cfg, jnp.arange(tokens_1T.shape[1]), x_1TD)

        def layer(x_1TD, e):
            ablated_1T = (hidden_T & (e == source))[None]
            gates = {
                name: jnp.where(ablated_1T & (name in sublayers), 0.0, 1.0)
                for name in ("attention", "mlp")
            }
            at = params["layers"], e, x_1TD, context.replace(gates=gates)
            x_1TD, _, sown = model.run_layer(*at, cfg, plan)
            return x_1TD, sown["attention"].astype(jnp.float32) + sown["mlp"].astype(jnp.float32)

        x_1TD, update_E1TD = jax.lax.scan(layer, x_1TD, jnp.arange(plan.n_effective))
        return update_E1TD[:, 0], jax.nn.softmax(model.unembed(params, x_1TD, cfg))[0]

    def _block(self, layer, x_TD):
        """The update of one layer, [T, D]."""
        cfg = self.lm.cfg
        x_1TD = x_TD[None].astype(cfg.dtype)
        context = model.context_of(cfg, jnp.arange(x_TD.shape[0]), x_1TD)
        _, _, sown = model.run_layer([layer], 0, x_1TD, context, cfg, DepthPlan.of([(1, 1)]))
        return sum(sown[name][0].astype(jnp.float32) for name in ("attention", "mlp"))

    def _at_exit(self, params, h_1TD, final_1TD, length):
        """Means over the tokens of overlap and both divergences, [3]."""
        cfg = self.lm.cfg
        early, final = (
            jax.nn.log_softmax(model.unembed(params, x.astype(cfg.dtype), cfg))
            for x in (h_1TD, final_1TD)
        )
        found = jnp.stack(early_exit.agreements(early, final))[:, 0]
        return jnp.where(jnp.arange(h_1TD.shape[1]) < length, found, 0.0).sum(-1) / length

    def norms(self, prompts):
        sums, tokens = {}, sum(map(len, prompts))
        for prompt in prompts:
            found = jax.device_get(self.plain(self.lm.params, padded(prompt)))
            h, a, m = (x[:, 0, : len(prompt)] for x in (found.residual, found.attention, found.mlp))
            size = functools.partial(np.linalg.norm, axis=-1)
            pairs = {"attention": (a, h[:-1]), "mlp": (m, h[:-1] + a), "layer": (a + m, h[:-1])}
            values = {"residual": size(h)}
            for name, (x, y) in pairs.items():
                values[name] = size(x) / size(y)
                values[f"{name}_cosine"] = (x * y).sum(-1) / (size(x) * size(y))
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value.sum(-1, dtype=np.float64)
        return {name: total / tokens for name, total in sums.items()}

    def propagated(self, prompts, boundaries, sublayer="layer"):
        """(matrix [E, E], change of the output [prompts, E])."""
        E, sublayers = self.lm.plan.n_effective, effects.SUBLAYERS[sublayer]
        matrix, output = np.zeros((E, E)), np.zeros((len(prompts), E))
        for p, (prompt, cuts) in enumerate(zip(prompts, boundaries, strict=True)):
            tokens, n = padded(prompt), len(prompt)

            def run(source, hidden, tokens=tokens):
                args = (self.lm.params, tokens, np.int32(source), hidden)
                return jax.device_get(self.ablated(*args, sublayers=sublayers))

            clean, clean_q = run(-1, hidden_at(tokens, n))
            for t in cuts:
                first = 0 if t is None else t
                for s in range(E):
                    changed, q = run(s, hidden_at(tokens, n if t is None else t))
                    matrix[s] = np.maximum(matrix[s], relative(clean, changed, first, n))
                    apart = np.linalg.norm(clean_q[first:n] - q[first:n], axis=-1).max()
                    output[p, s] = max(output[p, s], apart)
        return matrix, output

    def local(self, prompts, boundaries):
        lm, E = self.lm, self.lm.plan.n_effective
        matrix, layers = np.zeros((E, E)), [lm.layers[u] for u in lm.plan.order]
        for prompt, cuts in zip(prompts, boundaries, strict=True):
            tokens, n = padded(prompt), len(prompt)
            found = jax.device_get(self.plain(lm.params, tokens))
            h, c = found.residual[:, 0], found.attention[:, 0] + found.mlp[:, 0]
            for t in cuts:
                hidden = hidden_at(tokens, t)[:, None]
                for s in range(E):
                    for target in range(s + 1, E):
                        x = h[target] - hidden * c[s]
                        changed = jax.device_get(self.block(layers[target], x))
                        change = relative(c[target], changed, t, n)
                        matrix[s, target] = max(matrix[s, target], change)
        return matrix

    def overlap(self, prompts):
        found = []
        for prompt in prompts:
            h = self.plain(self.lm.params, padded(prompt)).residual
            exits = [self.at_exit(self.lm.params, x, h[-1], len(prompt)) for x in h[:-1]]
            found.append(jax.device_get(exits))
        return np.mean(found, axis=0).T


def hidden_at(tokens_1T, stop: int) -> np.ndarray:
    position = np.arange(tokens_1T.shape[1])
    return (position >= 1) & (position < stop)


def relative(clean, changed, first: int, stop: int):
    """The largest relative change over the tokens from `first` on, [...]."""
    clean, changed = clean[..., first:stop, :], changed[..., first:stop, :]
    size = np.maximum(np.linalg.norm(clean, axis=-1), effects.LEAST)
    return (np.linalg.norm(clean - changed, axis=-1) / size).max(-1)


def diagnostics(lm: LanguageModel, prompts) -> dict:
    """{name: (loopjax, loop)}; both give a list of arrays that have to be equal."""
    loop, cuts = Loop(lm), effects.draw_boundaries(prompts)
    cases = [(prompt, len(prompt) // 2, "") for prompt in prompts]
    answers, everywhere = depth_score.draw_boundaries(cases, one=False), [[None]] * len(prompts)
    exits, curves = lens.logit_lens(lm), ("overlap", "kl_early_final", "kl_final_early")

    def norms_of():
        found = norms.norms(lm, prompts)
        return {name: getattr(found, name) for name in NORMS}

    def both(found):
        return {"matrix": found.matrix, "output": found.output}

    def both_of(matrix, output):
        return {"matrix": matrix, "output": output.max(0)}

    def overlap_of():
        found = early_exit.agreement(lm, exits, prompts)
        return {name: getattr(found, name) for name in curves}

    return {
        "norms": (norms_of, lambda: loop.norms(prompts)),
        "future_local": (
            lambda: {"matrix": effects.local(lm, prompts, cuts).matrix},
            lambda: {"matrix": loop.local(prompts, cuts)},
        ),
        "future": (
            lambda: both(effects.propagated(lm, prompts, cuts)),
            lambda: both_of(*loop.propagated(prompts, cuts)),
        ),
        "current_attention": (
            lambda: both(effects.propagated(lm, prompts, None, "attention")),
            lambda: both_of(*loop.propagated(prompts, everywhere, "attention")),
        ),
        "depth_score": (
            lambda: {"effect": depth_score.depth_score(lm, cases).effect},
            lambda: {"effect": loop.propagated(prompts, answers)[1].mean(0)},
        ),
        "overlap": (overlap_of, lambda: dict(zip(curves, loop.overlap(prompts), strict=True))),
    }


NORMS = ("residual", "attention", "mlp", "layer", "attention_cosine", "mlp_cosine", "layer_cosine")


class Waiting:
    """The seconds that Python spends in `jax.device_get`."""

    def __init__(self):
        self.seconds, self.get = 0.0, jax.device_get

    def __call__(self, tree):
        begun = time.perf_counter()
        found = self.get(tree)
        self.seconds += time.perf_counter() - begun
        return found

    @contextlib.contextmanager
    def counted(self):
        jax.device_get = self
        yield
        jax.device_get = self.get


def measured(ours, loop, rounds: int) -> dict:
    """Seconds of both, compiled and not, and how far apart their numbers are."""
    jax.clear_caches()  # some diagnostics share programs
    first, found, waiting = {}, {}, {}
    timed = {"loopjax": ours, "loop": loop}
    for name, run in timed.items():
        begun = time.perf_counter()
        found[name] = run()
        first[name] = time.perf_counter() - begun
    apart = {k: float(np.abs(found["loop"][k] - v).max()) for k, v in found["loopjax"].items()}
    for name, run in timed.items():
        begun, waits = time.perf_counter(), Waiting()
        with waits.counted():
            run()
        waiting[name] = waits.seconds / (time.perf_counter() - begun)
    seconds = alternate(timed, rounds)
    steady = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "seconds": {name: spread(times) for name, times in seconds.items()},
        "compile_s": {name: max(0.0, first[name] - steady[name]) for name in timed},
        "ratio": ratio(seconds["loop"], seconds["loopjax"]),
        "ratio_with_compilation": first["loop"] / first["loopjax"],
        "waiting": waiting,
        "largest_difference": apart,
    }


def main():
    arguments = parser(__doc__)
    arguments.set_defaults(rounds=3)
    arguments.add_argument("--depth", default="12")
    arguments.add_argument("--prompts", type=int, default=4)
    arguments.add_argument(
        "--tokens", type=int, nargs="+", default=[128, 256], help="prompt lengths"
    )
    arguments.add_argument("--what", nargs="+", help="diagnostics to run (default all)")
    args = arguments.parse_args()
    lm = random_model(args.size, args.depth)
    rng = np.random.default_rng(0)
    prompts = [
        rng.integers(0, lm.cfg.vocab_size, args.tokens[i % len(args.tokens)]).tolist()
        for i in range(args.prompts)
    ]
    figures = {}
    for name, (ours, loop) in diagnostics(lm, prompts).items():
        if args.what and name not in args.what:
            continue
        print(name, file=sys.stderr)
        figures[name] = measured(ours, loop, args.rounds)
        apart = figures[name]["largest_difference"]
        # Sizes of residuals are not relative.
        if max(v for k, v in apart.items() if k != "residual") > TOLERANCE:
            raise SystemExit(f"{name}: the loop finds something else: {apart}")
    emit("analysis", args, diagnostics=figures)


if __name__ == "__main__":
    main()
