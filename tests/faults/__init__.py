"""The fault table: what is done to a connection, when, what is expected of it, and what it did.

``table`` holds the faults, the moments and the expectations, stated before anything runs; ``cell``
runs one of them and judges it. ``python -m tests.faults`` runs all, and writes docs/faults.md.
"""
