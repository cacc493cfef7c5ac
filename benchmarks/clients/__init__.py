"""The measured programs, one file per client, each run in a process of its own.

Nothing is imported here: asyncio and gevent must never meet in one process.
"""
