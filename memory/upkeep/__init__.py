"""Looking after a whole home folder: what it holds, its backup, and what is wrong with it."""
