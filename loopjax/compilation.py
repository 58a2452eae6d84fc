"""The compiled programs of a run: those that come next are made while the training goes on."""

import functools
from collections.abc import Callable

import jax

from loopjax import growth, surgery
from loopjax.ahead import Ahead
from loopjax.curriculum import Phase
from loopjax.depth import DepthPlan
from loopjax.run import Run


def shapes_of(tree):
    """Shape, dtype and sharding of every array of a tree (`jax.ShapeDtypeStruct`)."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


class Programs:
    """The programs of the training loop.

    Args:
      run: the run.
      state: train state that the training begins with.
      ahead: the thread that compiles ahead.

    Attributes:
      plan: plan of the last `update`; None before the first.
    """

    def __init__(self, run: Run, state, ahead: Ahead):
        self.run = run
        self.plan: DepthPlan | None = None
        self._state = shapes_of(state)
        self._ahead = ahead

    def update(self, plan: DepthPlan, batch) -> Callable:
        """Compiled update of a plan: (state, batch) -> (state, metrics); the state is donated."""
        self.plan = plan
        make = functools.partial(self._update, plan, self._state, shapes_of(batch))
        return self._ahead.get(("update", plan), make)

    def growth(self, phase: Phase) -> Callable:
        """Compiled growth at the start of a phase: state -> state; the old one is donated."""
        grow = self._ahead.get(
            ("growth", phase.start), functools.partial(self._growth, phase, self._state)
        )
        self._state = surgery.grown_shapes(self._state, phase.order)
        return grow

    def begin_next(self, phase: Phase, batch) -> None:
        """Begins to make what the phase after this one needs."""
        following = next((p for p in self.run.phases if p.start == phase.stop), None)
        if following is None:
            return
        state = self._state
        if following.order is not None:
            self._ahead.begin(
                ("growth", following.start), functools.partial(self._growth, following, state)
            )
            state = surgery.grown_shapes(state, following.order)
        if following.plan != phase.plan:
            make = functools.partial(self._update, following.plan, state, shapes_of(batch))
            self._ahead.begin(("update", following.plan), make)

    def _update(self, plan: DepthPlan, state, batch) -> Callable:
        return self.run.jitted_update(plan, state).lower(state, batch).compile()

    def _growth(self, phase: Phase, state) -> Callable:
        run = self.run
        return growth.compiled(state, phase, run.optimizer, run.config.seed, run.cfg)
