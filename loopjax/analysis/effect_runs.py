"""Effects of ablated layers as `loopjax analyze` measures them: where prompts are cut, what is ablated."""

from loopjax.analysis import effects


def future_local(lm, cases, options, each) -> effects.Effects:
    prompts = _prompts(cases)
    return effects.local(lm, prompts, effects.draw_boundaries(prompts), each=each)


def future(lm, cases, options, each) -> effects.Effects:
    prompts = _prompts(cases)
    return effects.propagated(lm, prompts, effects.draw_boundaries(prompts), each=each)


def current_attention(lm, cases, options, each) -> effects.Effects:
    return effects.propagated(lm, _prompts(cases), None, "attention", each)


def _prompts(cases) -> list[list[int]]:
    return [tokens for tokens, _, _ in cases]
