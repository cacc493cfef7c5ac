"""Hostile bytes for the rooms that read them. How to run it: docs/fuzzing.md.

``targets`` says what must hold, ``reference`` what the bytes mean, ``meter`` what reading them
costs; ``corpus`` keeps the inputs, ``engines`` make new ones. Nothing here needs pytest.
"""
