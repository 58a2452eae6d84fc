"""Maps: files that say where a foreign tree has the parameters of a model here, and what it computes.

A map is TOML: rules (a pattern of paths, the parameters that such an array holds, its axes), and under
[model] the facts that no array shows. docs/conversion.md has the format; `maps/` has those by name.
"""

import dataclasses
import difflib
import math
import pathlib
import re
import tomllib

from loopjax import paths
from loopjax.errors import UserError, first_line
from loopjax.interop.axes import CANONICAL, LETTERS, Layout

FOLDER = pathlib.Path(__file__).parent / "maps"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))
LARGEST = 10**6  # bytes of a map
DEEPEST = 8  # maps that are based on another one
# What no rule takes and a model does not need: optimizer states and counters of steps.
IGNORED = (r"(.*/)?opt_state(/.*)?", r"(.*/)?step")
TABLES = {"base", "layers_axis", "prefix", "ignore", "model", "rules"}
RULE = {"path", "to", "axes"}

# Facts. Of those in `ONLY`, other values are of models that have no counterpart here.
ONLY = {
    "norm": "rms",
    "positions": "rope",
    "activation": "silu",
    "rope_pairs": ("half", "interleaved"),
}
SIZES = {
    name: letter for letter, name in LETTERS.items() if letter not in ("V", "G")
}  # d_model: D, ...
WHOLE = (*SIZES, "vocab_size", "seq_len", "sliding_window")
TEXTS = ("rope_scaling", "dtype")
POSITIVE = ("rope_theta", "norm_eps")
SCALES = (
    "attention_scale", "embedding_scale", "residual_scale", "logits_scale", "tied_logits_scale",
)  # fmt: skip
CAPS = ("attention_softcap", "logits_softcap")
OPTIONAL = {
    "rope_pairs": "half", "rope_scaling": "", "norm_offset": 0.0, "attention_scale": "1/sqrt(C)",
    "embedding_scale": 1, "residual_scale": 1, "logits_scale": 1, "tied_logits_scale": 1,
    "attention_softcap": 0, "logits_softcap": 0, "sliding_window": 0, "dtype": "",
}  # fmt: skip
REQUIRED = ("norm", "positions", "activation", "rope_theta", "norm_eps", "seq_len")
FACTS = (*REQUIRED, *OPTIONAL, *SIZES, "vocab_size")


@dataclasses.dataclass(frozen=True)
class Rule:
    """Arrays whose paths match `path` hold the parameters `to`, with these axes."""

    path: re.Pattern
    to: tuple[str, ...]
    layout: Layout


@dataclasses.dataclass(frozen=True)
class TreeMap:
    """A map that has been checked.

    Attributes:
      name: as given: a name in `NAMES`, or a file.
      rules: in the order of the file, those of its base first.
      ignore: patterns of paths that are left out.
      layers_axis: position of the layers axis in stacked arrays.
      facts: {name: value} for `FACTS`, with defaults; sizes that are not stated are missing.
    """

    name: str
    rules: tuple[Rule, ...]
    ignore: tuple[re.Pattern, ...]
    layers_axis: int
    facts: dict


def load(name: str, settings: dict[str, str]) -> TreeMap:
    """The map of a name or file, with facts replaced by `settings` (texts, from a command line).

    Raises UserError for a map that is none, and for one of a model that has no counterpart here.
    """
    content = _content(name)
    facts = content.get("model", {})
    where = f"--map {name}"
    for key, text in settings.items():
        value = _value(text)
        if key == "layers_axis":
            content["layers_axis"] = value
        else:
            facts[key] = value
    facts = _facts(where, facts)
    axis = content.get("layers_axis", 0)
    if type(axis) is not int or not 0 <= axis <= 8:
        raise UserError(f"{where}: layers_axis={axis!r} must be a whole number within 0..8")
    ignore = content.get("ignore", list(IGNORED))
    if not isinstance(ignore, list):
        raise UserError(f"{where}: ignore={ignore!r:.80} must be a list of patterns")
    patterns = tuple(_pattern(where, "ignore", pattern) for pattern in ignore)
    return TreeMap(name, tuple(content["rules"]), patterns, axis, facts)


