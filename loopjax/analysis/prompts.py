"""Prompt sets of the analyses: public problems, problems made here, or a file.

A prompt and its answer are one text, read in one pass; nothing is generated. What is taken of the
public sets, and in which order, is what Csordas et al. 2025 take, whose sets both papers use.

    gsm8k        the first 20 test problems, solved step by step
    math         intermediate algebra: 20 of each level 1..5, with the worked solution
    mquake       20 questions of each of 2, 3 and 4 hops, with the answer alone
    aqua         100 algebraic word problems with their rationale, where MATH is not to be had
    arithmetic   made here: 7 word problems of each of 2, 3 and 4 steps, with the worked solution
    chains       made here: 7 variable assignments of each of 2, 3 and 4 hops
    file:PATH    JSON lines with "text", or "prompt" and "answer"; and "group", if there are any
"""

import contextlib
import dataclasses
import difflib
import gzip
import json
import pathlib
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from loopjax.data.instances import instance_rng
from loopjax.errors import UserError, first_line, require
from loopjax.evals import primitives
from loopjax.evals.raw_files import Files

SHUFFLE = 42
SHORT_ANSWERS = ("mquake", "chains")  # sets whose answer is a word or a number alone
FILE = "file:"
SOLVE = "Solve the problem below and write down every step of the calculation."
FINAL = "The final answer is"
END = f'Close with the words "{FINAL}", followed by the number.'
# What a row that is not as it should be raises.
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A question and its answer, which follows it as it stands; "" where there is none.

    `group` is what results are broken down by: a level, a number of hops.
    """

    prompt: str
    answer: str = ""
    group: int | str | None = None

    @property
    def text(self) -> str:
        return self.prompt + self.answer


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Prompts in their order.

    Attributes:
      name: as `load` takes it.
      source: the files, the repository of the hub, or "built in".
      grouped_by: what a group is ("level", "hops", "steps"); "" where there are none.
      notes: what is not as the name promises, a sentence each.
    """

    name: str
    source: str
    prompts: tuple[Prompt, ...]
    grouped_by: str = ""
    notes: tuple[str, ...] = ()


class Tokens(NamedTuple):
    """A prompt as a model reads it; `answer_start` is t0, the first token of the answer."""

    ids: list[int]
    answer_start: int
    group: int | str | None


@dataclasses.dataclass(frozen=True)
class Source:
    """A public data set.

    Attributes:
      read: a row as a `Prompt`; None for a row that is not of the set.
      n: how many are taken, of each group if there are `groups`.
      files: the ends of paths, as patterns; the first that is there is read. Of "/*.json", a problem
        in each file, all are.
      hub: repository, subset, split.
      groups: the groups that there should be, and what a group is.
    """

    read: Callable[[dict], Prompt | None]
    n: int
    files: tuple[str, ...]
    hub: tuple[str, str | None, str]
    groups: tuple[int, ...] = ()
    grouped_by: str = ""


def _gsm8k(row: dict) -> Prompt:
    rationale, _, number = row["answer"].rpartition("####")
    prompt = f"{SOLVE}\nProblem: {row['question']}\n{END}\n\n"
    return Prompt(prompt, f"{rationale.strip()}\n{FINAL} {number.strip()}")


def _math(row: dict) -> Prompt | None:
    level = str(row["level"]).removeprefix("Level ")
    if row["type"] != "Intermediate Algebra" or not level.isdecimal():  # there is a "Level ?"
        return None
    return _answered(row["problem"], row["solution"], int(level))


def _mquake(row: dict) -> Prompt:
    return _answered(
        row["questions"][0], row["answer"], len(row["orig"]["triples"]), asked="Question"
    )


def _aqua(row: dict) -> Prompt:
    return _answered(f"{row['question']}\nOptions: {', '.join(row['options'])}", row["rationale"])


def _answered(question: str, answer: str, group=None, asked: str = "Problem") -> Prompt:
    return Prompt(f"{asked}: {question}\nAnswer:", f" {answer}", group)


SOURCES = {
    "gsm8k": Source(
        _gsm8k, 20, ("gsm8k/*test.jsonl", "gsm8k/*/*test.jsonl"), ("openai/gsm8k", "main", "test")
    ),
    "math": Source(
        _math, 20,
        ("test/intermediate_algebra/*.json", "intermediate_algebra/test.json*",
         "intermediate_algebra.json*", "math[_-]test.json*", "*math/test.json*"),
        ("EleutherAI/hendrycks_math", "intermediate_algebra", "test"), (1, 2, 3, 4, 5), "level",
    ),
    "mquake": Source(
        _mquake, 20, ("mquake*cf*3k*.json", "mquake-cf.json", "mquake*.json"),
        ("henryzhongsc/MQuAKE-Remastered", None, "CF3k"), (2, 3, 4), "hops",
    ),
    "aqua": Source(_aqua, 100, ("aqua/*test.jsonl",), ("deepmind/aqua_rat", "raw", "test")),
}  # fmt: skip
BUILT_IN = {"arithmetic": "steps", "chains": "hops"}
BUILT_IN_GROUPS, BUILT_IN_N = (2, 3, 4), 7


