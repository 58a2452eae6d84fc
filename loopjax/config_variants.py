"""Variants of a config file: the text after the colon in `--config=configs/study.py:mini,lidas,math`.

Every file of `configs/` states the grammar of its variants in one line, for example
"[paper,]PLAN[,GROWTH]", and parses them here. GROWTH is any operator of `depth.GROWTH_OPERATORS`:
a new one is a variant of every config at once.
"""

import re

from loopjax.depth import GROWTH_OPERATORS
from loopjax.errors import UserError

# Whether the text is a valid plan is checked, like every plan, where config.depth is read.
_PATTERNS = {"PLAN": r"[1-9][0-9x-]*", "LAYERS": r"[1-9][0-9]*"}


def parse_variant(file: str, variant: str, grammar: str, **choices) -> dict[str, str]:
    """The parts of a variant: {"paper": "", "PLAN": "4x6", "GROWTH": ""}; "" for an absent part.

    Args:
      file: name of the config file, for messages.
      variant: text to parse.
      grammar: the parts in order. A word in lower case stands for itself, a word in upper case for
        one of its choices; a part in square brackets is optional.
      choices: {name: allowed texts}, in which LAYERS stands for a number of layers, PLAN for a
        depth plan and GROWTH for any growth operator ("loop-PLAN"). PLAN and GROWTH need no entry.

    Raises UserError that names the grammar and all choices.
    """
    choices = {"GROWTH": ("GROWTH",), **choices}
    allowed = {
        name: _without_growth(choices[name])
        for name in re.findall("[A-Z]+", grammar)
        if name in choices
    }

    def pattern_of(part: re.Match) -> str:
        if part[0] in "[]":
            return {"[": "(?:", "]": ")?"}[part[0]]
        alternatives = "|".join(map(_pattern, allowed.get(part[0], [part[0]])))
        return f"(?P<{part[0]}>{alternatives})"

    match = re.fullmatch(re.sub(r"\[|\]|[A-Za-z]+", pattern_of, grammar), variant)
    if match:
        return match.groupdict("")
    described = [f"{name}: {', '.join(texts)}" for name, texts in allowed.items()]
    if "PLAN" in str((grammar, allowed)):
        described.append("PLAN: a depth plan like 12, 4x3 or 2-2x4-2")
    raise UserError(f"variant {variant!r} of {file} must be {grammar} ({'; '.join(described)})")


def _without_growth(texts) -> list[str]:
    """The choices with the growth operators in the place of "GROWTH"."""
    return [name for text in texts for name in (GROWTH_OPERATORS if text == "GROWTH" else [text])]


def _pattern(choice: str) -> str:
    """The regular expression of one choice, such as "loop-PLAN"."""
    return re.sub("|".join(_PATTERNS), lambda name: _PATTERNS[name[0]], re.escape(choice))
