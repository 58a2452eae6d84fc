"""What the backward pass recomputes: `config.model.remat`."""

import jax

from loopjax import attention

# Of each layer the values with these names (`block.py`) are saved for the backward pass, besides the
# layer's input, which is named here.
_OF_JAX = jax.checkpoint_policies


def _saved(*names):
    """The policy that saves values by name, and what flash attention computed."""
    return _OF_JAX.save_from_both_policies(
        _OF_JAX.save_only_these_names(*names), attention.is_saved
    )


POLICIES = {
    "none": None,
    "dots": _saved("attention_product", "mlp_product", attention.SAVED_NAME),
    "attention": _saved("attention_product", attention.SAVED_NAME),
    "full": _OF_JAX.nothing_saveable,
    "offload": _OF_JAX.save_and_offload_only_these_names(
        names_which_can_be_saved=(),
        names_which_can_be_offloaded=("layer_input",),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
