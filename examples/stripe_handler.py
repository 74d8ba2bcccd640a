"""stripe-handler: Stripe sends an event."""

import logging

import psycopg

log = logging.getLogger(__name__)


def receive(connection: psycopg.Connection, body: str) -> int:
    """Hand over an event whose signature is verified.

    Args:
        connection: as stripe_handler, in autocommit mode.
        body: of Stripe's request, as it came.

    Returns:
        The HTTP status of the answer.  Whatever the error, 500 has Stripe send the event again,
        for three days: time to teach the database what it does not know yet.
    """
    try:
        [[outcome]] = connection.execute("select handle_stripe_event(event => %s)", [body])
    except psycopg.Error as error:
        # Not the whole error, which may quote the event: that is personal.
        log.error("%s; %s", error.diag.message_primary or type(error), error.diag.message_hint)
        return 500
    if outcome == "unlinked":
        log.warning("a Stripe event is of no account yet: has its customer metadata.account_id?")
    return 200
