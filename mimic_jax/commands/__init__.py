"""The verbs of the command line, one module each with `main(argv)`; its docstring's first line is what `mimic --help` says."""
