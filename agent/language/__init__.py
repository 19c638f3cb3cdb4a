"""Understanding what a person wrote: part, intent, wishes for references, questions about a report."""
