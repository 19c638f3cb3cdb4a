"""Training recipes: data in, weights and a model card out.

They know images and truth, not stores, people or verdicts.
"""
