"""The RefDiff network and what it needs to see: image decoding, encoder, difference, renderer of parts.

Knows nothing about parts in stores, people or verdicts. May import: no other room.
"""
