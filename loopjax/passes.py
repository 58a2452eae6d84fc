"""How the passes of a repeated segment are applied: whole, damped, or of one kind of sublayer. No JAX here."""

import dataclasses
import re

LEAST_DAMPING = 0.001
SUBLAYERS = ("attention", "mlp")
PATTERN = r"(?P<damped>:damped(?P<damping>[0-9]*\.?[0-9]+)?)?(?::(?P<sublayer>attention|mlp))?"


@dataclasses.dataclass(frozen=True)
class Passes:
    """How the R passes of a repeated segment are applied to the residual stream x; see `Window`.

    Attributes:
      damping: factor of the update of a pass, 0.001..1; None for 1/R.
      sublayer: what the passes after the first run, a name of `SUBLAYERS`; "" for whole layers.
    """

    damping: float | None = 1.0
    sublayer: str = ""

    @classmethod
    def parse(cls, text: str) -> "Passes":
        """Reads "plain", "damped", "damped0.5", "mlp", "damped:mlp", ...; else ValueError."""
        match = re.fullmatch(PATTERN, "" if text == "plain" else f":{text}")
        if not match:
            raise ValueError(
                f"{text!r} must be plain, damped (by 1 / passes) or damped0.5 (by that factor), attention "
                "or mlp (only these sublayers after the first pass), or both, like damped:mlp"
            )
        return of_match(match)

    def factor(self, repeats: int) -> float:
        """The damping factor of `repeats` passes."""
        return 1 / repeats if self.damping is None else self.damping

    def plain(self, repeats: int) -> bool:
        """Whether `repeats` passes are those of a plain loop."""
        return self.factor(repeats) == 1 and (repeats == 1 or not self.sublayer)

    def __str__(self) -> str:
        factor = "" if self.damping is None else repr(self.damping)
        damped = "" if self.damping == 1 else f"damped{factor}"
        return ":".join(filter(None, (damped, self.sublayer))) or "plain"


def of_match(match: re.Match) -> Passes:
    """The passes in a match of `PATTERN`; raises ValueError for a factor out of bounds."""
    damping = None if match["damped"] else 1.0
    if match["damping"]:
        damping = float(match["damping"])
        if not LEAST_DAMPING <= damping <= 1:
            raise ValueError(
                f"the damping factor {match['damping']} must lie within {LEAST_DAMPING}..1"
            )
    return Passes(damping, match["sublayer"] or "")


PLAIN = Passes()
DAMPED = Passes(None)
