"""Training of the language model: `train_language` (train.py) runs a `LanguageRecipe` on pairs and recordings."""
