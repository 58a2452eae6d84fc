"""How an answer is scored: F1 over words, exact match of numbers.

The functions that the harness calls take one document and [what the model said], and give
{metric: value}. Of what was said the first line counts.

Math word problems are scored by the number that the model generates after five answered problems,
all six sets alike. The harness has ASDiv only, and scores it by whether the gold answer is the
likeliest continuation token by token: where a tokenizer cuts numbers into digits that takes 12 for
1, and it allows one way of writing only (0.5, but not .50). What follows the number does not count,
so a unit does no harm. Where the answer is no number, which is so for 6% of ASDiv ("Mrs. Hilt",
"12:50", "3:5"), the line has to be the answer.
"""

import collections
import re
import string

from loopjax.evals import answers as gold

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|-?\.\d+")
CLOSE = 1e-3  # decimals such as 0.667 for two thirds


def words(text: str) -> list[str]:
    """The words that SQuAD compares: lower case, without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def f1(said: str, gold: str) -> float:
    """The harmonic mean of precision and recall of the words, as bags. Nothing matches nothing."""
    said, gold = words(said), words(gold)
    if not said or not gold:
        return float(said == gold)
    common = sum((collections.Counter(said) & collections.Counter(gold)).values())
    return 2 * common / (len(said) + len(gold))


def number(text: str) -> float | None:
    """The first number in a text, or None."""
    match = _NUMBER.search(text)
    return float(match[0].replace(",", "")) if match else None


def same_number(said: str, gold: str) -> bool:
    """Whether the first number said is the gold one; whether the texts agree if that is none."""
    if not _NUMBER.fullmatch(gold):
        return said.lower().strip(" .") == gold.lower().strip(" .")
    first = number(said)
    return first is not None and abs(first - number(gold)) < CLOSE


def _line(results: list[str]) -> str:
    return results[0].strip().split("\n")[0]


def _best(said: str, golds: list[str]) -> dict[str, float]:
    """The scores against the gold answer that fits best."""
    return {
        "f1": max(f1(said, gold) for gold in golds),
        "exact_match": max(float(words(said) == words(gold)) for gold in golds),
    }


def nq_open(doc: dict, results: list[str]) -> dict[str, float]:
    return _best(_line(results), doc["answer"])


def triviaqa(doc: dict, results: list[str]) -> dict[str, float]:
    return _best(_line(results), gold.triviaqa(doc))


def answers(doc: dict, results: list[str]) -> dict[str, float]:
    """WebQuestions, QuAC."""
    return _best(_line(results), doc["answers"])


def squad(doc: dict, results: list[str]) -> dict[str, float]:
    """SQuAD, TyDi QA."""
    return _best(_line(results), gold.squad(doc))


def coqa(doc: dict, results: list[str]) -> dict[str, float]:
    """The mean over the annotators of the best score against the others, as the harness has it."""
    said, golds = _line(results), gold.coqa(doc)
    others = [golds[:i] + golds[i + 1 :] for i in range(len(golds))] if golds[1:] else [golds]
    scores = [_best(said, some) for some in others]
    return {metric: sum(s[metric] for s in scores) / len(scores) for metric in scores[0]}


def math_word_problem(doc: dict, results: list[str]) -> dict[str, float]:
    """SVAMP, ASDiv, MAWPS."""
    return {"exact_match": float(same_number(_line(results), gold.math_answer(doc)))}
