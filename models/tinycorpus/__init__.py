"""Text for Tandem's demonstration model: every sentence comes from the templates and tables in this package.

`dialogue.documents(seed, count)` is the only entry; the other modules each hold one kind of talk and expose
functions that take a `random.Random` and return a list of turns. Nothing here reads a file, the clock or the
environment, so a seed fixes the text completely.
"""
