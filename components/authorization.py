"""Who may do what: the authorization matrix, as data.

`TABLES` says it table by table, `AUTHORIZATION` role by role.  The services' privileges are granted
from it by Grants; the API roles' are granted in sql/repeatable/, beside the policies that they
belong to.  Made from it, sql/verify/70_authorization.sql asks a database for its tables, policies
and the API roles' privileges, 80_access.sql for what any other role has.
tests/database/test_authorization.py holds the server to every cell; docs/authorization.md shows
them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

GROUP = "platform_service"
"""The group role that the services' row-level policies name; a migration creates it."""

USER_FUNCTIONS = (
    "get_user_instance",
    "get_all_user_instances",
    "has_active_subscription",
    "check_user_permission",
    "check_usage_limits",
    "get_billing_metrics",
)
"""The functions that run as who calls them: they show what that role may read, and no more."""

USER_ACTIONS = ("start_instance",)
"""The functions by which a user changes own rows.  They run as who calls them, too: what that role
may not write, a trigger writes behind what it may."""

SERVICE_FUNCTIONS = (
    "track_usage",
    "record_usage",
    "provision_instance",
    "deprovision_instance",
    "update_instance_health",
    "reset_daily_usage",
    "calculate_storage_usage",
    "cleanup_expired_data",
    "auto_pause_inactive_instances",
    "instance_of_token",
    "verify_api_key",
    "export_account",
    "erase_account",
    "follow_subscriptions",
)
"""The functions that run as their owner, for services only."""

STRIPE_FUNCTIONS = ("handle_stripe_event", "handle_stripe_object")
"""The functions for Stripe's events, which run as their owner: for stripe_handler, service_role."""

FUNCTIONS = (*USER_FUNCTIONS, *USER_ACTIONS, *SERVICE_FUNCTIONS, *STRIPE_FUNCTIONS)
"""Every function of the schema public; each name stands for one."""

Privileges = Mapping[str, tuple[str, ...]]
"""Privilege -> the columns it is limited to, or ALL."""

ALL: tuple[str, ...] = ()
"""In a privilege's place of columns: the whole table."""

READ = {"SELECT": ALL}

FULL = {"SELECT": ALL, "INSERT": ALL, "UPDATE": ALL, "DELETE": ALL}
"""No TRUNCATE: it passes by the triggers that keep what still runs or is billed, and the audit."""

APPEND = {
    "INSERT": (
        "account_id",
        "actor_user_id",
        "action",
        "category",
        "resource_type",
        "resource_id",
        "details",
        "ip_address",
        "forwarded_for",
        "user_agent",
        "success",
    )
}
"""To audit_logs: who acted (`actor_role`) and when are the database's to say."""

TABLES: Mapping[str, Mapping[str, Privileges]] = {
    "public.accounts": {
        "authenticated": READ | {"UPDATE": ("full_name", "company_name")},
        "service_role": FULL,
        # No INSERT: an account is made by a trigger when its user signs up.
        "stripe_handler": READ | {"UPDATE": ("stripe_customer_id", "full_name", "company_name")},
        "admin_dashboard": READ,
    },
    "public.subscriptions": {
        "authenticated": READ,
        "service_role": FULL,
        "stripe_handler": {"SELECT": ALL, "INSERT": ALL, "UPDATE": ALL},
        "instance_provisioner": READ,
        "admin_dashboard": READ,
    },
    "public.instances": {
        "authenticated": READ | {"UPDATE": ("config",)},
        "service_role": FULL,
        "instance_provisioner": {
            "SELECT": ALL,
            "INSERT": (
                "account_id",
                "subscription_id",
                "runtime",
                "app_name",
                "app_config",
                "subdomain",
                "config",
                "cpu_limit",
                "memory_limit_mb",
                "storage_limit_gb",
            ),
            "UPDATE": (
                "runtime",
                "app_config",
                "subdomain",
                "status",
                "frontend_url",
                "api_url",
                "matrix_url",
                "cpu_limit",
                "memory_limit_mb",
                "storage_limit_gb",
                "health_status",
                "health_details",
                "last_health_check",
                "error_message",
                "cpu_used",
                "memory_used_mb",
                "storage_used_gb",
                "measured_at",
            ),
        },
        "admin_dashboard": READ,
    },
    "public.usage_metrics": {
        "authenticated": READ,
        "service_role": {
            "SELECT": ALL,
            "INSERT": ALL,
            # All but the counts by name, which functions write.
            "UPDATE": (
                "id",
                "account_id",
                "instance_id",
                "usage_date",
                "messages_sent",
                "messages_received",
                "error_count",
                "response_count",
                "response_time_ms",
                "storage_used_gb",
                "limit_exceeded",
                "activity_noted_until",
            ),
            "DELETE": ALL,
        },
        "instance_provisioner": READ,
        "admin_dashboard": READ,
    },
    "public.audit_logs": {
        "authenticated": READ,
        "service_role": FULL,
        "instance_provisioner": APPEND,
        "admin_dashboard": READ | APPEND,
    },
    "public.support_tickets": {
        "authenticated": {
            "SELECT": ALL,
            "INSERT": ("account_id", "instance_id", "subject", "description", "priority"),
            # Of all statuses a trigger leaves them the one: closed.
            "UPDATE": ("subject", "description", "priority", "status"),
        },
        "service_role": FULL,
        "admin_dashboard": {
            "SELECT": ALL,
            "INSERT": ("account_id", "instance_id", "subject", "description", "priority"),
            "UPDATE": ("priority", "status", "assignee", "resolution"),
        },
    },
    "public.instance_backups": {
        "authenticated": READ | {"INSERT": ("account_id", "instance_id", "backup_type")},
        "service_role": FULL,
        "instance_provisioner": {
            "SELECT": ALL,
            "INSERT": ("account_id", "instance_id", "backup_type", "retention_days"),
            "UPDATE": (
                "status",
                "location",
                "size_bytes",
                "retention_days",
                "started_at",
                "completed_at",
                "error_message",
            ),
        },
        "admin_dashboard": READ,
    },
    "public.api_keys": {
        "authenticated": {
            "SELECT": ALL,
            "INSERT": ("account_id", "name", "key_prefix", "key_hash", "permissions", "expires_at"),
            "UPDATE": ("name", "is_active"),
        },
        "service_role": FULL,
        "admin_dashboard": READ,
    },
    "private.tiers": {"instance_provisioner": READ},
    "private.retention": {},
    "private.instance_status_transitions": {},
    "private.reserved_subdomains": {},
    "private.released_subdomains": {},
    "private.instance_secrets": {"instance_provisioner": FULL},
    "private.provisioning": {
        # Rows are made and removed with the instances.
        "instance_provisioner": READ
        | {
            "UPDATE": (
                "due_at",
                "attempts",
                "lease",
                "leased_by",
                "leased_until",
                "applied",
                "held",
                "volumes",
            )
        },
    },
    "private.api_key_hashes": {},
    "private.usage_events": {},
    "private.database_backups": {"instance_provisioner": READ},
    "private.erasures": {"instance_provisioner": READ | {"UPDATE": ("volumes_deleted_at",)}},
    "private.stripe_events": {},
    "private.stripe_prices": {},
    "private.stripe_customers": {},
    "private.stripe_subscriptions": {},
}
"""Table -> role -> its privileges: a row for every table, also where no role may do anything."""