def names() -> list[str]:
    """The sets that there are, without file:PATH."""
    return [*SOURCES, *BUILT_IN]


def load(name: str, data_dir=None, n: int | None = None) -> PromptSet:
    """A set by name: from the files below `data_dir`, else from the Hugging Face hub.

    Args:
      n: how many prompts, of each group where there are groups; by default what the papers take,
        and all of a file.

    Raises UserError for a name, a file or a repository that is not there or is not readable.
    """
    if n is not None and n < 1:
        raise UserError(f"prompts {name}: n={n} must be at least 1")
    if name.startswith(FILE):
        return _from_file(name, n)
    if name in BUILT_IN:
        return _built_in(name, n or BUILT_IN_N)
    if name not in SOURCES:
        close = difflib.get_close_matches(name, names(), n=1)
        hint = (
            f"did you mean {close[0]}?" if close else f"there are {', '.join(names())}, file:PATH"
        )
        raise UserError(f"prompts {name!r} do not exist; {hint}")
    source = SOURCES[name]
    where, rows = _from_files(name, data_dir) if data_dir else _from_hub(name)
    with _told(f"prompts {name}: {where} does not have the fields that are used"):
        prompts = [prompt for prompt in map(source.read, rows) if prompt]
    prompts, notes = _chosen(prompts, source.groups, source.grouped_by, n or source.n)
    if not prompts:
        raise UserError(f"prompts {name}: {where} holds none")
    return PromptSet(name, where, prompts, source.grouped_by, notes)


def tokenize(prompt_set: PromptSet, tokenizer, context: int, say=print) -> list[Tokens]:
    """The prompts as token ids, cut at the right end where they are longer than `context`.

    The answer begins at t0 = T - A: T tokens of the whole, A of the answer tokenised alone, with
    its leading space; at most at the end of what is left. Without an answer it is that end.
    """
    out, gone = [], 0
    for one in prompt_set.prompts:
        ids = [int(i) for i in tokenizer.encode(one.text)]
        alone = len(tokenizer.encode_batch([one.answer])[0]) if one.answer else 0
        start = max(0, len(ids) - alone)
        gone += bool(one.answer) and start >= context
        out.append((len(ids), Tokens(ids[:context], min(start, context), one.group)))
    cut = sum(length > context for length, _ in out)
    if cut:
        lost = f", {gone} of them with their whole answer" if gone else ""
        say(
            f"prompts {prompt_set.name}: {cut} of {len(out)} are cut at the context of {context} "
            f"tokens{lost}"
        )
    return [tokens for _, tokens in out]


def _chosen(prompts, groups, grouped_by: str, n: int):
    """(the first n; or of each group n, shuffled, and what is missing of them)."""
    if not groups:
        return tuple(prompts[:n]), ()
    chosen, notes = [], []
    for group in groups:
        members = [prompt for prompt in prompts if prompt.group == group]
        random.Random(SHUFFLE).shuffle(members)
        chosen += members[:n]
        if len(members) < n:
            notes.append(f"{grouped_by} {group}: {len(members)} prompts, not {n}")
    return tuple(chosen), tuple(notes)


@contextlib.contextmanager
def _told(text: str):
    """Turns what rows of another form raise into one sentence."""
    try:
        yield
    except _UNREADABLE as error:
        raise UserError(f"{text} ({type(error).__name__}: {first_line(error)})") from None


def _from_files(name: str, data_dir) -> tuple[str, list[dict]]:
    """(where, rows) of the files below a directory."""
    files = Files(data_dir)
    top = files.root.resolve().name
    for pattern in SOURCES[name].files:
        found = [p for p in files.paths if _as_seen(top, p.relative_to(files.root)).match(pattern)]
        found = found if pattern.endswith("/*.json") else found[:1]
        if found:
            rows = [row for path in found for row in _rows(f"prompts {name}", path)]
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            return f"{found[0]}{more}", rows
    raise UserError(
        f"prompts {name}: no file {' or '.join(SOURCES[name].files)} is below {files.root}"
    )


def _as_seen(top: str, path: pathlib.Path) -> pathlib.PurePosixPath:
    """The path as patterns see it: with the directory's own name, in lower case, without .gz."""
    return pathlib.PurePosixPath(f"{top}/{path.as_posix()}".lower().removesuffix(".gz"))


def _rows(what: str, path: pathlib.Path) -> list[dict]:
    """JSON lines, a JSON list, or one object; gzipped or not."""
    with _told(f"{what}: {path} is not readable"):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            text = file.read()
        if ".jsonl" in path.name:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        found = json.loads(text)
        return found if isinstance(found, list) else [found]


def _from_hub(name: str) -> tuple[str, list[dict]]:
    """(where, rows) of a repository."""
    datasets = require("datasets", "data", f"downloading the prompts {name}")
    datasets.disable_progress_bars()
    repository, subset, split = SOURCES[name].hub
    try:
        return repository, list(datasets.load_dataset(repository, subset, split=split))
    except Exception as error:  # whatever the network or the hub may answer
        raise UserError(
            f"prompts {name}: the Hugging Face hub does not give {repository} "
            f"({type(error).__name__}: {first_line(error)}); name a data_dir, or take those made "
            f"here ({', '.join(BUILT_IN)})"
        ) from error


