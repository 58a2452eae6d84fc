"""Synthetic tasks by name, and those that are text: copying, variable assignment."""

import dataclasses
import functools
import itertools
import re

import numpy as np

from loopjax.data.addition import Addition
from loopjax.data.hops import Chain, HopText, PHop, Sanford, hop_question
from loopjax.data.igsm import IGSM
from loopjax.data.instances import LENGTH, draw
from loopjax.errors import UserError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = (  # common short words, about one token each
    "the and you that was for are with his they one have this from had hot but some what there "
    "out other were all your when use word how said each she which their time will way about many "
    "then them would write like these her long make thing see him two has look more day could come "
    "did sound most number who over know water than call first people may down side been now find "
    "any new work part take get place made live where after back little only round man year came "
    "show every good give our under name very through just form great think say help low line turn "
    "cause much mean before move right boy old too same tell does set three want air well also play "
    "small end put home read hand port large spell add even land here must big high such follow act "
    "why ask men change went light kind off need house picture try again animal point mother world "
    "near build self earth father head stand own page should country found answer school grow study "
    "still learn plant cover food sun four state keep eye never last let thought city tree cross "
    "farm hard start might story saw far sea draw left late run while press close night real life "
    "few north open seem next white walk ease both mark often letter until mile river car feet care"
).split()


@dataclasses.dataclass(frozen=True)
class Item:
    """A question with a closed set of answers; the answer follows the prompt after a space, if any."""

    prompt: str
    answer: str
    options: tuple[str, ...]
    space: str = " "

    @property
    def completion(self) -> str:
        return self.space + self.answer


