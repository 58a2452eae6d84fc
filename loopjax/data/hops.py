"""p-hop induction: follow p hops back through a string of four letters, in several layouts.

A hop goes from a letter to the position after its last earlier occurrence. `p_hop_<p>` has uniform
letters (reduced, for a CPU), `hop_text_<p>` is the same as text, `hops_<p>x<n>` is the task of
Saunshi et al. 2025 (section 2.1), and `sanford_<p>` the task of Sanford et al. 2024 (2402.09268).
"""

import numpy as np

from loopjax.data.instances import Instances, question
from loopjax.data.items import Item
from loopjax.data.tokenizers import ByteTokenizer
from loopjax.errors import UserError

ALPHABET = 4
FIRST_LETTER = ord("a")  # of the alphabet as text


def hop_pointers(letters: np.ndarray) -> np.ndarray:
    """find_1 of p-hop induction for every position, int [n + 1] with 1-based positions.

    find_1(v, i) = max({0} or {j <= i : v_{j-1} = v_i}): the position after the last earlier
    occurrence of the letter at i, 0 where there is none (Saunshi et al. 2025, section 2.1).
    """
    pointers = [0]
    after_last = {}
    for i, letter in enumerate(letters.tolist(), 1):
        pointers.append(after_last.get(letter, 0))
        after_last[letter] = i + 1
    return np.array(pointers)


def p_hop(letters: np.ndarray, p: int) -> np.ndarray:
    """The letter p hops back from every position, -1 where the hop does not exist. int [n]."""
    pointers = hop_pointers(letters)
    position = np.arange(len(letters) + 1)
    for _ in range(p):
        position = pointers[position]
    reached = position[1:]
    return np.where(reached > 0, letters[reached - 1], -1)


class PHop(Instances):
    """p-hop induction: a token for p, then uniform letters; the target at each is its p-hop.

    In training every position whose hop exists is a target. Held-out instances have a hop at the
    last position and only that one is scored.
    """

    tokenizer = "symbols"
    max_hops = 32
    vocab_size = ALPHABET + max_hops

    def __init__(self, p: int, split: str, seq_len: int, seed: int):
        if not 1 <= p <= self.max_hops:
            raise UserError(
                f"source p_hop_{p}: the number of hops must lie within 1..{self.max_hops}"
            )
        if seq_len < 3:
            raise UserError(f"config.seq_len={seq_len} must be at least 3 for p_hop_{p}")
        self.p = p
        super().__init__(split, seq_len, seed, task="p_hop", version=1, p=p)

    def make(self, rng):
        letters = rng.integers(0, ALPHABET, self.seq_len - 1)
        answers = p_hop(letters, self.p)
        if self.split == "heldout":
            if answers[-1] < 0:
                return None
            answers[:-1] = -1
        inputs = np.concatenate([[ALPHABET + self.p - 1], letters]).astype(np.int32)
        targets = np.concatenate([[-1], answers]).astype(np.int32)
        return inputs.tobytes(), {"inputs": inputs, "targets": targets}


class HopText(PHop):
    """`hop_text_<p>`: the same as text in bytes, "4abdacb...", to be mixed with other text."""

    tokenizer = ByteTokenizer.name
    vocab_size = ByteTokenizer.vocab_size
    max_hops = 9

    def make(self, rng):
        drawn = super().make(rng)
        if drawn is None:
            return None
        content, example = drawn
        inputs = example["inputs"] + FIRST_LETTER
        inputs[0] = ord(str(self.p))
        targets = np.where(example["targets"] < 0, -1, example["targets"] + FIRST_LETTER)
        return content, {"inputs": inputs, "targets": targets.astype(np.int32)}


def hop_item(rng: np.random.Generator, p: int, n: int = 48) -> Item:
    """A text of n letters whose last one has p hops; the answer is the letter where they end."""
    while True:
        letters = rng.integers(0, ALPHABET, n)
        answer = int(p_hop(letters, p)[-1])
        if answer >= 0:
            text = "".join(chr(FIRST_LETTER + letter) for letter in letters.tolist())
            return Item(f"{p}{text}", chr(FIRST_LETTER + answer), tuple("abcd"), space="")


