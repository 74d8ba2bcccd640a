"""stripe-handler: Stripe sends an event; once a day, everything is reconciled."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

log = logging.getLogger(__name__)

Fetched = tuple[Mapping[str, Any], datetime]
"""A subscription as Stripe's API returned it, its customer expanded; and the response's Date."""


def receive(connection: psycopg.Connection, body: str, fetch: Callable[[str], Fetched]) -> int:
    """Hand over an event whose signature is verified.

    Args:
        connection: as stripe_handler, in autocommit mode.
        body: of Stripe's request, as it came.
        fetch: gets a subscription from Stripe's API, by its id.

    Returns:
        The HTTP status of the answer.  500 has Stripe send the event again, for three days: time to
        correct what the event was refused for.
    """
    try:
        [[outcome]] = connection.execute("select handle_stripe_event(event => %s)", [body])
        if outcome == "ambiguous":
            time.sleep(1)  # to be of a later second than both events
            reconcile(connection, [fetch(json.loads(body)["data"]["object"]["id"])])
    except psycopg.Error as error:
        # Not the whole error, which may quote the event: that is personal.
        log.error("%s; %s", error.diag.message_primary or type(error), error.diag.message_hint)
        return 500
    if outcome in ("refused", "unlinked"):
        log.warning("a Stripe event was %s: see private.stripe_events", outcome)
    return 500 if outcome == "refused" else 200


def reconcile(connection: psycopg.Connection, subscriptions: Iterable[Fetched]) -> None:
    """Make the platform agree with Stripe, even where events were lost.

    Args:
        connection: as stripe_handler, in autocommit mode.
        subscriptions: nightly, all of Stripe's, those that are cancelled included.
    """
    for subscription, observed_at in subscriptions:
        try:
            connection.execute(
                "select handle_stripe_object(object => %s, observed_at => %s)",
                [Jsonb(subscription), observed_at],
            )
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            log.error("%s; %s", error.diag.message_primary, error.diag.message_hint)
