"""The evaluation of a run on pictures that it never trains on, while it goes on.

In: a recipe with its engines, and a choice of pictures (`pipeline.stream.fixed`). Out: a row of `evaluation.jsonl`: figures beside those of
baselines, dead maps, the spread of outputs and features, and a small probe. The figures are the same at any number of ranks, and
making them leaves the training as it was, to the bit. Public names: `evaluation.Evaluation`, `opening.open_evaluation`.
"""
