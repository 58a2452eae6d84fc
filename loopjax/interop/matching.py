"""Arrays of a foreign tree matched to the parameters of a model here, by a map."""

import dataclasses
import math
import pathlib
import re

from loopjax.config import check_size
from loopjax.errors import UserError
from loopjax.interop import tree_map
from loopjax.interop.axes import CANONICAL, LAYERS, Layout, Measured, canonical, solve
from loopjax.interop.tree_map import Rule, TreeMap
from loopjax.model_config import DTYPES, ModelConfig

STORED = ("float32", "bfloat16", "float16")
SHOWN = 5  # names in a message
BIASES = {"layers/query_bias", "layers/key_bias", "layers/value_bias"}
HEAD_NORMS = {"layers/query_norm", "layers/key_norm"}
ROTATED = {f"layers/{name}{kind}" for name in ("query", "key") for kind in ("", "_bias", "_norm")}


@dataclasses.dataclass(frozen=True)
class Piece:
    """Where a parameter is in a foreign array.

    Attributes:
      array: the array, a `weights.arrays.Array`.
      layout: its axes, with that of the layers if it is stacked.
      part: which of the parameters that are joined in the array.
      shown: its path, with a * for the number of the layer.
    """

    array: object
    layout: Layout
    part: int
    shown: str


@dataclasses.dataclass(frozen=True)
class Source:
    """What fills one parameter.

    Attributes:
      leaf: the parameter, "layers/query".
      shape: its shape here.
      pieces: one for each layer, or one for all (stacked arrays, parameters that are not of a layer).
      axes: the axes of `shape`, each a product of names.
      sizes: of all names.
      offset, factor: a weight here is (foreign weight + offset) * factor.
      interleaved: whether its heads have the pairs of the rotary embedding as (2i, 2i + 1).
    """

    leaf: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    axes: tuple[tuple[str, ...], ...]
    sizes: dict[str, int]
    offset: float
    factor: float
    interleaved: bool

    @property
    def per_layer(self) -> bool:
        """Whether each layer has an array of its own."""
        return self.axes[0] == (LAYERS,) and LAYERS not in self.pieces[0].layout.names(0)


@dataclasses.dataclass(frozen=True)
class Match:
    """A foreign tree as a model; nothing is read of it but shapes.

    Attributes:
      path: directory of the foreign checkpoint.
      by: the map.
      cfg: the architecture.
      n_layers: U, each executed once.
      seq_len: context length in tokens.
      dtype: type of the foreign arrays, "float32" if they differ.
      sources: by parameter, in the order of `ModelConfig.parameter_shapes`.
      ignored: arrays that are left out.
      notes: what else a user should know, one sentence each.
    """

    path: pathlib.Path
    by: TreeMap
    cfg: ModelConfig
    n_layers: int
    seq_len: int
    dtype: str
    sources: dict[str, Source]
    ignored: list
    notes: list[str]


def match(tree, by: TreeMap) -> Match:
    """Matches the arrays of a `weights.arrays.Tree`.

    Raises UserError if arrays are left over or taken twice, if parameters are missing, or if shapes do
    not fit.
    """
    filled, ignored = _filled(tree, by)
    _check_complete(filled, by)
    pieces = {
        leaf: tuple(layers[i] for i in sorted(layers, key=lambda i: i or 0))
        for leaf, layers in filled.items()
    }
    axes = {leaf: _axes(leaf, of_leaf) for leaf, of_leaf in pieces.items()}
    known = {
        letter: (by.facts[name], f"model.{name}")
        for name, letter in tree_map.SIZES.items()
        if name in by.facts
    }
    n_layers = _numbered_layers(filled)
    if n_layers is not None:
        stated = by.facts.get("n_layers", n_layers)
        if stated != n_layers:
            raise UserError(
                f"--map {by.name}: model.n_layers={stated}, but {tree.path} has {n_layers} layers"
            )
        known[LAYERS] = (n_layers, "the numbered layers")
    measured = {
        (piece.array.name, piece.layout): Measured(
            piece.array.name, piece.array.shape, piece.layout
        )
        for of_leaf in pieces.values()
        for piece in of_leaf
    }
    sizes = solve(list(measured.values()), known)
    dtypes = {piece.array.dtype for of_leaf in pieces.values() for piece in of_leaf}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    cfg, seq_len, notes = _model(tree, by, pieces.keys(), sizes, dtype)
    factors = _factors(by, sizes, cfg)
    sources = {
        leaf: Source(
            leaf,
            shape,
            pieces[leaf],
            axes[leaf],
            sizes,
            float(by.facts["norm_offset"]) if leaf.endswith("norm") else 0.0,
            factors.get(leaf, 1.0),
            by.facts["rope_pairs"] == "interleaved" and leaf in ROTATED,
        )
        for leaf, shape in cfg.parameter_shapes(sizes[LAYERS]).items()
    }
    notes += [
        f"{leaf} is multiplied by {source.factor:.6g}, and rounded to float32"
        for leaf, source in sources.items()
        if math.frexp(source.factor)[0] != 0.5
    ]
    return Match(tree.path, by, cfg, sizes[LAYERS], seq_len, dtype, sources, ignored, notes)


