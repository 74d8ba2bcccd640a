"""What each statement locks, scans and rewrites, as PostgreSQL has it.

Source: AlterTableGetLockLevel in tablecmds.c, and "Explicit Locking" in the documentation.  The
tests hold it against servers, and fail for what the grammar has and no line is about.
"""

from collections.abc import Mapping
from typing import NamedTuple

SHARE_UPDATE_EXCLUSIVE, SHARE, SHARE_ROW_EXCLUSIVE, EXCLUSIVE, ACCESS_EXCLUSIVE = 4, 5, 6, 7, 8
"""Numbers of lock modes in PostgreSQL."""

HINDERS = {
    SHARE: "write to",
    SHARE_ROW_EXCLUSIVE: "write to",
    EXCLUSIVE: "write to",
    ACCESS_EXCLUSIVE: "read or write",
}
"""Lock mode -> what nobody else can do; lesser modes hinder nobody."""


class Effect(NamedTuple):
    """What a subcommand of ALTER TABLE does to its table.

    Attributes:
        lock: the mode in which it locks it.
        rule: what of it hurts whatever is in the table, by its rule.
        title: what it is called there.
    """

    lock: int
    rule: str = ""
    title: str = ""


_BRIEFLY = Effect(ACCESS_EXCLUSIVE)
_NO_WRITES = Effect(SHARE_ROW_EXCLUSIVE)
_BESIDE = Effect(SHARE_UPDATE_EXCLUSIVE)

ALTER_TABLE: Mapping[str, Effect] = {
    "AddColumn": _BRIEFLY,  # and see Reader._add_column
    "AddConstraint": _BRIEFLY,  # and see Reader._add_constraint; less for a foreign key
    "AddIdentity": _BRIEFLY,
    "AddInherit": _BRIEFLY,
    "AddOf": _BRIEFLY,
    "AlterColumnGenericOptions": _BRIEFLY,
    "AlterColumnType": _BRIEFLY,  # and see Reader._change_type
    "AlterConstraint": _BRIEFLY,
    "AttachPartition": _BESIDE,  # and see Reader._attach
    "ChangeOwner": _BRIEFLY,
    "ClusterOn": _BESIDE,
    "ColumnDefault": _BRIEFLY,
    "DetachPartition": Effect(ACCESS_EXCLUSIVE, "detach-partition"),  # less CONCURRENTLY
    "DetachPartitionFinalize": _BESIDE,
    "DisableRowSecurity": _BRIEFLY,
    "DisableRule": _BRIEFLY,
    "DisableTrig": _NO_WRITES,
    "DisableTrigAll": _NO_WRITES,
    "DisableTrigUser": _NO_WRITES,
    "DropCluster": _BESIDE,
    "DropColumn": _BRIEFLY,
    "DropConstraint": _BRIEFLY,
    "DropExpression": _BRIEFLY,
    "DropIdentity": _BRIEFLY,
    "DropInherit": _BRIEFLY,
    "DropNotNull": _BRIEFLY,
    "DropOf": _BRIEFLY,
    "DropOids": _BRIEFLY,
    "EnableAlwaysRule": _BRIEFLY,
    "EnableAlwaysTrig": _NO_WRITES,
    "EnableReplicaRule": _BRIEFLY,
    "EnableReplicaTrig": _NO_WRITES,
    "EnableRowSecurity": _BRIEFLY,
    "EnableRule": _BRIEFLY,
    "EnableTrig": _NO_WRITES,
    "EnableTrigAll": _NO_WRITES,
    "EnableTrigUser": _NO_WRITES,
    "ForceRowSecurity": _BRIEFLY,
    "GenericOptions": _BRIEFLY,
    "NoForceRowSecurity": _BRIEFLY,
    "ReplicaIdentity": _BRIEFLY,
    "ResetOptions": _BESIDE,
    "ResetRelOptions": _BESIDE,  # more for EXCLUSIVE_OPTIONS
    "SetAccessMethod": Effect(ACCESS_EXCLUSIVE, "table-rewrite", "SET ACCESS METHOD"),
    "SetCompression": _BRIEFLY,
    "SetExpression": Effect(ACCESS_EXCLUSIVE, "column-rewrite", "SET EXPRESSION"),
    "SetIdentity": _BRIEFLY,
    "SetLogged": Effect(ACCESS_EXCLUSIVE, "table-rewrite", "SET LOGGED"),
    "SetNotNull": _BRIEFLY,  # and see Reader._set_not_null
    "SetOptions": _BESIDE,
    "SetRelOptions": _BESIDE,  # more for EXCLUSIVE_OPTIONS
    "SetStatistics": _BESIDE,
    "SetStorage": _BRIEFLY,
    "SetTableSpace": Effect(ACCESS_EXCLUSIVE, "table-rewrite", "SET TABLESPACE"),
    "SetUnLogged": Effect(ACCESS_EXCLUSIVE, "table-rewrite", "SET UNLOGGED"),
    "ValidateConstraint": _BESIDE,  # and reads every row
}
"""Subcommand of ALTER TABLE -> what it does, beyond what depends on what it says."""

