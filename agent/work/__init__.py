"""Accepted work: the queue that is inspected one part after the other, batches of parts, and reports of devices."""
