"""The golden bank: Qdrant, embedded or as a server, behind one class."""
