"""Gold answers of dataset rows, and the turns of dialogues."""

NO_ANSWER = "unanswerable"  # the wording of the harness's squadv2
QUAC_NO_ANSWER = "CANNOTANSWER"  # the last word of every passage of QuAC


def triviaqa(doc: dict) -> list[str]:
    """The accepted answers of TriviaQA."""
    return doc["answer"]["aliases"]


def squad(doc: dict) -> list[str]:
    """The accepted answers of SQuAD and TyDi QA; without one, `NO_ANSWER` and the empty string."""
    return doc["answers"]["text"] or [NO_ANSWER, ""]


def coqa(doc: dict) -> list[str]:
    """The accepted answers to the last question about a story, starting with the first annotator."""
    last = len(doc["questions"]["input_text"]) - 1
    answers = [doc["answers"]["input_text"][last]]
    for annotator in (doc["additional_answers"] or {}).values():
        answer = annotator["input_text"][last]
        if answer.lower() not in map(str.lower, answers):
            answers.append(answer)
    return answers


def quac(answers: list[str]) -> list[str]:
    """The accepted answers among those of the annotators of QuAC.

    The majority decides whether a question has an answer, as in QuAC's own scorer.
    """
    spans = [answer for answer in answers if answer != QUAC_NO_ANSWER]
    return spans if 2 * len(spans) > len(answers) else [QUAC_NO_ANSWER]


def quac_turns(dataset):
    """One document per question of each dialogue, with the turns before it and its answers."""
    return dataset.map(_turns, batched=True, remove_columns=dataset.column_names)


def _turns(dialogues: dict[str, list]) -> dict[str, list]:
    turns = {"context": [], "questions": [], "replies": [], "answers": []}
    columns = ("context", "questions", "orig_answers", "answers")
    for context, questions, replies, answers in zip(*map(dialogues.get, columns), strict=True):
        for turn in range(len(questions)):
            turns["context"].append(context)
            turns["questions"].append(questions[: turn + 1])
            turns["replies"].append(replies["texts"][:turn])
            turns["answers"].append(quac(answers["texts"][turn]))
    return turns


def tydiqa_english(dataset):
    """The English questions of TyDi QA GoldP."""
    return dataset.filter(lambda name: name.startswith("english-"), input_columns="id")


def math_answer(doc: dict) -> str:
    """The answer of SVAMP, ASDiv (without its unit) or MAWPS, as text."""
    if "answer" in doc:
        return doc["answer"].split(" (")[0]
    number = doc["target"] if "target" in doc else doc["Answer"]
    return f"{number:.10f}".rstrip("0").rstrip(".")
