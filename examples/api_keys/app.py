"""An API with keys: monthly credits by plan, other resources by the 30 days, overage, top-ups.

    flask --app examples.api_keys.app:create_app run

`/v1/...` is for customers, who send their key; `/admin/...` is what your dashboard and your payment
provider's webhook call, with METERD_ADMIN_TOKEN.
"""

import hmac
import os
from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import Flask, Response, abort, g, request

from meterd import Meter, OpConflict, Plan, PolicyError, Pool, Price
from meterd.http.flask import require


def plan(name: str, credits: int, cents: int, overage: int | None = 0) -> Plan:
    """A plan with `credits` a month. `overage`: how many more are sold, and billed."""
    return Plan(
        name,
        price=Price(cents),
        includes=[
            Pool(
                "credits",
                credits,
                "month",
                overage=overage,
                bill=None if overage == 0 else "overage",
            ),
            Pool("ai-tokens", 100_000, "30d"),
            Pool("storage-mb", 5_000, "30d"),
            Pool("exports", 100, "30d"),
        ],
    )


PLANS = [
    plan("starter", 1_000, 900),  # 402 when they are used up
    plan("growth", 10_000, 4_900, overage=2_000),  # 2,000 more, on the next invoice
    plan("scale", 100_000, 29_900, overage=None),  # never refused, all of it on the invoice
]
FREE = {"credits": 0}  # asks for nothing: only the key has to be good


def create_app(meter: Meter | None = None, admin_token: str | None = None) -> Flask:
    """The application; without a meter, on METERD_URL or else on a private server."""
    if meter is None:
        at = os.environ.get("METERD_URL")
        meter = Meter(at, plans=PLANS) if at else Meter.embedded(plans=PLANS)
    token = admin_token or os.environ["METERD_ADMIN_TOKEN"]
    app = Flask(__name__)
    app.config["METERD_LEGACY"] = True  # X-Usage-Remaining, X-RateLimit-*
    _customers(app, meter)
    _admin(app, meter, token)
    return app


# What customers call ------------------------------------------------------------------------------


def _customers(app: Flask, meter: Meter) -> None:
    @app.post("/v1/complete")
    @require(meter, lambda r: {"ai-tokens": _number(r, "tokens")}, key=True)
    def complete() -> Any:
        """A credit (it is charged by itself) and as many AI tokens as are asked for, or neither."""
        return {"said": "so it goes"}

    @app.post("/v1/files")
    @require(meter, lambda r: {"storage-mb": _number(r, "mb")}, key=True)
    def upload() -> Any:
        return {"stored": True}

    @app.post("/v1/exports")
    @require(meter, {"exports": 1, "credits": 10}, key=True, hold=True)
    def export() -> Any:
        """Ten credits and one export, if it succeeds."""
        if _number(request, "rows") > 1_000_000:
            abort(413)  # an error gives back what was reserved
        return {"rows": _number(request, "rows")}

    @app.get("/v1/usage")
    @require(meter, FREE, key=True)
    def usage() -> Any:
        """Plan, and per resource its limit, what is used and left, and when it begins again."""
        found = meter.usage(g.meterd.verification.owner)
        return {
            "plan": found.plans.get("base"),
            "resources": {
                limit.name: {
                    "limit": limit.limit,
                    "used": limit.used,
                    "remaining": limit.remaining,
                    "overage": limit.overage,
                    "resets_at": limit.resets_at and limit.resets_at.isoformat(),
                }
                for limit in found
            },
        }


# What your side calls -----------------------------------------------------------------------------


def _admin(app: Flask, meter: Meter, token: str) -> None:
    def admin(view: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(view)
        def allowed(*args: Any, **named: Any) -> Any:
            given = request.headers.get("X-Admin-Token", "")
            if not hmac.compare_digest(given.encode(), token.encode()):
                abort(403)
            return view(*args, **named)

        return allowed

    @app.post("/admin/customers/<customer>/keys")
    @admin
    def create_key(customer: str) -> Any:
        """A key; its secret is shown this once. A customer's keys share the customer's credits."""
        asked = _object(request)
        key = meter.keys.create(customer, join=asked.get("plan"), name=asked.get("name"))
        return {"id": key.id, "secret": key.secret}, 201

    @app.delete("/admin/keys/<key_id>")
    @admin
    def revoke_key(key_id: str) -> Any:
        """Refused from the very next request on."""
        meter.keys.revoke(key_id)
        return Response(status=204)

    @app.put("/admin/customers/<customer>/plan")
    @admin
    def change_plan(customer: str) -> Any:
        """`change`: "keep" adds the difference to what is left; "reset" begins a full period now.

        Either is one atomic call: no balance is read here to be set there.
        """
        asked = _object(request)
        plan, payment = _text(asked, "plan"), _text(asked, "payment")
        meter.subscribe(customer, plan, change=asked.get("change", "keep"), op=payment)
        return Response(status=204)

    @app.post("/admin/customers/<customer>/grants")
    @admin
    def grant(customer: str) -> Any:
        """A top-up. A payment that is told twice is granted once."""
        asked = _object(request)
        made = meter.grant(
            customer,
            asked.get("resource", "credits"),
            _number(request, "amount"),
            expires=asked.get("expires"),
            source="top-up",
            op=_text(asked, "payment"),
        )
        return {"id": made.id}, 201

    @app.errorhandler(PolicyError)
    def mistake(error: PolicyError) -> Any:
        return {"error": str(error)}, 400

    @app.errorhandler(OpConflict)
    def another(error: OpConflict) -> Any:
        """A payment's id that was used for something else."""
        return {"error": str(error)}, 409


def _object(asked: Any) -> dict[str, Any]:
    """The request's JSON object."""
    body = asked.get_json(silent=True)
    if not isinstance(body, dict):
        abort(400, "the body has to be a JSON object")
    return body


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        abort(400, f"{name} has to be a text")
    return value


def _number(asked: Any, name: str) -> int:
    """A positive number from the request's JSON."""
    body = asked.get_json(silent=True)
    number = body.get(name) if isinstance(body, dict) else None
    if type(number) is not int or number < 1:
        abort(400, f"{name} has to be a positive integer")
    return number
