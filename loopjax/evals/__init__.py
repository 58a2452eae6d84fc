"""Evaluation: the tasks of the paper, and the models that answer them."""
