"""What is computed once and kept on disk, to be made again where it is lost."""
