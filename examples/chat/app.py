"""An AI chat endpoint with plans: Free has 100 messages a month, Pro has 2,000.

    uvicorn --factory examples.chat.app:create_app

One request reserves a message and an estimate of its tokens before the model begins, counts tokens
while they stream, and commits what was really used when the response has been sent.
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from meterd import AsyncMeter, Code, Plan, Pool, Price
from meterd.http.fastapi import Permit, install, require

PLANS = [
    Plan(
        "free",
        name="Free",
        default=True,  # whoever is new has it, without a call
        includes=[Pool("messages", 100, "month"), Pool("tokens", 200_000, "month")],
    ),
    Plan(
        "pro",
        name="Pro",
        price=Price(2_000),
        includes=[Pool("messages", 2_000, "month"), Pool("tokens", 5_000_000, "month")],
    ),
]
ESTIMATE = 500  # tokens that an answer may take; what it took beyond is charged as well

Model = Callable[[str], AsyncIterator[str]]


class Question(BaseModel):
    prompt: str = Field(min_length=1)


def user_of(request: Request) -> str:
    """Your own authentication; here the token is the name."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise HTTPException(401, "who are you?", {"WWW-Authenticate": 'Bearer realm="chat"'})
    return f"user:{token}"


async def echo(prompt: str) -> AsyncIterator[str]:
    """A model that says what it was told, a token at a time. Yours is better."""
    for word in prompt.split():
        yield word + " "


def create_app(meter: AsyncMeter | None = None, model: Model = echo) -> FastAPI:
    """The application; without a meter, on METERD_URL or else on a private server."""
    if meter is None:
        at = os.environ.get("METERD_URL")
        meter = AsyncMeter(at, plans=PLANS) if at else AsyncMeter.embedded(plans=PLANS)
    known = meter

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with known:
            yield

    app = FastAPI(title="Chat", lifespan=lifespan)
    install(app)  # RateLimit fields on every response, problem+json for refusals

    a_message = require(
        meter,
        {"messages": 1, "tokens": ESTIMATE},
        subject=user_of,
        hold=True,
        statuses={Code.USAGE_EXCEEDED: 403},
    )

    @app.post("/chat")
    async def chat(
        question: Question, permit: Annotated[Permit, Depends(a_message)]
    ) -> StreamingResponse:
        """Streams an answer. 403 once the month's messages, or tokens, are used up."""

        async def answer() -> AsyncIterator[str]:
            async for token in model(question.prompt):
                permit.spend("tokens")  # no I/O; a client that leaves pays for what it got
                yield token

        return StreamingResponse(answer(), media_type="text/plain")

    @app.get("/usage")
    async def usage(user: Annotated[str, Depends(user_of)]) -> dict[str, Any]:
        """What the caller's plan includes and what is left of it."""
        found = await known.usage(user)
        return {
            "plan": found.plans["base"],
            "limits": {
                limit.name: {
                    "limit": limit.limit,
                    "used": limit.used,
                    "remaining": limit.remaining,
                    "resets_at": limit.resets_at,
                }
                for limit in found
            },
        }

    @app.post("/plan/{plan}", status_code=204)
    async def change_plan(plan: str, user: Annotated[str, Depends(user_of)]) -> None:
        """What a payment provider's webhook does. What was used this month stays used."""
        if plan not in await known.plans():
            raise HTTPException(404, "there is no such plan")
        await known.subscribe(user, plan)

    return app
