"""i-GSM, the symbolic form of Saunshi et al. 2025 (section 2.1): arithmetic modulo 7 along a graph.

    K#I := I#D. Q#G := 6 * F#Q + I#D. H#F := 3. F#Q := 4 * I#D. P#K := 4. I#D := 2. Q#G?   -> 4

`6 * a + b` is 6 (a + b). One token per letter, digit and sign; the answer is one digit.

The sampler is ours, after Ye et al. 2024 (2407.20311), to whom the paper refers:

1. Structure graph. Four levels of two to four entities each, named by different letters. Edges join
   neighboring levels and reach every entity; each edge is a parameter, `A#B`. There are up to five
   more edges than operations (and at least six, the smallest graph).
2. Dependency graph, from the asked parameter back. A parameter is a number 0..6 or the sum of one
   to three parameters, optionally times 2..6: uniform among the forms that still allow the number
   of operations to be met. The terms of a sum are new parameters or ones already needed. A
   statement takes as many operations as it has additions and multiplications, at least one.
3. The other edges are parameters that the answer does not need: with equal probability a number
   or a sum of parameters defined before.
4. Statements, and the terms of a sum, are shuffled.

Where the factors of every number cancel modulo 7, the answer would be 0 for all numbers: such
instances are drawn again, so the answer is uniform.
"""

import functools
import itertools
import string

from loopjax.data.instances import Instances, instance_rng, question
from loopjax.errors import UserError

MODULUS = 7
SYMBOLS = (*string.ascii_uppercase, *"0123456", "#", ":=", "*", "+", ".", "?", " ")
DIGIT = 26
EDGE, IS, TIMES, PLUS, STOP, ASKED, PADDING = range(DIGIT + MODULUS, len(SYMBOLS))
OPERATIONS = range(1, 22)  # up to the hardest training set of Ye et al.
LEVELS = 4
ENTITIES = (2, 3, 4)  # per level
SMALLEST = 6  # edges of four levels of two entities
SPARE_EDGES = 5
# (parameters of the sum, whether it is multiplied); the first is a number.
FORMS = ((0, False), *itertools.product((1, 2, 3), (False, True)))
FITTING = 0.5  # share of the instances that must be short enough


class IGSM(Instances):
    """`igsm_<operations>`: the value of one parameter; one target, after the question.

    Instances longer than T are left out; it is an error if more than half are longer.
    """

    tokenizer = "igsm"
    vocab_size = len(SYMBOLS)

    def __init__(self, operations: int, split: str, seq_len: int, seed: int):
        if operations not in OPERATIONS:
            raise UserError(
                f"source igsm_{operations}: the number of operations must lie within 1..21"
            )
        self.operations = operations
        super().__init__(split, seq_len, seed, task="igsm", version=1, operations=operations)
        lengths = [len(self._problem(instance_rng(0, "train", i, 0))[0]) for i in range(64)]
        median = sorted(lengths)[int(FITTING * len(lengths))]
        if median > seq_len:
            raise UserError(
                f"config.seq_len={seq_len} is too short for igsm_{operations}: half of its "
                f"instances take {median} tokens or more"
            )

    def make(self, rng):
        tokens, answer = self._problem(rng)
        if answer is None or len(tokens) > self.seq_len:
            return None
        row = question(tokens, [DIGIT + answer], self.seq_len, PADDING)
        return bytes(tokens), row

    def _problem(self, rng) -> tuple[list[int], int | None]:
        """(tokens of statements and question, answer or None if it depends on no number)."""
        pick = Pick(rng)
        least = max(SMALLEST, self.operations)
        n_edges = least + pick(max(self.operations + SPARE_EDGES, SMALLEST) - least + 1)
        names = pick.some(structure(pick, n_edges), n_edges)
        parameters = needed(pick, self.operations)
        depends = _depends(parameters)
        add_others(pick, parameters, n_edges)
        statements = []
        values = {}
        for i, (parents, factor, number) in parameters.items():
            values[i] = (factor * sum(values[p] for p in parents) + number) % MODULUS
            statements.append(_statement(i, parents, factor, number, names))
        statements = pick.some(statements, len(statements))
        tokens = [*itertools.chain(*statements), *_name(names[0]), ASKED]
        return tokens, values[0] if depends else None


class Pick:
    """Choices from one draw of random bits: a call of NumPy costs more than a choice."""

    def __init__(self, rng, size: int = 512):
        self.bits = iter(rng.integers(0, 2**32, size, dtype="uint32").tolist())

    def __call__(self, n: int) -> int:
        """One of 0..n-1."""
        return next(self.bits) * n >> 32

    def some(self, items, n: int) -> list:
        """n different items, in random order."""
        items = list(items)
        for i in range(n):
            j = i + self(len(items) - i)
            items[i], items[j] = items[j], items[i]
        return items[:n]


