"""Evaluation: ensembles, baselines, scores and figures."""
