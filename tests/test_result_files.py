"""Result files name their schema: they are recognized by it, old files without one are still read."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from loopjax.analysis.diagnostics import DIAGNOSTICS
from loopjax.errors import UserError
from loopjax.evals import evaluate
from loopjax.report import collect
from loopjax.results import reader, schema, store
from tests import report_material as material
from tests.test_resume_analysis import LM

OLD = pathlib.Path(__file__).parent / "old_results"
FIRST = {name: DIAGNOSTICS[name] for name in schema._FIRST_DIAGNOSTICS}  # of the first release
EXPECTED = json.loads((OLD / "expected.json").read_text())


def plain(result: reader.Result) -> dict:
    """A result as expected.json has it: as the reader of the first release read it."""
    keys = ("kind", "of", "checkpoint", "step", "weights", "plan", "value")
    fields = {key: getattr(result, key) for key in keys}
    if dataclasses.is_dataclass(fields["value"]):
        fields["value"] = dataclasses.asdict(fields["value"])
    return store._plain(fields)


def same(a, b):
    assert json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)  # NaN too


@pytest.fixture
def all_kinds(tmp_path):
    """{path: results} of a new file of every kind."""
    run = material.run(tmp_path / "run")
    material.everything(run)
    return {path: reader.read(path) for path in reader.below(run)}


@pytest.mark.parametrize("name", EXPECTED)
def test_files_of_the_first_release_are_read_to_the_same_values(name):
    assert "schema" not in json.loads((OLD / name).read_text())
    same([plain(result) for result in reader.read(OLD / name)], EXPECTED[name])


def test_there_is_an_old_file_of_every_kind():
    kinds = {result["kind"] for results in EXPECTED.values() for result in results}
    assert kinds >= {*FIRST, "eval", "icl", "nll", "intervene swap"}
    assert (OLD / "future-arithmetic.npz").exists()


def test_an_old_result_is_not_computed_again():
    for name, row in FIRST.items():
        (path,) = (
            OLD.glob(f"{name}*.json") if name != "future" else [OLD / "future-arithmetic.json"]
        )
        content = json.loads(path.read_text())
        result = store.load(OLD, path.stem, name, row.result_type(), content["about"])
        assert isinstance(result, row.result_type())


def test_an_old_evaluation_is_resumed_and_names_its_schema_then(tmp_path):
    shutil.copy(OLD / "eval.json", tmp_path)
    old = json.loads((OLD / "eval.json").read_text())
    resumed = evaluate._resumed("eval", tmp_path / "eval.json", old["settings"])
    assert list(resumed)[:2] == ["schema", "schema_version"] and resumed["plans"] == old["plans"]
    with pytest.raises(UserError, match="another model, command or settings"):
        evaluate._resumed("icl", tmp_path / "eval.json", old["settings"])


def test_every_new_file_names_its_schema(all_kinds):
    assert len(all_kinds) == 16
    for path, results in all_kinds.items():
        content = json.loads(path.read_text())
        assert content["schema_version"] == schema.VERSIONS[content["schema"]]
        kind = results[0].kind.partition(" ")[0]
        if content["schema"] == "loopjax.diagnostic":
            assert content["diagnostic"] == kind
        else:
            assert content["schema"] == f"loopjax.{kind}"


def test_a_renamed_file_is_still_recognized(all_kinds, tmp_path):
    for k, (path, results) in enumerate(all_kinds.items()):
        path.rename(tmp_path / f"{k}.json")
        again = reader.read(tmp_path / f"{k}.json")
        same([plain(one) for one in again], [plain(one) for one in results])


def test_arrays_are_restored_by_the_declared_types(all_kinds):
    values = {results[0].kind: results[0].value for results in all_kinds.values()}
    assert values["exit_accuracy"].tasks == ("copying_real", "nothing")
    assert isinstance(values["exit_accuracy"].n_items, np.ndarray)
    assert isinstance(values["future"].output, np.ndarray) and values["future_local"].output is None
    assert values["depth_score"].groups == {"2": 3.0, "3": 3.5}


def test_a_file_of_a_newer_version_is_refused_in_a_sentence(tmp_path):
    run = material.run(tmp_path / "run")
    material.everything(run)
    for path in (run / "eval.json", run / "signature" / "norms-arithmetic.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"schema_version": 2}))
        says = f"it has version 2 of the schema {content['schema']}, this loopjax reads version 1"
        with pytest.raises(UserError) as error:
            collect.collect([path])
        assert str(error.value) == f"{path} cannot be read as a result: {says}"
        assert f"{path} was skipped: {says}" in collect.collect([run]).notes
    kind = DIAGNOSTICS["norms"].result_type()
    with pytest.raises(UserError, match=r"norms-arithmetic.json: it has version 2 of the schema"):
        store.load(run / "signature", "norms-arithmetic", "norms", kind)
    with pytest.raises(UserError, match=r"eval.json cannot be resumed: it has version 2"):
        evaluate.begin("eval", run / "eval.json", LM)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"schema": "other.eval", "schema_version": 1}, "its schema 'other.eval' is not one of"),
        (
            {"schema": "loopjax.eval", "schema_version": 1},
            "it is damaged or incomplete: it has no settings",
        ),
        ({**schema.header("diagnostic"), "diagnostic": "depth"}, "its diagnostic 'depth' is not"),
        ({"kind": "Norms", "format": 1}, "its name does not start with a diagnostic"),
        ({"kind": "Norms", "format": 7}, "its name does not start with a diagnostic"),
        ({}, "it is not a result of loopjax"),
        ([], "it is not a result of loopjax"),
    ],
)
def test_what_is_not_a_result_is_said(content, says, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(reader.Unreadable, match=says):
        reader.read(path)
