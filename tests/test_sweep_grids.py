"""Combinations of field values: product and zipped."""

import subprocess
import sys

import pytest

from loopjax.errors import UserError
from loopjax.sweep import product, zipped


def test_a_product_is_what_nested_loops_give():
    expected = [
        {"model.d_model": width, "learning_rate": rate, "seed": seed}
        for width in (64, 128)
        for rate in (1e-4, 1e-3)
        for seed in range(3)
    ]
    found = product({"model.d_model": (64, 128)}, learning_rate=[1e-4, 1e-3], seed=range(3))
    assert list(found) == expected


def test_zipped_values_stand_side_by_side_and_a_product_combines_them():
    pairs = [{"learning_rate": 1e-3, "batch_size": 8}, {"learning_rate": 2e-3, "batch_size": 32}]
    assert list(zipped(learning_rate=[1e-3, 2e-3], batch_size=[8, 32])) == pairs
    found = list(product(zipped(learning_rate=[1e-3, 2e-3], batch_size=[8, 32]), seed=range(2)))
    assert found == [{**pair, "seed": seed} for pair in pairs for seed in range(2)]
    assert list(zipped({"model.d_model": [8]}, seed=[1])) == [{"model.d_model": 8, "seed": 1}]


def test_an_iterator_is_a_list_of_values():
    assert list(product(seed=iter([1, 2]), arg=["a", "b"])) == [
        {"seed": s, "arg": a} for s in (1, 2) for a in "ab"
    ]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: product(seed=3), "product(): seed=3 must be a list of values"),
        (lambda: product(arg="lidas"), "product(): arg='lidas' must be a list of values"),
        (lambda: product(seed=[]), "product(): seed has no values"),
        (lambda: product({"seed": [1]}, seed=[2]), "product(): seed is given twice"),
        (lambda: product([1, 2]), "product() takes {field: values} or the result of zipped() or"),
        (lambda: zipped(seed=[1], steps=[1, 2]), "there are 1 of seed, 2 of steps"),
        (lambda: zipped([1]), "zipped() takes {field: values}, not [1]"),
    ],
)
def test_a_mistake_is_refused_in_a_sentence(call, says):
    with pytest.raises(UserError) as refused:
        call()
    assert says in str(refused.value)


def test_importing_them_does_not_import_jax():
    code = "import sys, loopjax.sweep; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
