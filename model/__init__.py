"""Networks and images: image decoding, encoder, difference, language model, synthetic images, training.

Knows nothing about parts in stores, people or verdicts. May import: no other room.
"""
