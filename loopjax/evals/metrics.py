"""Scores of generated answers: F1 over words, exact match of numbers.

The functions that the harness calls take one document and [generated text], and return
{metric: value}. Only the first line of the generated text counts.

Math word problems (all six sets) are scored by the number generated after five solved problems. The
harness has ASDiv only, and scores it by whether the gold answer is the greedy continuation: with a
tokenizer that splits numbers into digits, 12 is then accepted for 1, and only one notation is
accepted (0.5, but not .50). Text after the number is ignored, so units do no harm. If the gold
answer is not a number, as for 6% of ASDiv ("Mrs. Hilt", "12:50", "3:5"), the whole line must match.
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
    """Words as SQuAD compares them: lower case, without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def f1(prediction: str, gold: str) -> float:
    """Harmonic mean of precision and recall of the bags of words; 1 if both are empty."""
    predicted = words(prediction)
    accepted = words(gold)
    if not predicted or not accepted:
        return float(predicted == accepted)
    common = sum((collections.Counter(predicted) & collections.Counter(accepted)).values())
    return 2 * common / (len(predicted) + len(accepted))


def number(text: str) -> float | None:
    """The first number in a text, or None."""
    match = _NUMBER.search(text)
    return float(match[0].replace(",", "")) if match else None


def same_number(prediction: str, gold: str) -> bool:
    """Whether the first predicted number is the gold number, or the texts agree if gold is none."""
    if not _NUMBER.fullmatch(gold):
        return prediction.lower().strip(" .") == gold.lower().strip(" .")
    first = number(prediction)
    return first is not None and abs(first - number(gold)) < CLOSE


def _line(results: list[str]) -> str:
    return results[0].strip().split("\n")[0]


def _best(prediction: str, golds: list[str]) -> dict[str, float]:
    """The scores against the best-matching gold answer."""
    return {
        "f1": max(f1(prediction, gold) for gold in golds),
        "exact_match": max(float(words(prediction) == words(gold)) for gold in golds),
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
    """Mean over annotators of the best score against the other annotators, as in the harness."""
    prediction = _line(results)
    golds = gold.coqa(doc)
    others = [golds[:i] + golds[i + 1 :] for i in range(len(golds))] if golds[1:] else [golds]
    scores = [_best(prediction, some) for some in others]
    return {metric: sum(s[metric] for s in scores) / len(scores) for metric in scores[0]}


def math_word_problem(doc: dict, results: list[str]) -> dict[str, float]:
    """SVAMP, ASDiv, MAWPS."""
    return {"exact_match": float(same_number(_line(results), gold.math_answer(doc)))}