class Chain(Instances):
    """`hops_<p>x<n>`: n letters that contain all p hops from the last; their end is the target.

    The places of the hops are drawn first, uniform among all at least two apart, then their
    letters, no two neighbors alike, then all other letters, which leave the hops as they are. A
    token for p stands before the letters, as in `p_hop_<p>`, so the two tasks can be mixed.
    """

    tokenizer = PHop.tokenizer
    vocab_size = PHop.vocab_size + 1
    padding = PHop.vocab_size

    def __init__(self, p: int, n: int, split: str, seq_len: int, seed: int):
        if not 1 <= p <= PHop.max_hops:
            raise UserError(f"source hops_{p}x{n}: the number of hops must lie within 1..32")
        if n < 2 * p + 2:
            raise UserError(f"source hops_{p}x{n}: {p} hops need at least {2 * p + 2} letters")
        if seq_len < n + 1:
            raise UserError(
                f"config.seq_len={seq_len} is too short for hops_{p}x{n}, which takes {n + 1} tokens"
            )
        self.p = p
        self.n = n
        super().__init__(split, seq_len, seed, task="hops", version=1, p=p, n=n)

    def make(self, rng):
        letters, answer = chain(rng, self.p, self.n)
        prompt = [ALPHABET + self.p - 1, *letters.tolist()]
        return letters.tobytes(), question(prompt, [answer], self.seq_len, self.padding)


def chain(rng: np.random.Generator, p: int, n: int) -> tuple[np.ndarray, int]:
    """n letters whose last one has p hops, int [n], and the letter where they end."""
    # Ascending, at least two apart: the hops end at places[0] and begin at places[p].
    places = np.sort(rng.choice(n - 2 - p, p, replace=False)) + np.arange(1, p + 1)
    places = np.append(places, n - 1)
    of_place = _walk(rng, p + 1)
    # The letter of a place does not occur between the previous place and this one.
    avoided = np.repeat(of_place, np.diff(places, prepend=0))
    letters = (np.append(avoided, 0) + rng.integers(1, ALPHABET, n)) % ALPHABET
    letters[: places[0]] = rng.integers(0, ALPHABET, places[0])
    letters[places] = of_place
    letters[places[:-1] - 1] = of_place[1:]
    return letters, int(of_place[0])


def _walk(rng: np.random.Generator, n: int) -> np.ndarray:
    """n uniform letters, no two neighbors alike, int [n]."""
    return np.cumsum(np.append(rng.integers(ALPHABET), rng.integers(1, ALPHABET, n - 1))) % ALPHABET


class Sanford(Instances):
    """`sanford_<p>`: a token for p, then T - 1 letters, no two neighbors alike (98 as published).

    The target at each is its p-hop, or a token for "no hop". In the held-out split only the
    positions whose hop exists are scored. The published mixture is uniform over p = 0..16.
    """

    tokenizer = "sanford"
    max_hops = 16
    none = ALPHABET
    vocab_size = ALPHABET + 1 + max_hops + 1

    def __init__(self, p: int, split: str, seq_len: int, seed: int):
        if not 0 <= p <= self.max_hops:
            raise UserError(f"source sanford_{p}: the number of hops must lie within 0..16")
        if seq_len < 3 * p + 3:  # if neighbors differ, at most 3 p + 1 letters have no p-hop
            raise UserError(
                f"config.seq_len={seq_len} is too short for sanford_{p}, which takes {3 * p + 3} tokens"
            )
        self.p = p
        super().__init__(split, seq_len, seed, task="sanford", version=1, p=p)

    def make(self, rng):
        letters = _walk(rng, self.seq_len - 1)
        answers = p_hop(letters, self.p)
        if self.split == "train":
            answers[answers < 0] = self.none
        inputs = np.concatenate([[ALPHABET + 1 + self.p], letters]).astype(np.int32)
        targets = np.concatenate([[-1], answers]).astype(np.int32)
        return inputs.tobytes(), {"inputs": inputs, "targets": targets}
