"""One kind of system a file, found by its file name."""
