"""The compiled modules except `_core`, their pure-Python twins, and what both of them share.

`acgsperf.dispatch` chooses between a compiled module and its twin. Nothing here knows asyncio, Redis or PostgreSQL.
"""