def copying(rng: np.random.Generator, words: str) -> Item:
    """Ten words, five of them again, and the word that followed those ("random" or "real")."""
    if words == "real":
        chosen = [WORDS[i] for i in rng.choice(len(WORDS), 10, replace=False)]
    else:
        numbers = rng.choice(26**3, 10, replace=False)
        chosen = ["".join(LETTERS[n // 26**k % 26] for k in range(3)) for n in numbers.tolist()]
    start = int(rng.integers(0, 5))
    text = " ".join([*chosen, *chosen[start : start + 5]])
    prompt = f"Fill in the blank:\n\n{text} ___. ->"
    return Item(prompt, chosen[start + 5], tuple(chosen))


_TEMPLATES = {
    "basic": ("Fill in blank:\n\n{lines}\n{query}=___. ->", "{}={}"),
    "math": (
        "The following is a set of simple mathematical equations.\n\n{lines}\n"
        "What is the numerical value of {query}?\nAnswer:",
        "{}={}",
    ),
    "code": (
        "The following is a very short Python program. Use the program to resolve the value of "
        "the variable in the question.\nProgram:\n{lines}\n\nQuestion:\n"
        "What is the value of {query}?\nAnswer:",
        "{} = {}",
    ),
}


def variable_assignment(rng: np.random.Generator, style: str, depth: int) -> Item:
    """Five variables with values, `depth` times five that refer to those before; one is asked."""
    template, line = _TEMPLATES[style]
    names = [LETTERS[i] for i in rng.choice(26, 5 * (depth + 1), replace=False)]
    values = [str(v + 1) for v in rng.choice(25, 5, replace=False).tolist()]
    value_of = dict(zip(names[:5], values, strict=True))
    lines = [line.format(name, value_of[name]) for name in names[:5]]
    for level in range(1, depth + 1):
        before, here = names[5 * level - 5 : 5 * level], names[5 * level : 5 * level + 5]
        for name, i in zip(here, rng.permutation(5).tolist(), strict=True):
            value_of[name] = value_of[before[i]]
            lines.append(line.format(name, before[i]))
    query = names[5 * depth + int(rng.integers(0, 5))]
    prompt = template.format(lines="\n".join(lines), query=query)
    return Item(prompt, value_of[query], tuple(values))


class Items:
    """Items of a text task, as many as fit into T tokens; only answers are targets."""

    finite = False

    def __init__(self, name: str, make, split: str, seq_len: int, seed: int, tokenizer):
        self.make, self.split, self.seq_len, self.seed = make, split, seq_len, seed
        self.codec = tokenizer
        self.tokenizer, self.vocab_size = tokenizer.name, tokenizer.vocab_size
        self.fingerprint = {"task": name, "version": 1, "seed": seed, "tokenizer": tokenizer.name}
        longest = max(sum(map(len, self._encoded(i, 0))) for i in range(20)) + 2
        if longest > seq_len:
            raise UserError(
                f"config.seq_len={seq_len} is too short for {name}: items take {longest}"
            )

    def __len__(self) -> int:
        return LENGTH // 1024

    def _encoded(self, index: int, nth: int) -> list[list[int]]:
        def make(rng):
            item = self.make(rng)
            return item.prompt.encode(), item

        item = draw(make, self.split, self.seed, index * 1024 + nth)
        prompt = ("\n\n" if nth else "") + item.prompt
        return [ids.tolist() for ids in self.codec.encode_batch([prompt, item.completion])]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        tokens, scored = [self.codec.eos_id], [False]
        for nth in range(1024):
            prompt, answer = self._encoded(index, nth)
            if len(tokens) + len(prompt) + len(answer) > self.seq_len + 1:
                break
            tokens += prompt + answer
            scored += [False] * len(prompt) + [True] * len(answer)
        padding = self.seq_len + 1 - len(tokens)
        tokens = np.array(tokens + [self.codec.eos_id] * padding, np.int32)
        scored = np.array(scored + [False] * padding)
        return {"inputs": tokens[:-1], "targets": np.where(scored, tokens, -1)[1:]}


# Where a name has numbers, the source is made of these.
_NUMBERED = {
    re.compile(r"addition_(\d+)"): Addition,
    re.compile(r"hops_(\d+)x(\d+)"): Chain,
    re.compile(r"igsm_(\d+)"): IGSM,
    re.compile(r"p_hop_(\d+)"): PHop,
    re.compile(r"hop_text_(\d+)"): HopText,
    re.compile(r"sanford_(\d+)"): Sanford,
}
_PRIMITIVE = re.compile(r"copying_(random|real)|var_assign_(basic|math|code)_([0-4])")
NAMES = (
    "p_hop_<1..32>, hop_text_<1..9>, hops_<1..32>x<letters>, sanford_<0..16>, addition_<2..32>, igsm_<1..21>, "
    "copying_<random|real>, var_assign_<basic|math|code>_<0..4>"
)


def is_primitive(name: str) -> bool:
    """Whether a name is that of a reasoning primitive."""
    return bool(_PRIMITIVE.fullmatch(name))


def has_items(name: str) -> bool:
    """Whether `items` knows the name: a primitive's, or that of p-hop induction as text."""
    return is_primitive(name) or bool(re.fullmatch(r"hop_text_[1-9]", name))


def primitive(name: str, rng: np.random.Generator) -> Item:
    """An item of the reasoning primitive of this name, or of p-hop induction as text."""
    if name.startswith("hop_text_"):
        prompt, answer = hop_question(rng, int(name.removeprefix("hop_text_")))
        return Item(prompt, answer, tuple("abcd"), space="")
    words, style, depth = _PRIMITIVE.fullmatch(name).groups()
    return copying(rng, words) if words else variable_assignment(rng, style, int(depth))


def items(name: str, split: str, seed: int, count: int) -> list[Item]:
    """The first `count` different items of a primitive in a split."""

    def make(rng):
        item = primitive(name, rng)
        return item.prompt.encode(), item

    found: dict[str, Item] = {}
    for index in itertools.count():
        item = draw(make, split, seed, index)
        found.setdefault(item.prompt, item)
        if len(found) == count:
            return list(found.values())


def open_synthetic(name: str, split: str, seq_len: int, seed: int, codec):
    """The synthetic source of this name, or None; `codec()` gives the tokenizer of text."""
    for pattern, source in _NUMBERED.items():
        if numbers := pattern.fullmatch(name):
            return source(*map(int, numbers.groups()), split, seq_len, seed)
    if is_primitive(name):
        return Items(name, functools.partial(primitive, name), split, seq_len, seed, codec())
    return None
