"""Accepted work: the queue that is inspected one part after the other, and batches of many parts."""
