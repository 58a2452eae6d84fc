"""How a Tuned Lens is trained: its settings and its optimizers."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from loopjax.errors import UserError

AMSGRAD = "maximum of raw moments"  # as saved; files of earlier versions have no such entry


@dataclasses.dataclass(frozen=True)
class Training:
    """How a lens is trained; the defaults are those of the library tuned-lens.

    Attributes:
      optimizer: "sgd" (Nesterov momentum 0.9, learning rate 0.1) or "adam" (AMSGrad, 0.001). The
        rate falls linearly to 0; the gradient of all exits together is clipped to norm 1; a weight
        decay of 0.001 pulls the translators to the identity.
      steps: updates.
      tokens: tokens per batch, rounded down to whole windows.
      seed: seed of the data order.
    """

    optimizer: str = "sgd"
    steps: int = 250
    tokens: int = 2**18
    seed: int = 42

    def __post_init__(self):
        if self.optimizer not in ("sgd", "adam"):
            raise UserError(f"the lens's optimizer={self.optimizer!r} must be sgd or adam")
        for name in ("steps", "tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"the lens's {name}={getattr(self, name)} must be at least 1")

    @property
    def settings(self) -> dict:
        """The settings as saved; a file whose "adam" took smaller steps has no "amsgrad"."""
        adam = {"amsgrad": AMSGRAD} if self.optimizer == "adam" else {}
        return dataclasses.asdict(self) | adam

    def make_optimizer(self) -> optax.GradientTransformation:
        if self.optimizer == "sgd":
            # Momentum is a sum in PyTorch and optax: a rate of 1.0 for its mean is 0.1 for it.
            rate = optax.linear_schedule(0.1, 0.0, self.steps)
            step = optax.sgd(rate, momentum=0.9, nesterov=True)
        else:
            rate = optax.linear_schedule(1e-3, 0.0, self.steps)
            step = optax.chain(scale_by_amsgrad(), optax.scale_by_learning_rate(rate))
        return optax.chain(optax.clip_by_global_norm(1.0), optax.add_decayed_weights(1e-3), step)


DEFAULTS = Training()


def scale_by_amsgrad(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """The direction of `torch.optim.Adam(amsgrad=True)`, which tuned-lens uses:

        m_t = b1 m_{t-1} + (1 - b1) g_t,    v_t = b2 v_{t-1} + (1 - b2) g_t^2
        u_t = m_t / (1 - b1^t) / (sqrt(max(v_1, .., v_t) / (1 - b2^t)) + eps)

    The maximum is over the raw moments, and its bias is corrected afterwards. `optax.amsgrad` takes
    the maximum of corrected moments: after a large first gradient its steps stay small.
    """
    moments = optax.scale_by_amsgrad(b1, b2, eps, bias_correction_nu=False)

    def update(grads, state, params=None):
        _, state = moments.update(grads, state, params)
        first = optax.tree.bias_correction(state.mu, b1, state.count)
        most = optax.tree.bias_correction(state.nu_max, b2, state.count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), first, most), state

    return optax.GradientTransformation(moments.init, update)