def _filled(tree, by: TreeMap) -> tuple[dict[str, dict[int | None, Piece]], list]:
    """({parameter: {layer, None for all: piece}}, ignored arrays)."""
    filled: dict[str, dict[int | None, Piece]] = {}
    ignored, left = [], []
    for name, array in tree.arrays.items():
        if is_ignored(by, name):
            ignored.append(array)
            continue
        hits = [(rule, found) for rule in by.rules if (found := rule.path.fullmatch(name))]
        if len(hits) > 1:
            patterns = " and ".join(repr(rule.path.pattern) for rule, _ in hits[:2])
            raise UserError(f"--map {by.name}: two rules take {name}: {patterns}")
        for rule, found in hits:
            _fill(filled, by, array, rule, found)
        if not hits:
            left.append(name)
    if not filled:
        raise UserError(
            f"--map {by.name} takes no array of {tree.path}, which has {_names(tree.arrays) or 'none'}"
        )
    if left:
        raise UserError(
            f"--map {by.name} has no rule for {_names(left)} of {tree.path}; add rules, or patterns to "
            "'ignore' if a model here does not need them"
        )
    return filled, ignored


def is_ignored(by: TreeMap, name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in by.ignore)


def _fill(filled: dict, by: TreeMap, array, rule: Rule, found: re.Match) -> None:
    """Adds the parameters that an array holds by a rule."""
    if array.dtype not in STORED:
        raise UserError(
            f"{array.name} has the type {array.dtype}; supported are {', '.join(STORED)}"
        )
    layer, shown = _layer(by, array.name, found)
    for part, leaf in enumerate(rule.to):
        stacked = layer is None and leaf.startswith("layers/")
        layout = rule.layout.stacked(by.layers_axis) if stacked else rule.layout
        layers = filled.setdefault(leaf, {})
        # A layer twice, or one array for all layers beside those of single layers.
        others = [layer] if layer in layers else layers if {None} & {layer, *layers} else ()
        for other in others:
            raise UserError(
                f"--map {by.name}: {layers[other].array.name} and {array.name} both fill {leaf}"
            )
        layers[layer] = Piece(array, layout, part, shown)


def _layer(by: TreeMap, name: str, found) -> tuple[int | None, str]:
    """(number of the layer by the group "layer" of a rule, the path with a * in its place)."""
    text = found.groupdict().get("layer")
    if text is None:
        return None, name
    if not re.fullmatch("[0-9]{1,9}", text):
        raise UserError(
            f"--map {by.name}: the group 'layer' of {found.re.pattern!r} is {text!r} in {name}; it must "
            "be a number"
        )
    return int(text), f"{name[: found.start('layer')]}*{name[found.end('layer') :]}"


