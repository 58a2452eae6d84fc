"""What happens between the repetitions of a loop: `config.loop`, everything off by default.

The options act where a segment of a plan repeats; a plan that runs every layer once is the plain model.
docs/recurrence.md says where each comes from and what it costs.
"""

import dataclasses
import math

from loopjax.random_depth import MOST, Law

FINAL_NORM = ("", "between", "after")
START = ("", "zeros", "normal")
INJECT = ("", "add", "after", "concat")
RESIDUAL = ("", "outer", "outer_delta", "scaled")
RESIDUAL_SCALE = ("", "loops", "deeploop")
# Fields that change what a loop computes, and those that only concern its training.
BOUNDARY = ("norm", "final_norm", "start", "inject", "residual", "embedding")
ACTIVE = (*BOUNDARY, "residual_scale", "lora_rank")
TRAINING = ("repeats", "most", "backprop")


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Options of loops (`loop.py` states the formulas).

    Attributes:
      norm: whether an RMSNorm without scale is between repetitions and after the last.
      final_norm: whether the final norm of the model is also "between" repetitions, or "after" the last.
      start: the state before the first repetition: "zeros", "normal"; "" for the residual stream.
      inject: how the stream e at the start of the loop enters: before each repetition by "add" or
        "concat", or "after" each by addition.
      inject_scale: factor of e with "add" and "after".
      residual: what is carried around the loop: "outer", "outer_delta" or "scaled".
      residual_scale: "loops": outputs of sublayers in a loop of N repetitions of L layers are
        multiplied by `residual_lambda` / (N sqrt(L)); "deeploop": every layer multiplies the stream that
        it adds to, before the norm (`ModelConfig.alpha`).
      residual_lambda: numerator of that factor.
      embedding: whether each repetition adds a learned vector.
      lora_rank: rank of the low-rank addition to every matrix in each repetition; 0 for none.
      repeats: law of the number of repetitions in training (`random_depth.py`); "" for the plan's.
      most: cap of that law; 0 for none.
      backprop: repetitions, the last ones, that have a gradient; 0 for all.
      own: R, the repetitions that have weights of their own where an option has weights; later ones
        use those of the last.
    """

    norm: bool = False
    final_norm: str = ""
    start: str = ""
    inject: str = ""
    inject_scale: float = 1.0
    residual: str = ""
    residual_scale: str = ""
    residual_lambda: float = 1.0
    embedding: bool = False
    lora_rank: int = 0
    repeats: str = ""
    most: int = 0
    backprop: int = 0
    own: int = 0

    def __post_init__(self):
        for name, allowed in (
            ("final_norm", FINAL_NORM), ("start", START), ("inject", INJECT),
            ("residual", RESIDUAL), ("residual_scale", RESIDUAL_SCALE),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"loop.{name}={getattr(self, name)!r} must be one of "
                    f"{', '.join(map(repr, allowed))}"
                )
        if self.start and not self.inject:
            raise ValueError(
                f"loop.start={self.start!r} requires loop.inject: else no token enters the loop"
            )
        for name in ("inject_scale", "residual_lambda"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"loop.{name}={getattr(self, name)} must be positive and finite")
        for name in ("lora_rank", "most", "backprop", "own"):
            if not 0 <= getattr(self, name) <= MOST:
                raise ValueError(f"loop.{name}={getattr(self, name)} must lie within 0..{MOST:,}")
        self._check_law()

    def _check_law(self):
        if not self.repeats:
            if self.most:
                raise ValueError(f"loop.most={self.most} requires loop.repeats, whose cap it is")
            return
        try:
            law = self.law
        except ValueError as error:
            raise ValueError(f"loop.repeats={error}") from None
        if self.most and not law.is_capped:
            raise ValueError(
                f"loop.most={self.most} does not apply to loop.repeats={self.repeats!r}, which has a "
                "largest number of its own"
            )
        if law.is_capped and not self.most and not self.backprop:
            raise ValueError(
                f"loop.repeats={self.repeats!r} requires loop.most or loop.backprop: what is saved for "
                "gradients through every repetition must have a bound"
            )

    @property
    def law(self) -> Law | None:
        """The law of the number of repetitions in training; None for the plan's number."""
        return Law(self.repeats, self.most) if self.repeats else None

    @property
    def is_active(self) -> bool:
        """Whether something happens between repetitions, or a layer depends on its repetition."""
        return bool(self.of_repetitions())

    def of_repetitions(self) -> list[str]:
        """The options by which more is done in a loop than its layers alone do."""
        deep = ("residual_scale",) if self.residual_scale == "deeploop" else ()
        return self.options(tuple(name for name in ACTIVE if name not in deep))

    @property
    def has_boundary(self) -> bool:
        """Whether the residual stream is changed between repetitions."""
        return bool(self.options(BOUNDARY))

    @property
    def has_weights(self) -> bool:
        return bool(self.weighted())

    def options(self, names: tuple[str, ...]) -> list[str]:
        """Those of some fields that are set, as they are written in a config."""
        return [f"loop.{name}={getattr(self, name)!r}" for name in names if getattr(self, name)]

    def weighted(self) -> list[str]:
        """The options that have weights."""
        concat = ("inject",) if self.inject == "concat" else ()
        scaled = ("residual",) if self.residual == "scaled" else ()
        return self.options((*concat, *scaled, "embedding", "lora_rank"))

    def sublayer_scale(self, repeats: int, layers: int) -> float:
        """The factor of the outputs of sublayers in a segment, lambda / (N sqrt(L)) (2606.18524)."""
        if repeats == 1 or self.residual_scale != "loops":
            return 1.0
        return self.residual_lambda / (repeats * math.sqrt(layers))

    def shapes(self, d_model: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights below `loop/`, by name."""
        shapes = {}
        if self.inject == "concat":
            shapes["adapter"] = (2 * d_model, d_model)
        if self.embedding:
            shapes["embedding"] = (self.own, d_model)
        if self.residual == "scaled":
            shapes["scale"] = (self.own,)
        return shapes

    def lora_shapes(self, name: str, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """Shapes of the low-rank factors of a matrix [in, out] of one layer, by name."""
        if not self.lora_rank:
            return {}
        rows, columns = shape
        return {
            f"{name}_lora_a": (self.own, rows, self.lora_rank),
            f"{name}_lora_b": (self.own, self.lora_rank, columns),
        }
