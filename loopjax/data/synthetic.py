"""Synthetic tasks, generated on demand: p-hop induction, copying, variable assignment.

An instance is a pure function of (seed, split, index). Whether it may be used for training or is
held out is decided by a hash of its content, so the two never overlap, whatever the index.
"""

import dataclasses
import re
import zlib

import numpy as np

from loopjax.errors import UserError

LENGTH = 2**31 - 1  # of a source that never repeats
HELDOUT_EVERY = 16  # one instance in 16 is held out
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


def instance_rng(seed: int, split: str, index: int, attempt: int) -> np.random.Generator:
    """A generator of its own for every instance; the stream of Philox is stable across releases."""
    lane = {"train": 0, "heldout": 1}[split]
    key = (seed % 2**32) << 32 | lane << 24 | attempt
    return np.random.Generator(np.random.Philox(key=[key, index]))


def draw(make, split: str, seed: int, index: int):
    """The first instance of `make(rng)` that lies in the split; `make` may give None to redraw.

    `make` returns (content as bytes, instance).
    """
    for attempt in range(2**20):
        made = make(instance_rng(seed, split, index, attempt))
        if made and (zlib.crc32(made[0]) % HELDOUT_EVERY == 0) == (split == "heldout"):
            return made[1]
    raise RuntimeError("no instance found; the generator gives too few different ones")


def hop_pointers(letters: np.ndarray) -> np.ndarray:
    """find_1 of p-hop induction for every position, int [n + 1] with 1-based positions.

    find_1(v, i) = max({0} or {j <= i : v_{j-1} = v_i}): the position behind the last earlier
    occurrence of the letter at i, 0 where there is none (Saunshi et al. 2025, section 2.1).
    """
    pointers, behind_last = [0], {}
    for i, letter in enumerate(letters.tolist(), 1):
        pointers.append(behind_last.get(letter, 0))
        behind_last[letter] = i + 1
    return np.array(pointers)


def p_hop(letters: np.ndarray, p: int) -> np.ndarray:
    """The letter p hops back from every position, -1 where the hop does not exist. int [n]."""
    pointers = hop_pointers(letters)
    position = np.arange(len(letters) + 1)
    for _ in range(p):
        position = pointers[position]
    reached = position[1:]
    return np.where(reached > 0, letters[reached - 1], -1)


class PHop:
    """p-hop induction: a token for p, then uniform letters; the target at each is its p-hop.

    In training every position whose hop exists is a target. Held-out instances have a hop at the
    last position and only that one is scored.
    """

    finite = False
    tokenizer = "symbols"
    alphabet = 4
    max_hops = 32
    vocab_size = alphabet + max_hops

    def __init__(self, p: int, split: str, seq_len: int, seed: int):
        if not 1 <= p <= self.max_hops:
            raise UserError(f"source p_hop_{p}: the number of hops must lie within 1..32")
        if seq_len < 3:
            raise UserError(f"config.seq_len={seq_len} must be at least 3 for p_hop_{p}")
        self.p, self.split, self.seq_len, self.seed = p, split, seq_len, seed
        self.fingerprint = {"task": "p_hop", "version": 1, "p": p, "seed": seed}

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return draw(self._make, self.split, self.seed, index)

    def _make(self, rng):
        letters = rng.integers(0, self.alphabet, self.seq_len - 1)
        answers = p_hop(letters, self.p)
        if self.split == "heldout":
            if answers[-1] < 0:
                return None
            answers[:-1] = -1
        inputs = np.concatenate([[self.alphabet + self.p - 1], letters]).astype(np.int32)
        targets = np.concatenate([[-1], answers]).astype(np.int32)
        return inputs.tobytes(), {"inputs": inputs, "targets": targets}


@dataclasses.dataclass(frozen=True)
class Item:
    """A question with a closed set of answers; the answer follows the prompt after a space."""

    prompt: str
    answer: str
    options: tuple[str, ...]


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
        return [ids.tolist() for ids in self.codec.encode_batch([prompt, " " + item.answer])]

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


_NAMES = re.compile(r"p_hop_(\d+)|copying_(random|real)|var_assign_(basic|math|code)_([012])")
NAMES = "p_hop_<1..32>, copying_<random|real>, var_assign_<basic|math|code>_<0|1|2>"


def open_synthetic(name: str, split: str, seq_len: int, seed: int, tokenizer):
    """The synthetic source of this name, or None."""
    match = _NAMES.fullmatch(name)
    if not match:
        return None
    p, words, style, depth = match.groups()
    if p:
        return PHop(int(p), split, seq_len, seed)
    if words:
        return Items(name, lambda rng: copying(rng, words), split, seq_len, seed, tokenizer)

    def make(rng):
        return variable_assignment(rng, style, int(depth))

    return Items(name, make, split, seq_len, seed, tokenizer)