EXCLUSIVE_OPTIONS = {"check_option", "security_barrier", "security_invoker", "user_catalog_table"}
"""Options of a relation that are set under ACCESS EXCLUSIVE."""

LOCKS: Mapping[str, tuple[str, int]] = {
    "AlterPolicyStmt": ("table", ACCESS_EXCLUSIVE),
    "AlterSeqStmt": ("sequence", SHARE_ROW_EXCLUSIVE),
    "CreatePolicyStmt": ("table", ACCESS_EXCLUSIVE),
    "CreateTrigStmt": ("relation", SHARE_ROW_EXCLUSIVE),
    "RuleStmt": ("relation", ACCESS_EXCLUSIVE),
}
"""Statement that briefly locks one relation -> the node's field that names it, and how."""


class Kind(NamedTuple):
    """What a kind of object is to those who use the database.

    Attributes:
        title: what it is called.
        locked: what dropping or renaming it locks: "itself", "its table", or nothing.
        named: clients name it, so that a new name, or none, makes them fail.
    """

    title: str
    locked: str = ""
    named: bool = False


KINDS: Mapping[str, Kind] = {
    "ACCESS_METHOD": Kind("access method"),
    "AGGREGATE": Kind("aggregate", named=True),
    "AMOP": Kind("operator of a family"),
    "AMPROC": Kind("function of a family"),
    "ATTRIBUTE": Kind("attribute", named=True),
    "CAST": Kind("cast"),
    "COLLATION": Kind("collation"),
    "COLUMN": Kind("column", "its table", named=True),
    "CONVERSION": Kind("conversion"),
    "DATABASE": Kind("database", named=True),
    "DEFACL": Kind("default privilege"),
    "DEFAULT": Kind("default", "its table"),
    "DOMAIN": Kind("domain", named=True),
    "DOMCONSTRAINT": Kind("constraint of a domain"),
    "EVENT_TRIGGER": Kind("event trigger"),
    "EXTENSION": Kind("extension"),
    "FDW": Kind("foreign-data wrapper"),
    "FOREIGN_SERVER": Kind("foreign server"),
    "FOREIGN_TABLE": Kind("foreign table", "itself", named=True),
    "FUNCTION": Kind("function", named=True),
    "INDEX": Kind("index", "its table"),
    "LANGUAGE": Kind("language"),
    "LARGEOBJECT": Kind("large object"),
    "MATVIEW": Kind("materialized view", "itself", named=True),
    "OPCLASS": Kind("operator class"),
    "OPERATOR": Kind("operator"),
    "OPFAMILY": Kind("operator family"),
    "PARAMETER_ACL": Kind("privilege on a setting"),
    "POLICY": Kind("policy", "its table"),
    "PROCEDURE": Kind("procedure", named=True),
    "PUBLICATION": Kind("publication"),
    "PUBLICATION_NAMESPACE": Kind("schema of a publication"),
    "PUBLICATION_REL": Kind("table of a publication"),
    "ROLE": Kind("role", named=True),
    "ROUTINE": Kind("routine", named=True),
    "RULE": Kind("rule", "its table"),
    "SCHEMA": Kind("schema", named=True),
    "SEQUENCE": Kind("sequence", "itself", named=True),
    "STATISTIC_EXT": Kind("statistics"),
    "SUBSCRIPTION": Kind("subscription"),
    "TABCONSTRAINT": Kind("constraint", "its table"),
    "TABLE": Kind("table", "itself", named=True),
    "TABLESPACE": Kind("tablespace"),
    "TRANSFORM": Kind("transform"),
    "TRIGGER": Kind("trigger", "its table"),
    "TSCONFIGURATION": Kind("text search configuration"),
    "TSDICTIONARY": Kind("text search dictionary"),
    "TSPARSER": Kind("text search parser"),
    "TSTEMPLATE": Kind("text search template"),
    "TYPE": Kind("type", named=True),
    "USER_MAPPING": Kind("user mapping"),
    "VIEW": Kind("view", "itself", named=True),
}
"""Kind of object, as DROP and RENAME have it, without OBJECT_."""

