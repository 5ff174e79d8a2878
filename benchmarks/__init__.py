"""Side-by-side measurements against the programs that people use today. Run with `make bench`."""
