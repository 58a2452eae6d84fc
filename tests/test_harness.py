"""The harness's scores of a real model are those of its own Hugging Face model.

stories260K (TinyStories, 5 layers) as trained, and with layers 2 and 3 run three times.
"""

import copy
import pathlib
import warnings

import numpy as np
import pytest

from loopjax.cli import main as cli
from loopjax.evals import suite
from loopjax.evals.harness import LoopjaxLM
from loopjax.lm.loaded_model import open_model

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
STORIES, DATA = SHARED / "models" / "stories260k", SHARED / "data"
needs = pytest.mark.skipif(not STORIES.is_dir(), reason="the model is not on this machine")
TASKS = ["copying_random", "copying_real", "var_assign_math_0", "lambada_openai", "hellaswag"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    from loopjax.interop.import_hf import import_hf

    directory = tmp_path_factory.mktemp("stories") / "run"
    import_hf(str(STORIES), directory)
    return directory


@pytest.fixture(scope="module")
def theirs():
    """Plan -> the harness's model of Hugging Face's, its layers copied in the order of the plan."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        from lm_eval.models.huggingface import HFLM
    transformers.logging.set_verbosity_error()

    def make(plan):
        model = transformers.AutoModelForCausalLM.from_pretrained(STORIES, dtype="float32")
        layers = [copy.deepcopy(model.model.layers[i]) for i in plan.order]
        for i, layer in enumerate(layers):
            layer.self_attn.layer_idx = i
        model.model.layers = torch.nn.ModuleList(layers)
        model.config.num_hidden_layers = len(layers)
        model.config.layer_types = None
        tokenizer = transformers.AutoTokenizer.from_pretrained(STORIES)
        return HFLM(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=8, device="cpu"
        )

    return make


def instances(names, limit, shots=None):
    tasks = suite.load(names, DATA, shots)["tasks"]
    for task in tasks.values():
        task.build_all_requests(limit=limit, rank=0, world_size=1)
    return [instance for task in tasks.values() for instance in task.instances]


@needs
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("depth", ["5", "2-2x3-1"])
def test_log_likelihoods_are_those_of_hugging_face(imported, theirs, depth):
    ours = LoopjaxLM(open_model(imported, depth))
    requests = instances(TASKS, 3, shots=2)
    found = ours.loglikelihood(requests, disable_tqdm=True)
    expected = theirs(ours.lm.plan).loglikelihood(requests, disable_tqdm=True)
    np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected], atol=1e-3)
    assert [f[1] for f in found] == [e[1] for e in expected]
    # The chosen answer of each question.
    for name, choices in (("copying_random", 10), ("hellaswag", 4)):
        rows = [i for i, request in enumerate(requests) if request.task_name == name]
        best = [
            np.reshape([scores[i][0] for i in rows], (-1, choices)).argmax(1).tolist()
            for scores in (found, expected)
        ]
        assert best[0] == best[1]
    text = instances(["lambada_openai"], 2)
    for request in text:
        request.arguments = (request.args[0] * 3,)  # longer than the context
    rolling = ours.loglikelihood_rolling(text, disable_tqdm=True)
    same = theirs(ours.lm.plan).loglikelihood_rolling(text, disable_tqdm=True)
    np.testing.assert_allclose(rolling, same, rtol=1e-5)


@needs
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("depth", ["5", "2-2x3-1"])
def test_texts_are_those_of_hugging_face(imported, theirs, depth):
    ours = LoopjaxLM(open_model(imported, depth))
    requests = instances(["svamp", "nq_open_f1", "squadv2_f1"], 3, shots=1)
    expected = theirs(ours.lm.plan).generate_until(requests, disable_tqdm=True)
    assert ours.generate_until(requests, disable_tqdm=True) == expected
    assert any(expected)


@needs
def test_greedy_decoding_tells_the_story_of_the_readme(imported, capsys):
    argv = ["generate", "--checkpoint", str(imported), "--max-new-tokens", "90"]
    assert cli.main(argv) == 0
    assert capsys.readouterr().out.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball. She wanted to play with it, but it was too "
        "high.\nLily's mom said,"
    )
