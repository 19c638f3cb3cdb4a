"""Training of the language model: recipe, examples, data, the loop."""
