"""Evaluation documents from local files: public files as published, and JSON lines.

A reader returns the documents of a file with the fields of the hub's dataset that the task uses. A
task's documents are read from `<task>.jsonl` (those fields, one object per line) if it exists, else
from the first public file in the order of its row below; all may be gzipped. Shots come from
`<task>.fewshot.jsonl`, else from the public training file, else from the documents themselves.
"""

import dataclasses
import fnmatch
import gzip
import itertools
import json
import pathlib
import re
import xml.etree.ElementTree
import zlib
from collections.abc import Callable

from loopjax import paths
from loopjax.errors import UserError, first_line

_UNREADABLE = (
    OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError, IndexError,
    xml.etree.ElementTree.ParseError,
)  # fmt: skip


def _open(path: pathlib.Path):
    return (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8")


def _rows(path: pathlib.Path) -> list[dict]:
    """Documents of a file with one JSON object per line."""
    with _open(path) as file:
        return [json.loads(line) for line in file if line.strip()]


def _json(path: pathlib.Path):
    with _open(path) as file:
        return json.load(file)


def _asdiv(path):
    """Documents of the XML file of ASDiv."""
    with _open(path) as file:
        problems = xml.etree.ElementTree.parse(file).getroot().iter("Problem")
        tags = ("Body", "Question", "Solution-Type", "Answer", "Formula")
        return [
            {tag.lower().replace("-", "_"): problem.find(tag).text for tag in tags}
            for problem in problems
        ]


def _lambada(path):
    """Rows with `text`, or with the text and its last word as two fields."""
    return [
        row if "text" in row else {"text": f"{row['context']} {row['continuation']}"}
        for row in _rows(path)
    ]


def _hellaswag(path):
    """The original rows, or rows with the two parts of the context joined.

    If the joined context ends in the middle of a sentence, as a caption does, that unfinished
    sentence is the second part.
    """

    def parts(context):
        tail = re.search(r"(?<=[.!?\"')]) +[^.!?A-Z\s][^.!?]*$", context)
        start = tail.start() if tail else len(context)
        return {"ctx_a": context[:start], "ctx_b": context[start:].lstrip()}

    return [
        (row if "ctx_a" in row else row | parts(row["ctx"])) | {"label": str(row["label"])}
        for row in _rows(path)
    ]


def _triviaqa(path):
    """Rows of the hub, or a prompt ("Question: ...\\nAnswer:"), the answer and its aliases."""

    def document(row):
        question = re.fullmatch(r"Question: (.*)\nAnswer:", row["context"], re.S)[1]
        aliases = list(dict.fromkeys([row["answer"], *row["aliases"]]))
        return {"question": question, "answer": {"value": row["answer"], "aliases": aliases}}

    return [row if "question" in row else document(row) for row in _rows(path)]


def _webqs(path):
    return [{"question": row["qText"], "answers": row["answers"]} for row in _json(path)]


def _squad(path):
    """Documents in the format of SQuAD, also used by TyDi QA GoldP."""
    return [
        {
            "id": qa["id"],
            "title": article.get("title", ""),
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": {
                "text": [answer["text"] for answer in qa["answers"]],
                "answer_start": [answer["answer_start"] for answer in qa["answers"]],
            },
        }
        for article in _json(path)["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def _tydiqa(path):
    """The English documents of GoldP, or those derived from rows of the primary task."""
    if ".jsonl" not in path.name:
        return [document for document in _squad(path) if document["id"].startswith("english-")]
    rows = [row for row in _rows(path) if row["language"] == "english"]
    return [document for document in map(_gold_passage, rows) if document]


def _gold_passage(row: dict) -> dict | None:
    """The passage with the first minimal answer, and all minimal answers in it; None without answer.

    Positions in the row are in bytes.
    """

    def span(place):
        return place["plaintext_start_byte"], place["plaintext_end_byte"]

    answers = [a for a in row["annotations"] if span(a["minimal_answer"])[0] >= 0]
    if not answers:
        return None
    text = row["document_plaintext"].encode()
    passage = row["passage_answer_candidates"][answers[0]["passage_answer"]["candidate_index"]]
    first, last = span(passage)
    spans = [span(answer["minimal_answer"]) for answer in answers]
    spans = [(start, end) for start, end in spans if first <= start and end <= last]
    return {
        "id": f"{row['language']}-{row['example_id']}-0",
        "title": row["document_title"],
        "context": text[first:last].decode(),
        "question": row["question_text"],
        "answers": {
            "text": [text[start:end].decode() for start, end in spans],
            "answer_start": [len(text[first:start].decode()) for start, _ in spans],
        },
    }


def _drop(path):
    """The original file, or prompts ("Passage: ...\\nQuestion: ...\\nAnswer:") with their answers.

    Prompts do not separate the spans of an answer: each accepted answer counts as one span.
    """
    if ".jsonl" in path.name:
        return [_drop_prompt(number, row) for number, row in enumerate(_rows(path))]
    return [
        {
            "query_id": qa["query_id"],
            "passage": section["passage"],
            "question": qa["question"],
            "answer": _drop_answer(qa["answer"]),
            "validated_answers": _columns(
                [_drop_answer(a) for a in qa.get("validated_answers", [])], _drop_answer({})
            ),
        }
        for section in _json(path).values()
        for qa in section["qa_pairs"]
    ]


def _drop_prompt(number: int, row: dict) -> dict:
    prompt = r"Passage: (.*)\nQuestion: (.*)\nAnswer:"
    passage, question = re.fullmatch(prompt, row["context"], re.S).groups()
    answer, *others = [_drop_answer({"spans": [text]}) for text in row["ref_text"].split("|")]
    validated = _columns(others, answer)
    document = {"query_id": str(number), "passage": passage, "question": question}
    return document | {"answer": answer, "validated_answers": validated}


def _drop_answer(answer: dict) -> dict:
    date = {part: answer.get("date", {}).get(part, "") for part in ("day", "month", "year")}
    spans = list(answer.get("spans", []))
    return {"number": str(answer.get("number", "")), "date": date, "spans": spans}


def _columns(rows: list[dict], like: dict) -> dict[str, list]:
    """A list of objects as an object of lists, the form of the hub's datasets.

    Args:
      like: an object with the keys of every row.
    """
    return {key: [row[key] for row in rows] for key in like}


def _coqa(path):
    def turns(rows):
        return _columns(rows, {"input_text": "", "turn_id": 0})

    return [
        {
            "id": story["id"],
            "story": story["story"],
            "questions": turns(story["questions"]),
            "answers": turns(story["answers"]),
            "additional_answers": {
                annotator: turns(rows)
                for annotator, rows in story.get("additional_answers", {}).items()
            },
        }
        for story in _json(path)["data"]
    ]


def _quac(path):
    return [
        {
            "dialogue_id": paragraph["id"],
            "context": paragraph["context"],
            "questions": [qa["question"] for qa in paragraph["qas"]],
            "answers": {"texts": [[a["text"] for a in qa["answers"]] for qa in paragraph["qas"]]},
            "orig_answers": {"texts": [qa["orig_answer"]["text"] for qa in paragraph["qas"]]},
        }
        for article in _json(path)["data"]
        for paragraph in article["paragraphs"]
    ]


@dataclasses.dataclass(frozen=True)
class Source:
    """Public files of a task.

    Attributes:
      read: reader of one file.
      files: patterns of file names, without .gz; the first match is read.
      train: patterns of the files of shots.
      folder: name of a folder that the files must lie in; empty: any folder.
    """

    read: Callable[[pathlib.Path], list[dict]]
    files: tuple[str, ...]
    train: tuple[str, ...] = ()
    folder: str = ""


_TYDIQA = Source(
    _tydiqa,
    ("tydiqa-goldp-*dev.json", "tydiqa-*dev.jsonl", "tiny_dev.jsonl"),
    ("tydiqa-goldp-*train.json",),
)
SOURCES = {
    "triviaqa_f1": Source(_triviaqa, ("triviaqa*.jsonl",)),
    "tydiqa_nocontext_en": _TYDIQA,
    "nq_open_f1": Source(_rows, ("NQ-open.dev.jsonl",), ("NQ-open.train.jsonl",)),
    "webqs_f1": Source(_webqs, ("test.json",), ("train.json",), "web_questions"),
    "tydiqa_goldp_en": _TYDIQA,
    "squadv2_f1": Source(_squad, ("dev-v2.0*.json",), ("train-v2.0*.json",)),
    "drop": Source(_drop, ("drop_dataset_dev.json", "drop_v0_dev.jsonl"), ("drop_dataset_train.json",)),
    "quac_f1": Source(_quac, ("val_v0.2.json",), ("train_v0.2.json",)),
    "coqa_f1": Source(_coqa, ("coqa-dev-v1.0.json",), ("coqa-train-v1.0.json",)),
    "lambada_openai": Source(_lambada, ("lambada_openai.jsonl",)),
    "hellaswag": Source(_hellaswag, ("hellaswag_val.jsonl",), ("hellaswag_train.jsonl",)),
    "svamp": Source(_json, ("SVAMP.json",)),
    "asdiv_em": Source(_asdiv, ("ASDiv.xml",)),
    "mawps_addsub": Source(_rows, ("addsub.jsonl",)),
    "mawps_multiarith": Source(_rows, ("multiarith.jsonl",)),
    "mawps_singleop": Source(_rows, ("singleop.jsonl",)),
    "mawps_singleeq": Source(_rows, ("singleeq.jsonl",)),
    "gsm8k": Source(_rows, ("test.jsonl",), ("train.jsonl",), "gsm8k"),
}  # fmt: skip


class Files:
    """The files below a directory; raises UserError if it does not exist."""

    def __init__(self, data_dir):
        self.root = paths.local(data_dir, "--data-dir")
        if not self.root.is_dir():
            raise UserError(f"data_dir={str(data_dir)!r} is not a directory")
        self.paths = sorted(path for path in self.root.rglob("*") if path.is_file())

    def documents(self, task: str) -> list[dict]:
        """The documents of a task; raises UserError if its file is missing or unreadable."""
        source = SOURCES[task]
        own = f"{task}.jsonl"
        path = self._find([own]) or self._find(source.files, source.folder)
        if not path:
            names = " or ".join(dict.fromkeys([own, *source.files]))
            folder = f" in a folder {source.folder}" if source.folder else ""
            raise UserError(f"task {task}: {self.root} has no file {names}{folder}")
        public = own in source.files or path.name.removesuffix(".gz") != own
        return _read(task, source.read if public else _rows, path)

    def examples(self, task: str) -> list[dict] | None:
        """The documents that shots are drawn from; None if there is no file of them."""
        source = SOURCES[task]
        if path := self._find([f"{task}.fewshot.jsonl"]):
            return _read(task, _rows, path)
        path = self._find(source.train, source.folder)
        return _read(task, source.read, path) if path else None

    def _find(self, patterns, folder: str = "") -> pathlib.Path | None:
        """The first file that matches the first pattern with a match; None if there is none."""
        for pattern, path in itertools.product(patterns, self.paths):
            name = path.name.removesuffix(".gz")
            if not fnmatch.fnmatchcase(name, pattern):
                continue
            folders = (self.root.resolve().name, *path.relative_to(self.root).parts[:-1])
            examples = ".fewshot." in name and ".fewshot." not in pattern
            if not examples and (not folder or folder in folders):
                return path
        return None


def _read(task: str, read, path: pathlib.Path) -> list[dict]:
    try:
        documents = read(path)
    except _UNREADABLE as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"task {task}: {path} cannot be read as its documents: {reason}") from None
    if not documents:
        raise UserError(f"task {task}: {path} has no documents")
    return documents
