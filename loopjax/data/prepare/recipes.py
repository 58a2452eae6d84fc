"""Corpora by name for `loopjax prepare --recipe`: data, no code.

A source lists the arguments of `prepare` that differ from the defaults: dataset, subset, ... The
mixtures are printed at the end, as flags to train with.
"""

SMOLLM_CORPUS = "HuggingFaceTB/smollm-corpus"
TOKENIZER = "HuggingFaceTB/cosmo2-tokenizer"

RECIPES = {
    # SmolLM-Corpus as SmolLM was trained on it.
    "smollm": {
        "tokenizer": TOKENIZER,
        "sources": {
            "web": {"dataset": SMOLLM_CORPUS, "subset": "fineweb-edu-dedup"},
            "textbooks": {"dataset": SMOLLM_CORPUS, "subset": "cosmopedia-v2"},
            # The hub has only the names of these files. Fetching is slow, so the pieces are small.
            "python": {
                "dataset": SMOLLM_CORPUS,
                "subset": "python-edu",
                "text_key": "blob_id",
                "text_url": "https://softwareheritage.s3.amazonaws.com/content/",
                "shard_size": 4 * 10**6,
            },
            "math": {"dataset": "open-web-math/open-web-math"},
        },
        "mixtures": [
            ("config.mixture", {"web": 0.70, "textbooks": 0.15, "python": 0.09, "math": 0.06}),
        ],
    },
    # The mathematics of a cooldown, a fifth of its mixture: either of the two sources.
    "smollm-cooldown": {
        "tokenizer": TOKENIZER,
        "sources": {
            "finemath": {"dataset": "HuggingFaceTB/finemath", "subset": "finemath-4plus"},
            "nemotron-math": {"dataset": "nvidia/Nemotron-CC-Math-v1", "subset": "4plus"},
        },
        "mixtures": [
            (
                "config.cooldown.mixture",
                {"web": 0.70, "textbooks": 0.15, "python": 0.09, name: 0.235},
            )
            for name in ("finemath", "nemotron-math")
        ],
    },
}  # fmt: skip
