"""The small files: what is malformed gets a sentence that names the file."""

import re

import pytest

from loopjax.errors import UserError
from loopjax.files import parse_json, read_json, read_rows

MALFORMED = {
    b"[" * 100_000: "it is nested too deeply",
    b'{"a": 1': "Expecting ',' delimiter",
    b'{"a": "\xff"}': "can't decode byte 0xff",
    b"9" * 5000: "Exceeds the limit",
    b"": "Expecting value",
}


@pytest.mark.parametrize(("content", "says"), MALFORMED.items(), ids=range(len(MALFORMED)))
def test_every_malformed_json_is_a_sentence_with_the_file(content, says, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))} cannot be read: .*{says}"):
        read_json(path)
    with pytest.raises(UserError, match=rf"^a.jsonl line 3 is not JSON: .*{says}"):
        parse_json(content, "a.jsonl line 3")


def test_rows_stop_at_a_torn_line_and_hold_every_character(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"a": "\u2028"}\n{"a": 2}\n{"a": [[['.encode())
    assert read_rows(path) == [{"a": "\u2028"}, {"a": 2}]
    path.write_bytes(b'{"a": 1}\n' + b"[" * 100_000)
    assert read_rows(path) == [{"a": 1}]
    assert read_json(tmp_path / "none.json") is None
