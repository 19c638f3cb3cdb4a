"""The kinds of product (photo, thermal, ...): how a file of each is read, and what can be measured in it besides a size.

`readers.READERS` has the reader of each kind; `inspection/methods.METHODS` how each is compared and measured.
"""