def _from_file(name: str, n: int | None) -> PromptSet:
    path = pathlib.Path(name.removeprefix(FILE))
    rows = _rows("prompts", path)[:n]
    with _told(f'prompts: the lines of {path} must have "text", or "prompt" and "answer"'):
        prompts = tuple(_of_user(row) for row in rows)
    if not prompts:
        raise UserError(f"prompts: {path} holds none")
    grouped_by = "group" if any(prompt.group is not None for prompt in prompts) else ""
    return PromptSet(name, str(path), prompts, grouped_by)


def _of_user(row: dict) -> Prompt:
    """The answer follows after a space, unless white space stands there already."""
    prompt, answer = (row["text"], "") if "text" in row else (row["prompt"], row["answer"])
    if not isinstance(prompt, str) or not isinstance(answer, str) or not prompt:
        raise ValueError("what is there is no text")
    spaced = not answer or prompt[-1].isspace() or answer[0].isspace()
    return Prompt(prompt, answer if spaced else f" {answer}", row.get("group"))


def _built_in(name: str, n: int) -> PromptSet:
    made = []
    for group in BUILT_IN_GROUPS:
        if name == "arithmetic":
            made += [arithmetic(group, index) for index in range(n)]
        else:
            # Held out, so that no training source holds one.
            items = primitives.items(f"var_assign_math_{group}", "heldout", primitives.SEED, n)
            made += [Prompt(item.prompt, f" {item.answer}", group) for item in items]
    return PromptSet(name, "built in", tuple(made), BUILT_IN[name])


_SCENES = (  # who, where, things, what they are kept in
    ("Maya", "a small bakery by the harbour", "rolls", "trays"),
    ("Jonas", "the town library", "books", "shelves"),
    ("Priya", "a garden behind the school", "seedlings", "boxes"),
    ("Tomas", "an old bicycle workshop", "bells", "drawers"),
    ("Aiko", "a stall at the weekly market", "lanterns", "baskets"),
    ("Samuel", "a museum of natural history", "shells", "cabinets"),
    ("Leila", "a paper mill near the river", "notebooks", "crates"),
)
_STEPS = {  # sentences of the problem, the line of the solution
    "+": (
        (
            "Then a neighbor comes by the gate and brings {k} more {things}.",
            "Some days later {who} finds {k} further {things} in the cellar and adds them.",
        ),
        "With {k} more {things} there are {x} + {k} = {y}.",
    ),
    "-": (
        (
            "One afternoon a group of visitors takes away {k} of the {things}.",
            "Then {k} of the {things} turn out to be broken and are thrown away.",
        ),
        "Without the {k} {things} that are gone there are {x} - {k} = {y}.",
    ),
    "*": (
        ("Within a good month the {things} become {k} times as many as they were.",),
        "Then {k} times as many {things} are {x} * {k} = {y}.",
    ),
    "/": (
        ("After that the {things} are divided into {k} equal parts, and {who} keeps one part.",),
        "One of {k} equal parts has {x} / {k} = {y} {things}.",
    ),
}


def arithmetic(steps: int, index: int) -> Prompt:
    """A word problem of so many steps of calculation, always the same one for an index."""
    rng = instance_rng(primitives.SEED, "heldout", steps << 32 | index, 0)
    who, where, things, kept = _pick(rng, _SCENES)
    boxes, each = int(rng.integers(3, 10)), int(rng.integers(4, 13))
    x = boxes * each
    asked = [
        f"{who} works at {where} and looks after the {things} there. On the first day there are "
        f"{boxes} {kept} with {each} {things} in each of them."
    ]
    solved = [f"At first there are {boxes} * {each} = {x} {things}."]
    for _ in range(steps - 1):
        sign, k = _next_step(rng, x)
        y = {"+": x + k, "-": x - k, "*": x * k, "/": x // k}[sign]
        sentences, line = _STEPS[sign]
        said = {"who": who, "things": things, "k": k, "x": x, "y": y}
        asked.append(_pick(rng, sentences).format(**said))
        solved.append(line.format(**said))
        x = y
    asked.append(f"How many {things} does {who} have in the end?")
    return _answered(" ".join(asked), f"{' '.join(solved)} {FINAL} {x}.", steps)


def _next_step(rng, x: int) -> tuple[str, int]:
    """A sign and a number with which x stays a whole number of moderate size."""
    signs = ["+"] + ["-"] * (x >= 10) + ["*"] * (x < 100)
    parts = [k for k in range(2, 7) if x % k == 0 and x > 2 * k]
    signs += ["/"] if parts else []
    sign = _pick(rng, signs)
    if sign == "/":
        return sign, _pick(rng, parts)
    low, high = {"+": (5, 60), "-": (3, x - 3), "*": (2, 5)}[sign]
    return sign, int(rng.integers(low, high))


def _pick(rng, choices: Sequence):
    return choices[int(rng.integers(0, len(choices)))]
