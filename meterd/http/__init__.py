"""HTTP: who may go on, and what every response tells of its limits.

This is the part without a framework. Adapters, each importing only its own framework:

    meterd.http.asgi      MeterMiddleware
    meterd.http.fastapi   require (for Depends), install; Starlette too
    meterd.http.wsgi      MeterMiddleware
    meterd.http.flask     require
    meterd.http.django    require, MeterMiddleware
    meterd.http.drf       throttle
"""

from meterd.http.fields import Reading, ratelimit_fields
from meterd.http.problem import Answer, answer
from meterd.http.require import Permit
from meterd.http.view import RequestView, api_key, client_address, client_subject

__all__ = [
    "Answer",
    "Permit",
    "Reading",
    "RequestView",
    "answer",
    "api_key",
    "client_address",
    "client_subject",
    "ratelimit_fields",
]
