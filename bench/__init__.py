"""Benchmarks: what a call costs the server, as a multiple of the least that a script can cost.

Times of this machine mean little on another one, and not much an hour later; ratios do. Every
figure is taken in rounds that interleave what is compared, and shown as the median with its spread.

Run as `python -m bench`; `--quick` takes less than a minute, `--json FILE` keeps every figure,
`--binary PATH` measures on another server (Redis 7 or later, for the floor needs functions).
"""
