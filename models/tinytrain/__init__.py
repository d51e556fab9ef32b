"""How the demonstration model is trained: tokenizer, packing of documents into rows, optimiser, and the loop.

`../train.py` is the program; nothing here runs at import.
"""
