"""Data sources: what a new one has to define, and where it is registered."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from loopjax.data import items, pipeline, registry
from loopjax.data.addition import Addition
from loopjax.data.pairs import Pairs
from loopjax.data.source import Source, as_packed
from loopjax.errors import UserError
from loopjax.train import train
from loopjax.weights.saved import open_saved


class Counting(Source):
    """Row i counts up from i: the three things that every source must define, and no more."""

    def __init__(self, step: int, split: str, seq_len: int, seed: int):
        self.step = step
        self.seq_len = seq_len
        self.fingerprint = {"task": "counting", "step": step}

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        tokens = (i + self.step * np.arange(self.seq_len + 1, dtype=np.int32)) % 64
        return {"inputs": tokens[:-1], "targets": tokens[1:]}


def riddle(rng, n: int) -> items.Item:
    a = int(rng.integers(0, 10**4))
    return items.Item(f"{a}+{n}=", str(a + n), (str(a + n), str(a)))


@dataclasses.dataclass
class Phase:
    start: int
    mixture: dict


@pytest.fixture
def tasks(monkeypatch):
    """The registry with a row for a source and a row for a text task."""
    rows = (
        registry.Task("counting_<step>", r"counting_(\d+)", Counting),
        registry.Task("riddle_<n>", r"riddle_(\d+)", item=riddle),
    )
    monkeypatch.setattr(registry, "TASKS", (*registry.TASKS, *rows))


@pytest.mark.slow
def test_a_source_of_length_items_and_fingerprint_trains(tasks, tiny_config, tmp_path):
    tiny_config.mixture = {"counting_1": 0.5, "counting_3": 0.5}
    tiny_config.cooldown.mixture = {}
    tiny_config.model.vocab_size = 264
    train(tiny_config, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"counting_1/nll", "counting_3/nll", "nll"} <= set(result["heldout"])
    assert not any(name.endswith("exact") for name in result["heldout"])
    data = open_saved(tmp_path / "run").meta["data"]
    assert data["sources"]["counting_3"] == {"task": "counting", "step": 3}
    # A source is finite by default: an epoch reads every row once, in another order.
    stream = pipeline.TrainStream(tiny_config, [Phase(0, {"counting_1": 1.0})])
    epoch = [stream.parents[0][i]["inputs"][0] for i in range(20)]
    assert sorted(epoch) == list(range(20)) != epoch


def test_one_row_makes_a_text_task_a_source_and_its_items_fine_tuning_pairs(tasks, tiny_config):
    tiny_config.seq_len = 60
    tiny_config.model.vocab_size = 264
    sources = pipeline.open_sources(tiny_config, ["riddle_7", "riddle_7:20"], "train")
    assert isinstance(sources["riddle_7"], items.Items)
    assert isinstance(sources["riddle_7:20"], Pairs)
    assert registry.has_items("riddle_7") and not registry.has_items("counting_1")
    drawn = registry.items("riddle_7", "heldout", 0, 50)
    assert len({item.prompt for item in drawn}) == 50
    assert all(int(i.prompt.split("+")[0]) + 7 == int(i.answer) for i in drawn)


def test_an_unknown_source_is_told_every_row_of_the_registry(tasks, tiny_config):
    with pytest.raises(UserError) as error:
        pipeline.open_sources(tiny_config, ["p_hops_3"], "train")
    message = str(error.value)
    assert message.startswith("config.mixture: unknown source 'p_hops_3'; allowed are stdlib, ")
    assert all(task.names in message for task in registry.TASKS)


def test_every_row_of_the_registry_opens_a_source(tiny_config):
    examples = {
        "stdlib": None, "p_hop_3": None, "hop_text_9": "hop_text_9", "hops_3x20": None,
        "sanford_2": None, "trail_9": "trail_9", "trail_code_16": "trail_code_16",
        "addition_5": None, "mod_addition_23": None, "igsm_2": None, "copying_real": "copying_real",
        "var_assign_code_4": "var_assign_code_4",
    }  # fmt: skip
    tiny_config.seq_len = 512
    opened = set()
    for name, with_items in examples.items():
        tiny_config.model.vocab_size = 264
        source = pipeline.open_sources(tiny_config, [name], "train")[name]
        assert isinstance(source, Source)
        assert source[0]["inputs"].shape == (512,) and source[0]["inputs"].max() < source.vocab_size
        assert json.loads(json.dumps(source.fingerprint)) == source.fingerprint
        assert registry.has_items(name) == bool(with_items)
        opened.add(registry.find(name)[0])
    assert opened == set(registry.TASKS)


def test_only_addition_is_scored_by_the_whole_answer():
    assert Addition(2, "train", 15, 0).one_answer and not Counting(1, "train", 4, 0).one_answer


def test_running_text_in_a_packed_batch_is_one_segment():
    example = as_packed(Counting(1, "train", 5, 0)[2])
    assert example["segments"].tolist() == [0] * 5
    assert example["positions"].tolist() == [0, 1, 2, 3, 4]
    assert example["inputs"].tolist() == [2, 3, 4, 5, 6]
    packed = {**example, "segments": np.array([0, 0, 1, 1, -1])}
    assert as_packed(packed)["segments"].tolist() == [0, 0, 1, 1, -1]


def test_a_source_without_tokenizer_files_copies_none(tmp_path: pathlib.Path):
    assert not Counting(1, "train", 5, 0).copy_tokenizer(tmp_path)
    assert not any(tmp_path.iterdir())