def _value(text: str):
    """A value of the command line, of the type that it would have in TOML."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _content(name: str, depth: int = 0) -> dict:
    """The tables of a map and of those that it is based on; `rules` are `Rule`s."""
    where = f"--map {name}"
    path = _path(name)
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(
                f"{where} has {path.stat().st_size:,} bytes; a map has at most {LARGEST:,}"
            )
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"{where} is none of {', '.join(NAMES)} and cannot be read: {error.strerror}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not TOML: {first_line(error)}") from None
    _known(where, "", content, TABLES)
    for key, kind in (("base", str), ("prefix", str), ("model", dict), ("rules", list)):
        if not isinstance(content.get(key, kind()), kind):
            raise UserError(f"{where}: {key} must be a {_KINDS[kind]}")
    prefix = content.pop("prefix", "")
    rules = [
        _rule(f"{where}: rule {i + 1}", rule, prefix)
        for i, rule in enumerate(content.get("rules", []))
    ]
    base = content.pop("base", "")
    if not base:
        return {**content, "rules": rules}
    if depth == DEEPEST:
        raise UserError(f"{where} is based on itself, or on more than {DEEPEST} maps")
    below = _content(base if base in NAMES else str(path.parent / base), depth + 1)
    model = {**below.get("model", {}), **content.get("model", {})}
    return {**below, **content, "model": model, "rules": [*below["rules"], *rules]}


_KINDS = {str: "text", dict: "table", list: "list of tables, [[rules]]"}


def _path(name: str) -> pathlib.Path:
    return FOLDER / f"{name}.toml" if name in NAMES else paths.local(name, "--map")


def _known(where: str, what: str, found: dict, known) -> None:
    for key in found:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"did you mean {what}{close[0]}?"
                if close
                else f"known are {', '.join(sorted(known))}"
            )
            raise UserError(f"{where}: {what}{key} does not exist; {hint}")


def _rule(where: str, rule, prefix: str) -> Rule:
    if not isinstance(rule, dict):
        raise UserError(f"{where} must be a table with path, to and axes")
    _known(where, "", rule, RULE)
    for key in sorted(RULE - rule.keys()):
        raise UserError(f"{where} has no {key}")
    to = [rule["to"]] if isinstance(rule["to"], str) else rule["to"]
    if not isinstance(to, list) or not to:
        raise UserError(f"{where}: to={to!r:.80} must be a parameter, or a list of them")
    for leaf in to:
        if leaf not in CANONICAL:
            raise UserError(f"{where}: to={leaf!r:.80} must be one of {', '.join(CANONICAL)}")
    pattern = _pattern(where, "path", rule["path"], prefix)
    if not isinstance(rule["axes"], str):
        raise UserError(f"{where}: axes={rule['axes']!r:.80} must be text such as 'D H C'")
    if len({leaf.startswith("layers/") for leaf in to}) > 1:
        raise UserError(f"{where}: to has parameters of layers and others; use two rules")
    if "layer" in pattern.groupindex and not to[0].startswith("layers/"):
        raise UserError(f"{where}: path has a group 'layer', but {to[0]} is not of a layer")
    try:
        layout = Layout.parse(rule["axes"], tuple(to))
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return Rule(pattern, tuple(to), layout)


def _pattern(where: str, key: str, text, prefix: str = "") -> re.Pattern:
    try:
        pattern = re.compile(f"{prefix}(?:{text})" if prefix else text)
    except (TypeError, re.error, RecursionError, OverflowError) as error:
        raise UserError(
            f"{where}: {key}={text!r:.120} is not a regular expression: {first_line(error)}"
        ) from None
    return pattern


def _facts(where: str, given: dict) -> dict:
    """The facts with their defaults, checked."""
    _known(where, "model.", given, FACTS)
    _represented(where, given)
    missing = [name for name in REQUIRED if name not in given]
    if missing:
        raise UserError(
            f"{where} does not state model.{', model.'.join(missing)}, which no array shows; add it "
            "to the map, or use --set"
        )
    for name, value in given.items():
        if name in WHOLE:
            least = 0 if name == "sliding_window" else 1
            if type(value) is not int or not least <= value < 2**31:
                raise UserError(
                    f"{where}: model.{name}={value!r:.80} must be a whole number of at least {least}"
                )
        elif name in POSITIVE and not (_is_number(value) and value > 0):
            raise UserError(f"{where}: model.{name}={value!r:.80} must be a positive number")
        elif name == "norm_offset" and not _is_number(value):
            raise UserError(f"{where}: model.{name}={value!r:.80} must be a number")
        elif name in SCALES:
            scale(where, name, value)
        elif name in TEXTS and not isinstance(value, str):
            raise UserError(f"{where}: model.{name}={value!r:.80} must be text")
    return {**OPTIONAL, **given}


def _represented(where: str, given: dict) -> None:
    """Raises UserError that names all facts of a model that has no counterpart here."""
    wrong = {}
    for name, allowed in ONLY.items():
        allowed = (allowed,) if isinstance(allowed, str) else allowed
        if given.get(name, allowed[0]) not in allowed:
            wrong[name] = allowed
    wrong |= {name: (0,) for name in CAPS if given.get(name, 0) != 0}
    if wrong:
        has = ", ".join(f"{name}={given[name]!r:.40}" for name in wrong)
        only = ", ".join(
            f"{name}={' or '.join(map(repr, values))}" for name, values in wrong.items()
        )
        raise UserError(
            f"{where} is of a model with {has}; a model here has {only}, so it cannot be imported"
        )


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_SCALE = re.compile(r"(1/)?(sqrt\()?([DFHKC]|\d+(?:\.\d*)?(?:e-?\d+)?)(?(2)\))")


def scale(where: str, name: str, value, sizes: dict[str, int] | None = None) -> float:
    """The value of a factor: a number, or a text such as "1/sqrt(C)" of a size or a number.

    Args:
      sizes: by the names of axes; not needed to check the text.
    """
    found = None if isinstance(value, bool) else _SCALE.fullmatch(str(value))
    number = 0.0
    if found and found[3] in LETTERS:
        number = float(sizes[found[3]]) if sizes else 1.0
    elif found:
        number = float(found[3])
    if not 0 < number < math.inf:
        raise UserError(
            f"{where}: model.{name}={value!r:.80} must be a positive number, or a text such as "
            "'sqrt(D)' or '1/sqrt(C)' of a size"
        )
    number = math.sqrt(number) if found[2] else number
    return 1 / number if found[1] else number
