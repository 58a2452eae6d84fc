"""The tokenizer files of a model that was trained without the BOS that they would add."""

import pathlib

from loopjax.data import tokenizers
from loopjax.files import write_json
from loopjax.interop import files

# Post-processors of a tokenizer.json that add special tokens; others only adjust offsets.
ADDING = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")
TOKENS = (tokenizers.CONFIG, "special_tokens_map.json")


def leave_out_bos(directory: pathlib.Path) -> None:
    """Changes the files of a directory so that nothing is added to a text.

    The beginning of a text is then the end of the document before it, as in training.
    """
    if not (directory / tokenizers.FILE).is_file():
        return
    tokenizer = files.read_json(directory / tokenizers.FILE, files.LARGEST_TOKENIZER)
    processor = tokenizer.get("post_processor")
    if processor and processor.get("type") == "Sequence":
        kept = [p for p in processor["processors"] if p["type"] not in ADDING]
        tokenizer["post_processor"] = {**processor, "processors": kept} if kept else None
    elif processor and processor["type"] in ADDING:
        tokenizer["post_processor"] = None
    write_json(directory / tokenizers.FILE, tokenizer)
    for name in TOKENS:
        if (directory / name).is_file():
            tokens = files.read_json(directory / name)
            if "eos_token" in tokens:
                tokens["bos_token"] = tokens["eos_token"]
            if name == tokenizers.CONFIG:
                tokens |= {"add_bos_token": False, "add_eos_token": False}
            write_json(directory / name, tokens)
