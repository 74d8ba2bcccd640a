"""admin-dashboard: the staff sees every customer, and works on tickets."""

from datetime import date
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

import psycopg
from psycopg.rows import class_row


class Customer(NamedTuple):
    """A customer, with what was used between two days."""

    email: str
    tier: str | None
    status: str | None
    total_messages: int
    peak_storage_gb: Decimal


def customers(connection: psycopg.Connection, start: date, end: date) -> list[Customer]:
    """Every customer; both days are UTC days and inclusive."""
    return (
        connection.cursor(row_factory=class_row(Customer))
        .execute(
            """select account.email, plan.tier, plan.status, usage.total_messages,
                      usage.peak_storage_gb
                 from accounts as account
                 left join subscriptions as plan
                   on plan.account_id = account.id and plan.status <> 'cancelled'
                cross join get_billing_metrics(
                  account_id => account.id, start_date => %s, end_date => %s
                ) as usage
                order by account.email""",
            [start, end],
        )
        .fetchall()
    )


def resolve(connection: psycopg.Connection, ticket: UUID, staff: UUID, resolution: str) -> bool:
    """Resolve a ticket, and say in the audit log who did; False if there is none."""
    resolved = connection.execute(
        """with resolved as (
             update support_tickets
                set status = 'resolved', assignee = %(staff)s::text, resolution = %(resolution)s
              where id = %(ticket)s
             returning id, account_id
           )
           insert into audit_logs
             (account_id, actor_user_id, action, category, resource_type, resource_id)
           select account_id, %(staff)s, 'support_ticket.resolved', 'support', 'support_ticket', id
             from resolved""",
        {"staff": staff, "resolution": resolution, "ticket": ticket},
    )
    return resolved.rowcount == 1