def _tables_of(role: str) -> dict[str, Privileges]:
    return {table: roles[role] for table, roles in TABLES.items() if role in roles}


@dataclass(frozen=True)
class Access:
    """What a role may do, and nothing else.

    Attributes:
        tables: table -> privilege -> columns, `ALL` for the whole table.
        functions: those of `FUNCTIONS` that it may execute.
        rows: whose rows: every customer's, or those of the user's own account only.
    """

    tables: Mapping[str, Privileges] = field(default_factory=dict)
    functions: tuple[str, ...] = ()
    rows: Literal["all", "own"] = "all"


API_ROLES: Mapping[str, Access] = {
    "anon": Access(_tables_of("anon")),
    "authenticated": Access(
        _tables_of("authenticated"), (*USER_FUNCTIONS, *USER_ACTIONS), rows="own"
    ),
    "service_role": Access(_tables_of("service_role"), FUNCTIONS),
}
"""The roles that requests through Supabase's API take; Supabase brings them."""


@dataclass(frozen=True)
class Service(Access):
    """A login role and exactly what its job needs.

    Attributes:
        member_of: the roles it is a member of.
        inherit: whether it has their privileges by itself, or only after `SET ROLE`.
        connection_limit: most connections at once.
        statement_timeout: milliseconds that a statement may run.
        lock_timeout: milliseconds that a statement may wait for a lock.
    """

    member_of: tuple[str, ...] = (GROUP,)
    inherit: bool = True
    connection_limit: int = 20
    statement_timeout: int = 15_000
    lock_timeout: int = 5_000


SERVICES: Mapping[str, Service] = {
    "stripe_handler": Service(_tables_of("stripe_handler"), STRIPE_FUNCTIONS),
    "instance_provisioner": Service(
        _tables_of("instance_provisioner"),
        (
            "provision_instance",
            "deprovision_instance",
            "update_instance_health",
            # What its chart's CronJobs run.
            "reset_daily_usage",
            "calculate_storage_usage",
            "cleanup_expired_data",
            "auto_pause_inactive_instances",
            "follow_subscriptions",
        ),
    ),
    # It asks by functions alone, so no policy concerns it; and instances wait for its answers.
    "instance_gateway": Service(
        functions=("record_usage", "instance_of_token", "verify_api_key"),
        member_of=(),
        statement_timeout=5_000,
        lock_timeout=2_000,
    ),
    # Like PostgREST's authenticator: nothing of its own, it takes the role of its request.
    "customer_portal": Service(member_of=("anon", "authenticated"), inherit=False),
    "admin_dashboard": Service(_tables_of("admin_dashboard"), USER_FUNCTIONS),
}

ADMINISTRATORS = (
    "supabase_admin",
    "supabase_auth_admin",
    "supabase_storage_admin",
    "supabase_functions_admin",
    "supabase_realtime_admin",
    "supabase_replication_admin",
    "supabase_read_only_user",
    "supabase_etl_admin",
    "dashboard_user",
    "pgbouncer",
    "authenticator",
    "cli_login_postgres",
)
"""Roles that may reach everything by what they are, not by a grant on what is ours: superusers,
members of predefined roles and of the API's.  These are Supabase's; a server's own stand here, too.
The one that made the server and the one that owns the tables need not."""

AUTHORIZATION: Mapping[str, Access] = {**API_ROLES, **SERVICES}
"""The authorization matrix: role -> what it may do."""


def policies(table: str) -> dict[str, tuple[str, ...]]:
    """Role -> the commands for which a table has a policy of that role.

    Of the API roles what they have a privilege for. The services have theirs as members of `GROUP`:
    it reads each table, and writes what one of them may.
    """
    found = {role: tuple(access) for role, access in TABLES[table].items() if role in API_ROLES}
    services = (TABLES[table].get(role, {}) for role in SERVICES)
    writes = dict.fromkeys(command for access in services for command in access)
    return found | {GROUP: tuple({"SELECT": None} | writes)}