HARMLESS = frozenset(
    """
    AlterCollationStmt AlterDatabaseRefreshCollStmt AlterDatabaseSetStmt AlterDatabaseStmt
    AlterEventTrigStmt AlterExtensionContentsStmt AlterExtensionStmt AlterFdwStmt
    AlterForeignServerStmt AlterObjectDependsStmt AlterOpFamilyStmt AlterOperatorStmt AlterOwnerStmt
    AlterPublicationStmt AlterRoleSetStmt AlterRoleStmt AlterStatsStmt AlterSubscriptionStmt
    AlterSystemStmt AlterTSConfigurationStmt AlterTSDictionaryStmt AlterTableSpaceOptionsStmt
    AlterTypeStmt AlterUserMappingStmt CallStmt CheckPointStmt ClosePortalStmt CommentStmt
    ConstraintsSetStmt CreateAmStmt CreateCastStmt CreateConversionStmt CreateEventTrigStmt
    CreateExtensionStmt CreateFdwStmt CreateForeignServerStmt CreateOpClassStmt CreateOpFamilyStmt
    CreatePLangStmt CreatePublicationStmt CreateRangeStmt CreateRoleStmt CreateStatsStmt
    CreateSubscriptionStmt CreateTableSpaceStmt CreateTransformStmt CreateUserMappingStmt
    CreatedbStmt DeallocateStmt DeclareCursorStmt DefineStmt DiscardStmt DropRoleStmt
    DropSubscriptionStmt DropTableSpaceStmt DropUserMappingStmt ExecuteStmt FetchStmt
    GrantRoleStmt ImportForeignSchemaStmt ListenStmt LoadStmt NotifyStmt ReassignOwnedStmt
    SecLabelStmt TransactionStmt UnlistenStmt VariableShowStmt
    """.split()  # noqa: SIM905
)
"""Statements that keep nobody from reading or writing a table, nor read one through."""

VOLATILE = frozenset(
    """
    array_sample array_shuffle brin_summarize_new_values brin_summarize_range clock_timestamp
    current_query currtid2 currval cursor_to_xml cursor_to_xmlschema gen_random_bytes
    gen_random_uuid gin_clean_pending_list lastval lo_close lo_creat lo_create lo_export
    lo_from_bytea lo_get lo_import lo_lseek lo_lseek64 lo_open lo_tell lo_tell64 lo_truncate
    lo_truncate64 lo_unlink loread lowrite nextval query_to_xml query_to_xml_and_xmlschema
    query_to_xmlschema random random_normal set_config setval timeofday ts_rewrite txid_status
    uuid_generate_v1 uuid_generate_v1mc uuid_generate_v4 uuidv4 uuidv7
    """.split()  # noqa: SIM905
)
"""Functions of PostgreSQL, pgcrypto and uuid-ossp whose value differs from row to row."""
