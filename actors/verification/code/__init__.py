"""Kind ``code``: a program from a completion, run against hidden tests in a sandbox."""