def _names(names) -> str:
    """The first of several names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _check_complete(filled: dict, by: TreeMap) -> None:
    """Raises UserError for parameters of a model that nothing fills."""
    needed = CANONICAL.keys() - BIASES - HEAD_NORMS - {"head"}
    for group in (BIASES, HEAD_NORMS):
        if group & filled.keys():
            needed |= group
    missing = [leaf for leaf in CANONICAL if leaf in needed - filled.keys()]
    if missing:
        raise UserError(f"--map {by.name}: nothing fills {_names(missing)}")


def _numbered_layers(filled: dict) -> int | None:
    """The number of layers by the numbers in paths, None without; UserError if some are missing."""
    numbered = {leaf: layers for leaf, layers in filled.items() if None not in layers}
    if not numbered:
        return None
    n_layers = 1 + max(max(layers) for layers in numbered.values())
    for leaf, layers in numbered.items():
        if len(layers) < n_layers:
            missing = next(i for i in range(n_layers) if i not in layers)
            raise UserError(
                f"{leaf} is missing in layer {missing} of {n_layers}, numbered 0 to {n_layers - 1}"
            )
    return n_layers


def _axes(leaf: str, pieces) -> tuple[tuple[str, ...], ...]:
    """The axes of a parameter as products of names, the one of the layers included."""
    axes, *others = (canonical(leaf, piece.layout.names(piece.part)) for piece in pieces)
    for piece, other in zip(pieces[1:], others, strict=True):
        if other != axes:
            raise UserError(
                f"{pieces[0].array.name} and {piece.array.name} have heads as H and as K and G; use "
                "the same names"
            )
    return ((LAYERS,), *axes) if leaf.startswith("layers/") else axes


def _model(
    tree, by: TreeMap, leaves, sizes: dict, dtype: str
) -> tuple[ModelConfig, int, list[str]]:
    """(architecture, context length, notes)."""
    facts, where, notes = by.facts, f"--map {by.name}", []
    rows, vocab_size = sizes["V"], by.facts.get("vocab_size", sizes["V"])
    if vocab_size > rows:
        raise UserError(
            f"{where}: model.vocab_size={vocab_size}, but the embedding has {rows} rows"
        )
    if vocab_size < rows:
        left = rows - vocab_size
        notes.append(f"the last {left} of {rows} rows of the vocabulary are left out")
    computed = facts["dtype"] or dtype
    if not facts["dtype"] and dtype not in DTYPES:
        notes.append(f"the arrays have dtype {dtype}; computing in float32")
        computed = "float32"
    seq_len, window = facts["seq_len"], facts["sliding_window"]
    if 0 < window < seq_len:
        notes.append(
            f"attention slides over {window} tokens, so the context is {window} tokens and not {seq_len}"
        )
        seq_len = window
    try:
        cfg = ModelConfig(
            vocab_size=vocab_size,
            d_model=sizes["D"],
            d_ff=sizes["F"],
            n_heads=sizes["H"],
            n_kv_heads=sizes["K"],
            init_depth=sizes[LAYERS],
            head_dim=0 if sizes["H"] * sizes["C"] == sizes["D"] else sizes["C"],
            rope_theta=float(facts["rope_theta"]),
            rope_scaling=facts["rope_scaling"],
            attention_bias=leaves >= BIASES,
            qk_norm=leaves >= HEAD_NORMS,
            norm_eps=float(facts["norm_eps"]),
            tie_embeddings="head" not in leaves,
            dtype=computed,
        )
        check_size(cfg, sizes[LAYERS])
    except ValueError as error:
        raise UserError(f"{where} and {tree.path} describe no model: {error}") from None
    return cfg, seq_len, notes


def _factors(by: TreeMap, sizes: dict, cfg: ModelConfig) -> dict[str, float]:
    """Factors of parameters that take the place of scales in the foreign model.

    A model here has attention with 1 / sqrt(C) and no other scale. Each of the others is a factor of
    something linear in a parameter: of the queries, the embeddings, a branch's output, the final norm.
    """
    scales = {
        name: tree_map.scale(f"--map {by.name}", name, by.facts[name], sizes)
        for name in tree_map.SCALES
    }
    query = scales["attention_scale"] * math.sqrt(sizes["C"])
    embedding, residual, logits = (
        scales[f"{name}_scale"] for name in ("embedding", "residual", "logits")
    )
    if cfg.tie_embeddings:  # the head is the scaled embedding then, which the final norm undoes
        logits *= scales["tied_logits_scale"] / embedding
    queries = ("layers/query_norm",) if cfg.qk_norm else ("layers/query", "layers/query_bias")
    return {
        **dict.fromkeys(queries, query),
        "embed": embedding,
        "layers/output": residual,
        "layers/down": residual,
        "final_norm": logits,
    }
