"""Benchmarks of meterd, beside the floor and beside the libraries that do part of its work.

Times of one machine mean little on another one, and not much an hour later; ratios do. Whatever is
compared runs in the same process against the same server, in turns of a fraction of a second and in
random order; every figure is a median with its quartiles, and every ratio is taken between
neighbours in time.

    core/        servers, contenders, measuring, statistics
    peers/       other libraries, each the way its documentation says to use it
    scenarios/   what is measured; `python -m bench --list`
    report/      goals, JSON, Markdown, chart, the README's section

Run as `python -m bench` or `meterd bench`; `--quick` takes less than three minutes.
"""
