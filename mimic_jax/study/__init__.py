"""Many runs as one: a design read from a file, its runs, what came of them, and the page of it."""