@functools.cache
def _sizes(n_edges: int) -> list[tuple[int, ...]]:
    """Numbers of entities per level with which a structure graph can have `n_edges` edges."""
    fitting = []
    for sizes in itertools.product(ENTITIES, repeat=LEVELS):
        pairs = list(itertools.pairwise(sizes))
        if sum(max(a, b) for a, b in pairs) <= n_edges <= sum(a * b for a, b in pairs):
            fitting.append(sizes)
    return fitting


def structure(pick: Pick, n_edges: int) -> list[tuple[int, int]]:
    """Edges (upper entity, lower entity), entities as numbers of letters."""
    sizes = _sizes(n_edges)
    sizes = sizes[pick(len(sizes))]
    letters = iter(pick.some(range(26), sum(sizes)))
    levels = [list(itertools.islice(letters, size)) for size in sizes]
    edges = []
    rest = []
    for upper, lower in itertools.pairwise(levels):
        n = max(len(upper), len(lower))
        # The letters are in random order, so this is a random cover of both sides.
        cover = {(upper[i % len(upper)], lower[i % len(lower)]) for i in range(n)}
        edges += sorted(cover)
        rest += [pair for pair in itertools.product(upper, lower) if pair not in cover]
    return edges + pick.some(rest, n_edges - len(edges))


def needed(pick: Pick, operations: int) -> dict[int, tuple]:
    """{parameter: (terms of its sum, factor, number)}, each after its terms.

    Parameter 0 is asked; every other parameter is needed for it, with `operations` in total.
    """
    parameters = {}
    known = 1  # parameters named so far, the asked one included
    spare = operations - 1  # every known parameter costs at least one operation
    while len(parameters) < known:
        i = len(parameters)
        waiting = known - i - 1  # known parameters without a statement, this one aside
        forms = [
            (n, factor)
            for n, factor in FORMS
            if (n <= waiting + spare - extra(n, factor)) and (n or waiting or not spare)
            and extra(n, factor) <= spare
        ]  # fmt: skip
        n, multiplied = forms[pick(len(forms))]
        spare -= extra(n, multiplied)
        fewest = max(0, n - waiting)
        most = min(n, spare)
        new = fewest + pick(most - fewest + 1)
        old = [i + 1 + j for j in pick.some(range(waiting), n - new)]
        parameters[i] = _parameter(pick, [*old, *range(known, known + new)], multiplied)
        known += new
        spare -= new
    return dict(reversed(parameters.items()))


def extra(n: int, multiplied: bool) -> int:
    """Operations of a statement beyond the first."""
    return max(1, n - 1 + multiplied) - 1


def add_others(pick: Pick, parameters: dict[int, tuple], total: int) -> None:
    """Adds parameters that the answer does not need, until there are `total`."""
    while len(parameters) < total:
        n, multiplied = FORMS[0] if pick(2) else FORMS[1 + pick(len(FORMS) - 1)]
        parents = pick.some(parameters, min(n, len(parameters)))
        parameters[len(parameters)] = _parameter(pick, parents, multiplied)


def _parameter(pick: Pick, parents: list[int], multiplied: bool) -> tuple:
    # The order of these draws is part of the data: changing it changes every instance.
    number = 0 if parents else pick(MODULUS)
    terms = pick.some(parents, len(parents))
    factor = 2 + pick(MODULUS - 2) if multiplied else 1
    return terms, factor, number


def _depends(parameters: dict[int, tuple]) -> bool:
    """Whether the answer depends on any number (it is linear in them)."""
    weights = dict.fromkeys(parameters, 0) | {0: 1}
    for i, (parents, factor, _) in reversed(parameters.items()):
        for parent in parents:
            weights[parent] += factor * weights[i]
    return any(weights[i] % MODULUS for i, (parents, *_) in parameters.items() if not parents)


def _name(edge: tuple[int, int]) -> tuple[int, int, int]:
    return edge[0], EDGE, edge[1]


def _statement(i: int, parents, factor: int, number: int, names) -> list[int]:
    tokens = [*_name(names[i]), IS]
    if not parents:
        return [*tokens, DIGIT + number, STOP]
    if factor > 1:
        tokens += [DIGIT + factor, TIMES]
    for parent in parents:
        tokens += [*_name(names[parent]), PLUS]
    tokens[-1] = STOP
    return tokens
