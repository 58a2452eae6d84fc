"""loopjax: transformers that loop and transformers that are grown, in JAX.

Main entry points (docs/api.md has runnable examples):

    loopjax.config.default()                       every option with its default
    loopjax.train.train(config, workdir)           trains or resumes a run -> result, dict
    loopjax.checkpoint.load_params(directory)      (params, meta); leaves below "layers" are [U, ...]
    loopjax.depth.DepthPlan.parse("4-4x2-4")       a plan: which layers run in which order
    loopjax.depth.midas, lidas                     growth orders: old index of each new layer
    loopjax.surgery.grow, untie, reorder           an order applied to a tree of stacked layers
    loopjax.model.forward(params, tokens, cfg, plan)    logits, float32 [B, T, V]
    loopjax.model.residual                         residual stream before the final norm, [B, T, D]
    loopjax.model.intermediates                    outputs of every executed layer, [E, B, T, ...]
    loopjax.lm.loaded_model.open_model(checkpoint) weights, plan, tokenizer and mesh
    loopjax.lm.score.log_likelihoods(lm, requests) log p(continuation | context), [requests]
    loopjax.lm.decode.generate(lm, prompts, n)     continuations of prompts
    loopjax.analysis                               norms, effects, depth_score, similarity, early_exit
    loopjax.run_record.of_directory(directory)     config, cost and metrics of a run
    loopjax.sweep.product, zipped, point           for the function sweep(add) of a config file

Importing `loopjax` imports nothing else; import the modules you use.
"""
