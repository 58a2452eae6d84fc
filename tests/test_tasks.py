"""Evaluation tasks: prompts, scoring of answers, sources of documents."""

import gzip
import importlib
import json
import pathlib
import re
import subprocess
import sys
import types

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.model import LM

from loopjax.data import registry
from loopjax.errors import UserError
from loopjax.evals import answers, metrics, raw_files, suite

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
GENERATED = [n for n in raw_files.SOURCES if n not in ("hellaswag", "lambada_openai")]
NUMBERS = range(2, 9)


def squad(name):
    def asked(i):
        texts = [] if i == 3 and name == "dev" else [f"Port {i}", f"the port of {i}"]
        answers = [{"text": text, "answer_start": 0} for text in texts]
        return {"id": f"english-{i}", "question": f"Where is ship {i}?", "answers": answers}

    paragraph = {"context": "Ships lie in ports. " * 3, "qas": [asked(i) for i in NUMBERS]}
    return {"data": [{"title": "Ships", "paragraphs": [paragraph]}]}


def drop_answer(**said):
    return {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": [], **said}


DROP = {
    "section": {
        "passage": "Ann had four boats, Bob one.",
        "qa_pairs": [
            {"query_id": "a", "question": "How many had both?", "answer": drop_answer(number="5"),
             "validated_answers": [drop_answer(spans=["five"])]},
            {"query_id": "b", "question": "Who had boats?", "answer": drop_answer(spans=["Ann", "Bob"])},
            {"query_id": "c", "question": "When?", "answer": drop_answer(date={"month": "May", "year": "1902"}),
             "validated_answers": [drop_answer(number="", date={})]},
        ],
    }
}  # fmt: skip
TURNS = [("Who is it?", "Ann"), ("Where?", "in Rome"), ("Why?", "for the sea")]
COQA = {
    "id": "s", "story": "Ann went to Rome for the sea.",
    "questions": [{"input_text": q, "turn_id": i} for i, (q, _) in enumerate(TURNS, 1)],
    "answers": [{"input_text": a, "turn_id": i} for i, (_, a) in enumerate(TURNS, 1)],
    "additional_answers": {
        "0": [{"input_text": a, "turn_id": i} for i, (_, a) in enumerate(TURNS, 1)],
        "1": [{"input_text": f"{a} ", "turn_id": i} for i, (_, a) in enumerate(TURNS, 1)],
    },
}  # fmt: skip
QUAC = {
    "id": "d", "context": "Ann went to Rome for the sea. CANNOTANSWER",
    "qas": [
        {"question": q, "orig_answer": {"text": a}, "answers": [{"text": a}, {"text": "CANNOTANSWER"}, {"text": f"the {a}"}]}
        for q, a in TURNS
    ],
}  # fmt: skip
PUBLIC = {
    "triviaqa_sub.jsonl": [{"context": f"Question: What is {i}?\nAnswer:", "answer": f"No {i}", "aliases": [f"{i}"]} for i in NUMBERS],
    "NQ-open.dev.jsonl": [{"question": f"what is {i}", "answer": [f"No {i}", f"{i}"]} for i in NUMBERS[:3]],
    "web_questions/test.json": [{"qId": str(i), "qText": f"what is {i}?", "answers": [f"a {i}"]} for i in NUMBERS],
    "other/test.json": [],
    "tydiqa-goldp-v1.1-dev.json": squad("goldp"),
    "dev-v2.0.json": squad("dev"),
    "drop_dataset_dev.json": DROP,
    "coqa-dev-v1.0.json": {"data": [COQA]},
    "val_v0.2.json": {"data": [{"paragraphs": [QUAC]}]},
    "lambada_openai.jsonl": [{"context": "She looked at the", "continuation": "sea"}],
    "hellaswag_val.jsonl": [{"activity_label": "Sailing", "ctx": "Two men sail. the boat", "endings": ["sinks.", "flies.", "sings.", "eats."], "label": 1}],
    "SVAMP.json": [{"ID": str(i), "Body": f"Ann has {i} boats", "Question": "How many?", "Equation": f"{i}", "Answer": float(i), "Type": "-"} for i in NUMBERS],
    **{f"{name}.jsonl": [{"input": f"Ann has {i}.5 {name}. How many?", "target": i + 0.5} for i in NUMBERS] for name in ("addsub", "multiarith", "singleop", "singleeq")},
    "gsm8k/test.jsonl": [{"question": f"What is {i}?", "answer": f"It is {i}.\n#### {i}"} for i in NUMBERS],
    "gsm8k/train.jsonl": [{"question": f"Train: {i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(90, 96)],
}  # fmt: skip
ASDIV = "<P><ProblemSet>{}</ProblemSet></P>".format(
    "".join(
        f"<Problem><Body>Ann has {i} boats.</Body><Question>How many?</Question><Solution-Type>-"
        f"</Solution-Type><Answer>{i} (boats)</Answer><Formula>{i}</Formula></Problem>"
        for i in NUMBERS
    )
)


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A directory with a small file of every public format."""
    root = tmp_path_factory.mktemp("public")
    for name, content in PUBLIC.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        lines = (
            [json.dumps(row) for row in content]
            if name.endswith("jsonl")
            else [json.dumps(content)]
        )
        path.write_text("\n".join(lines))
    (root / "ASDiv.xml").write_text(ASDIV)
    return root


class Model(LM):
    """A model that answers `say(task, document)`, and prefers that continuation."""

    def __init__(self, tasks, say):
        super().__init__()
        self.tasks, self.say = tasks, say

    def generate_until(self, requests):
        return [self.say(self.tasks[r.task_name], r.doc) for r in requests]

    def loglikelihood(self, requests):
        said = [
            r.args[1].strip() == s.strip()
            for r, s in zip(requests, self.generate_until(requests), strict=True)
        ]
        return [
            (0.0, True) if is_said else (-9.0 * len(r.args[1]), False)
            for r, is_said in zip(requests, said, strict=True)
        ]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


def gold(task, document) -> str:
    """The right answer, as the task writes it in a shot."""
    if task.task_name == "drop":  # its own doc_to_target names a field that it does not have
        return ", ".join(document["answers"][0])
    target = task.doc_to_target(document)
    if isinstance(target, int):
        target = task.doc_to_choice(document)[target]
    return f" {target[0] if isinstance(target, list) else target}"


def evaluate(loaded, say, limit=None, **kwargs):
    from lm_eval.evaluator import evaluate

    return evaluate(
        Model(loaded["tasks"], say), loaded, limit=limit, **({"bootstrap_iters": 0} | kwargs)
    )


def prompts(loaded, limit=None) -> dict[str, list]:
    """The prompts of each task."""
    for task in loaded["tasks"].values():
        task.build_all_requests(limit=limit)
    return {name: [r.args for r in task.instances] for name, task in loaded["tasks"].items()}


def headline(results) -> dict[str, float]:
    """The paper's metric of every task and group."""
    score = {}
    for name, row in results["results"].items():
        for metric in ("f1,none", "exact_match,none", "exact_match,flexible-extract", "acc,none"):
            if metric in row:
                score[name] = row[metric]
                break
    return score


def test_the_suite_is_the_papers():
    members = [suite.GROUPS[group] for group in suite.GROUPS["paper_suite"]]
    assert [len(group) for group in members] == [4, 5, 2, 6, 5]
    metrics_of = [suite.METRICS[group] for group in suite.GROUPS["paper_suite"]]
    assert metrics_of == ["f1", "f1", "acc", "exact_match", "acc"]
    assert set(suite.names()) >= {*suite.GROUPS, *sum(members, ()), "gsm8k", "var_assign_math_2"}
    made_here = {name for name in suite.names() if registry.has_items(name)}
    assert {*raw_files.SOURCES, *made_here, *suite.GROUPS} == set(suite.names())


def test_right_answers_score_one_and_silence_nothing(public):
    loaded = suite.load(["paper_suite", "gsm8k"], public)
    assert len(loaded["tasks"]) == 23
    right = headline(evaluate(loaded, gold, limit=20))
    assert set(right) == {*loaded["tasks"], *suite.GROUPS} - {"paper_suite"}
    # DROP pairs spans with what was said, which is one span; a third of its questions has two.
    assert right.pop("drop") == pytest.approx((1 + right_of_two_spans() + 1) / 3)
    assert right.pop("open_book_qa") < 1
    assert set(right.values()) == {1.0}

    silent = headline(evaluate(suite.load(list(GENERATED), public), lambda task, document: ""))
    assert silent.pop("squadv2_f1") == pytest.approx(1 / 7)  # one question has no answer
    assert set(silent.values()) == {0.0}


def right_of_two_spans():
    from lm_eval.tasks.drop import utils

    return utils.get_metrics(["Ann, Bob"], ("Ann", "Bob"))[1]


def test_a_group_is_the_mean_of_its_tasks(public):
    def sometimes(task, document):
        return gold(task, document) if len(str(document)) % 3 else ""

    for group in ("closed_book_qa", "reasoning_primitives"):
        metric = suite.METRICS[group]
        loaded = suite.load([group], public)
        rows = evaluate(loaded, sometimes, limit=7, bootstrap_iters=10)["results"]
        members = [rows[name] for name in suite.GROUPS[group]]
        n, total = len(members), sum(row[f"{metric},none"] for row in members)
        assert 0 < total < n and rows[group][f"{metric},none"] == pytest.approx(total / n)
        error = sum(row[f"{metric}_stderr,none"] ** 2 for row in members) ** 0.5 / n
        assert rows[group][f"{metric}_stderr,none"] == pytest.approx(error)


HARNESS = {
    "triviaqa_f1": "triviaqa/default", "nq_open_f1": "nq_open/nq_open", "webqs_f1": "webqs/webqs",
    "asdiv_em": "asdiv/default", "coqa_f1": "coqa/default",
}  # fmt: skip


def of_the_harness(name, files, monkeypatch):
    """The harness's task that ours of this name is made after, with documents of files."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    with monkeypatch.context() as patch:
        # Its coqa needs a part of transformers that there is no more; what it does with it stays.
        scorer = types.ModuleType("squad_metrics")
        scorer.compute_f1 = lambda gold, said: metrics.f1(said, gold)
        scorer.compute_exact = lambda gold, said: float(metrics.words(said) == metrics.words(gold))
        path, module = "transformers.data.metrics.squad_metrics", scorer
        while path:
            patch.setitem(sys.modules, path, module)
            path, _, last = path.rpartition(".")
            module, child = types.ModuleType(path), module
            setattr(module, last, child)
        folder = pathlib.Path(lm_eval.tasks.__file__).parent
        config = load_yaml(folder / f"{HARNESS[name]}.yaml")
    return config, ConfigurableTask(config=config | suite._local(name, config, files, 0))


@pytest.mark.parametrize("name", HARNESS)
def test_a_task_that_the_harness_has_too_asks_the_same(name, public, monkeypatch):
    ours = suite.load([name], public)["tasks"][name]
    config, theirs = of_the_harness(name, raw_files.Files(public), monkeypatch)
    for document in ours.eval_docs:
        assert ours.doc_to_text(document) == theirs.doc_to_text(document)
        if name in ("triviaqa_f1", "nq_open_f1", "coqa_f1"):
            assert list(ours.doc_to_target(document)) == list(theirs.doc_to_target(document))
        if name == "asdiv_em":
            assert ours.doc_to_target(document) == theirs.doc_to_target(document)
    written = suite._manager().task_index[name].cfg
    for field in ("path", "name"):
        assert written.get(f"dataset_{field}") == config.get(f"dataset_{field}")
    for split in ("training_split", "validation_split", "test_split", "fewshot_split"):
        assert written.get(split) == config.get(split)
    for field in ("description", "fewshot_delimiter", "target_delimiter"):
        assert getattr(ours.config, field) == getattr(theirs.config, field)
    if theirs.OUTPUT_TYPE == "generate_until":
        assert ours.config.generation_kwargs["until"] == theirs.config.generation_kwargs["until"]


def test_squadv2_asks_what_the_harness_asks(public):
    theirs = importlib.import_module("lm_eval.tasks.squadv2.task").SQuAD2
    ours = suite.load(["squadv2_f1"], public)["tasks"]["squadv2_f1"]
    assert ours.config.dataset_path == theirs.DATASET_PATH
    for document in ours.eval_docs:
        assert ours.doc_to_text(document) == theirs.doc_to_text(None, document)
        assert f" {ours.doc_to_target(document)[0]}" == theirs.doc_to_target(None, document)


def test_coqa_scores_as_the_harness_does(public, monkeypatch):
    _, theirs = of_the_harness("coqa_f1", raw_files.Files(public), monkeypatch)
    document = theirs.eval_docs[0] | {"additional_answers": {}}
    for others in ([], ["the sea"], ["sea", "For the  sea", "the blue sea"]):
        turns = {str(i): {"input_text": ["", "", other]} for i, other in enumerate(others)}
        document["additional_answers"] = turns
        for said in ("for the sea", " the sea\n\nQ: Who?", "Rome", ""):
            scores = theirs.process_results(document, [said])
            assert metrics.coqa(document, [said]) == pytest.approx(
                {"f1": scores["f1"], "exact_match": scores["em"]}
            )


def test_the_hub_files_of_its_form_and_public_files_give_the_same_prompts(
    public, tmp_path, monkeypatch
):
    files, hub = raw_files.Files(public), {}
    for name in raw_files.SOURCES:
        rows = files.documents(name)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        config = suite._manager().task_index[name].cfg
        place = (
            config["dataset_path"],
            config.get("dataset_name"),
            str(config.get("dataset_kwargs")),
        )
        hub[place] = {"validation": rows, "test": rows, "train": files.examples(name)}
    with gzip.open(tmp_path / "gsm8k.fewshot.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, files.examples("gsm8k"))))

    def load_dataset(path, name, **kwargs):
        splits = hub[path, name, str(kwargs or None)]
        return {s: datasets.Dataset.from_list(rows) for s, rows in splits.items() if rows}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    names = list(raw_files.SOURCES)
    asked = prompts(suite.load(names, public))
    assert prompts(suite.load(names, tmp_path)) == asked
    assert prompts(suite.load(names)) == asked


def test_examples_are_never_the_question_and_follow_the_seed(public, tmp_path):
    for name in ("svamp", "asdiv_em"):  # of a test split, of a validation split
        asked = prompts(suite.load([name], public))[name]
        assert prompts(suite.load([name], public))[name] == asked
        assert prompts(suite.load([name], public, fewshot_seed=1))[name] != asked
        for context, _ in asked:
            problems = context.split("\n\n")
            assert len(set(problems)) == len(problems) == 6
            assert not any(problem.startswith(problems[-1]) for problem in problems[:-1])
    assert prompts(suite.load(["gsm8k"], public))["gsm8k"][0][0].count("Train: ") == 5

    (tmp_path / "NQ-open.dev.jsonl").write_text((public / "NQ-open.dev.jsonl").read_text())
    (tmp_path / "nq_open_f1.fewshot.jsonl").write_text('{"question": "why", "answer": ["so"]}')
    loaded = suite.load(["nq_open_f1"], tmp_path, num_fewshot=1)
    context = prompts(loaded)["nq_open_f1"][0][0]
    assert context == "Answer these questions:\n\nQ: why?\nA: so\nQ: what is 2?\nA:"


@given(
    *[st.lists(st.sampled_from("the a An ship SHIPS, sea. .sea? b-c 'b".split()), min_size=1)] * 2
)
def test_f1_is_that_of_squad(said, gold):
    from lm_eval.tasks.tydiqa import utils

    said, gold = " ".join(said), " ".join(gold)
    assert metrics.words(gold) == utils.normalize_answer(gold, "en").split()
    if metrics.words(said) or metrics.words(gold):
        assert metrics.f1(said, gold) == pytest.approx(utils.f1_score(said, gold, "en"))
    assert metrics.f1(gold, gold) == 1.0


def test_the_best_accepted_answer_and_the_first_line_count():
    document = {"answers": {"text": ["the blue ship", "a sea"]}}
    assert metrics.squad(document, [" Sea!\nQuestion: ship"]) == {"f1": 1.0, "exact_match": 1.0}
    assert metrics.squad(document, ["ship"])["f1"] == pytest.approx(2 / 3)
    for said, right in (("unanswerable", 1.0), ("", 1.0), ("the ship", 0.0)):
        assert metrics.squad({"answers": {"text": []}}, [said])["f1"] == right
    none = answers.QUAC_NO_ANSWER
    assert answers.quac(["at sea", none]) == [none]
    assert answers.quac(["at sea", none, "sea"]) == ["at sea", "sea"]


@pytest.mark.parametrize(
    ("said", "gold", "same"),
    [
        ("8 apples", "8", True), ("$8.00.", "8", True), ("80", "8", False), ("1,234", "1234", True),
        ("1,2 and 3", "1", True), ("she has -3 left", "-3", True), (".5", "0.5", True),
        ("0.667", "0.6666666667", True), ("0.66", "0.6666666667", False), ("none", "8", False),
        ("Mrs. Hilt.", "Mrs. Hilt", True), ("Hilt", "Mrs. Hilt", False), ("12:50", "12:50", True),
        ("12", "12:50", False), ("", "8", False), ("25 is 5 squared", "5", False),
    ],
)  # fmt: skip
def test_the_first_generated_number_counts(said, gold, same):
    assert metrics.same_number(said, gold) is same


def test_math_answers_are_written_as_one_writes_them():
    assert answers.math_answer({"Answer": 22090603.0}) == "22090603"
    assert answers.math_answer({"target": 9.43}) == "9.43"
    assert answers.math_answer({"target": 40}) == "40"
    assert answers.math_answer({"answer": "9 (apples)"}) == "9"


def test_a_joined_context_of_hellaswag_is_cut_where_the_original_is(tmp_path):
    cut = [
        {"ctx_a": "A man sits. He looks up.", "ctx_b": "the sky"},
        {"ctx_a": "[header] How to sail [title] Buy a boat. Pay for it (all of it).", "ctx_b": ""},
    ]
    rest = {"activity_label": "x", "endings": ["a", "b"], "label": 1}
    joined = [{"ctx": f"{row['ctx_a']} {row['ctx_b']}".strip()} for row in cut]
    path = tmp_path / "hellaswag_val.jsonl"
    path.write_text("\n".join(json.dumps(row | rest) for row in joined))
    assert [
        {key: row[key] for key in ("ctx_a", "ctx_b")} for row in raw_files._hellaswag(path)
    ] == cut


def test_prompts_of_drop_are_read_back_into_documents(public, tmp_path):
    rows = [
        {"context": f"Passage: {s['passage']}\nQuestion: {q['question']}\nAnswer:", "ref_text": "5|five boats"}
        for s in DROP.values()
        for q in s["qa_pairs"]
    ]  # fmt: skip
    (tmp_path / "drop_v0_dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded, original = suite.load(["drop"], tmp_path), suite.load(["drop"], public)
    assert prompts(loaded) == prompts(original)
    assert loaded["tasks"]["drop"].eval_docs[0]["answers"] == [["5"], ["five boats"]]
    assert original["tasks"]["drop"].eval_docs["answers"][:] == [
        [["5"], ["five"]],
        [["Ann", "Bob"]],
        [["May 1902"], [""]],
    ]


def test_a_primary_row_of_tydiqa_gives_its_gold_passage(tmp_path):
    text = "Où? Ça va.\nLe château est à Pau, et à Foix.\n"
    passages = [
        {"plaintext_start_byte": s, "plaintext_end_byte": e}
        for s, e in ((0, 13), (13, len(text.encode())))
    ]

    def annotation(answer):
        start = len(text[: text.index(answer)].encode()) if answer else -1
        end = start + len(answer.encode()) if answer else -1
        place = {"plaintext_start_byte": start, "plaintext_end_byte": end}
        return {"minimal_answer": place, "passage_answer": {"candidate_index": 1 if answer else -1}}

    row = {
        "language": "english", "example_id": 7, "document_title": "Pau", "document_plaintext": text,
        "question_text": "Where?", "passage_answer_candidates": passages,
        "annotations": [annotation(a) for a in ("", "à Pau", "Foix")],
    }  # fmt: skip
    others = [row | {"language": "finnish"}, row | {"annotations": [annotation("")]}]
    (tmp_path / "tiny_dev.jsonl").write_text("\n".join(map(json.dumps, [*others, row])))
    (document,) = raw_files.Files(tmp_path).documents("tydiqa_goldp_en")
    assert document["context"] == text.split("\n")[1] + "\n"
    answers = document["answers"]
    assert answers["text"] == ["à Pau", "Foix"]
    for start, answer in zip(answers["answer_start"], answers["text"], strict=True):
        assert document["context"][start:].startswith(answer)
    loaded = suite.load(["tydiqa_goldp_en", "tydiqa_nocontext_en"], tmp_path)
    assert set(headline(evaluate(loaded, gold)).values()) == {1.0}


def test_loading_is_silent_and_needs_no_torch(public):
    program = (
        "import sys; from loopjax.evals import suite; "
        "suite.load([*suite.GROUPS['paper_suite'][:4], 'gsm8k', 'copying_real'], sys.argv[1]); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program, public], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# What is wrong, the arguments of `load`, and what the sentence must name.
MISTAKES = [
    ("an unknown task", ["triviaqa_f2"], {}, ["'triviaqa_f2'", "did you mean triviaqa_f1?"]),
    ("a directory that is none", ["svamp"], {"data_dir": "none"}, ["data_dir='none'"]),
    (
        "no file",
        ["svamp"],
        {"data_dir": "data/web_questions"},
        ["task svamp: ", "svamp.jsonl or SVAMP.json", "data/web_questions"],
    ),
    (
        "no file in the folder",
        ["gsm8k"],
        {"data_dir": "data/other"},
        ["task gsm8k: ", "gsm8k.jsonl or test.jsonl", "folder gsm8k", "data/other"],
    ),
    (
        "a file cut short",
        ["coqa_f1"],
        {"data_dir": "bad"},
        ["task coqa_f1: bad/coqa-dev-v1.0.json", "JSONDecodeError: Unterminated string"],
    ),
    (
        "a file without a field",
        ["webqs_f1"],
        {"data_dir": "bad"},
        ["task webqs_f1: bad/web_questions/test.json", "KeyError: 'qText'"],
    ),
    (
        "rows without a field",
        ["svamp"],
        {"data_dir": "bad"},
        ["task svamp: the documents below bad", "'Body' is undefined"],
    ),
    (
        "an empty file",
        ["nq_open_f1"],
        {"data_dir": "bad"},
        ["task nq_open_f1: bad/NQ-open.dev.jsonl", "no documents"],
    ),
    (
        "nothing but examples",
        ["triviaqa_f1"],
        {"data_dir": "examples"},
        ["task triviaqa_f1: ", "triviaqa_f1.jsonl or triviaqa*.jsonl", "examples"],
    ),
    (
        "fewer than no examples",
        ["svamp"],
        {"data_dir": "data", "num_fewshot": -1},
        ["num_fewshot=-1 must be at least 0"],
    ),
    (
        "too many examples",
        ["svamp"],
        {"data_dir": "data", "num_fewshot": 7},
        ["task svamp: num_fewshot=7 needs 8 documents", "7"],
    ),
    (
        "no network",
        ["nq_open_f1"],
        {},
        ["task nq_open_f1: ", "ConnectionError: no network", "data_dir"],
    ),
]


@pytest.mark.parametrize("row", MISTAKES, ids=[row[0] for row in MISTAKES])
def test_a_mistake_gets_a_sentence(row, public, tmp_path, monkeypatch):
    _, tasks, kwargs, names = row
    monkeypatch.chdir(tmp_path)
    pathlib.Path("data").symlink_to(public)
    pathlib.Path("bad/web_questions").mkdir(parents=True)
    pathlib.Path("examples").mkdir()
    pathlib.Path("examples/triviaqa_f1.fewshot.jsonl").write_text("{}")
    for name, text in (
        ("coqa-dev-v1.0.json", '{"da'),
        ("web_questions/test.json", '[{"answers": []}]'),
        ("SVAMP.json", '[{"Question": "?"}]'),
        ("NQ-open.dev.jsonl", "\n"),
    ):
        (pathlib.Path("bad") / name).write_text(text)

    def load_dataset(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as error:
        suite.load(tasks, **kwargs)
    sentence = str(error.value)
    assert "\n" not in sentence
    for name in names:
        assert name in sentence


def test_a_missing_harness_is_reported_with_the_extra_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    suite._manager.cache_clear()
    with pytest.raises(UserError, match=re.escape("pip install 'loopjax[eval]'")):
        suite.load(["svamp"])


RECORDS = {
    "triviaqa_f1": 3000, "nq_open_f1": 3610, "webqs_f1": 2032, "squadv2_f1": 6078, "drop": 9536,
    "lambada_openai": 5153, "hellaswag": 10042, "svamp": 1000, "asdiv_em": 2305, "gsm8k": 1319,
    "mawps_addsub": 395, "mawps_multiarith": 600, "mawps_singleop": 562, "mawps_singleeq": 508,
}  # fmt: skip


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public files are not here")
def test_right_answers_score_one_on_the_public_files(monkeypatch):
    whole = raw_files.Files.documents

    def first(self, task):
        rows = whole(self, task)
        assert len(rows) == RECORDS[task]
        return rows[:100]

    monkeypatch.setattr(raw_files.Files, "documents", first)
    loaded = suite.load(list(RECORDS), SHARED)
    assert set(headline(evaluate(loaded, gold)).values()) == {1.0}
