"""Accepted work: the queue that is inspected one part after the other, batches of many parts, and reports that devices send."""
