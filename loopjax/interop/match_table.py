"""A foreign tree and its map as text: what is read from where, and the model that results."""

import itertools

from loopjax.interop import tree_map
from loopjax.interop.axes import times
from loopjax.interop.matching import Match, Source
from loopjax.text_table import aligned

HEADER = ("from", "shape", "axes", "to", "shape", "changes")


def table(match: Match) -> str:
    """A row for each parameter, the summary, and notes."""
    rows = [_row(source) for source in match.sources.values()]
    above = _above([path for path, *_ in rows])
    rows = [(path.removeprefix(above), *rest) for path, *rest in rows]
    lines = [f"{match.path}, below {above[:-1]}" if above else str(match.path), ""]
    lines += aligned([HEADER, *rows], left=len(HEADER))
    return "\n".join([*lines, "", *summary(match), *match.notes])


def _above(paths: list[str]) -> str:
    """The folder that all paths are in, "items/params/"; "" if there is none."""
    parts = zip(*(path.split("/")[:-1] for path in paths), strict=False)
    shared = itertools.takewhile(lambda names: len({*names}) == 1, parts)
    return "".join(f"{names[0]}/" for names in shared)


def _row(source: Source) -> tuple[str, ...]:
    piece, changes = source.pieces[0], []
    if piece.layout.parts > 1:
        changes.append(f"part {piece.part + 1} of {piece.layout.parts}")
    if source.interleaved:
        changes.append("rotary pairs reordered")
    if source.offset:
        changes.append(f"+ {source.offset:g}")
    if source.factor != 1:
        changes.append(f"x {source.factor:.6g}")
    return (
        piece.shown, times(piece.array.shape), str(piece.layout), source.leaf, times(source.shape),
        "; ".join(changes),
    )  # fmt: skip


def summary(match: Match) -> list[str]:
    """The model by its shapes and by the map, and the arrays that are left out, a line each."""
    cfg, facts = match.cfg, match.by.facts
    sizes = {
        "n_layers": match.n_layers, "d_model": cfg.d_model, "d_ff": cfg.d_ff, "n_heads": cfg.n_heads,
        "n_kv_heads": cfg.n_kv_heads, "head_dim": cfg.head_size, "vocab_size": cfg.vocab_size,
        "tie_embeddings": str(cfg.tie_embeddings).lower(),
    }  # fmt: skip
    always = (*tree_map.REQUIRED, "rope_pairs", "attention_scale")
    stated = {
        name: facts[name]
        for name in (*always, *tree_map.OPTIONAL)
        if name in always or facts[name] != tree_map.OPTIONAL[name]
    }
    lines = [
        f"{label} {' '.join(f'{name}={value}' for name, value in values.items())}"
        for label, values in (("by the shapes:", sizes), ("by the map:   ", stated))
    ]
    if match.ignored:
        parts = [array.name.split("/") for array in match.ignored]
        names = dict.fromkeys("/".join(p[:2]) + ("/..." if len(p) > 2 else "") for p in parts)
        n, size = len(match.ignored), sum(array.bytes for array in match.ignored)
        lines.append(f"left out:      {', '.join(names)} ({n} arrays, {size:,} bytes)")
    return lines
