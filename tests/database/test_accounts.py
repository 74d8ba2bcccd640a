"""The rules of accounts: made with the user, an email and a Stripe id each."""

import pytest
from psycopg.errors import CheckViolation, NotNullViolation, UniqueViolation

from tests.support.customers import ANN, BOB, NEWCOMER, Db


def test_a_new_auth_user_gets_an_account_of_the_same_id(db: Db) -> None:
    db.sign_up(NEWCOMER, " New@x.example ", full_name=" New ", company_name="x" * 300)
    found = db.run("select * from accounts where id = %s", NEWCOMER.account)
    assert [row[1:5] for row in found] == [("New@x.example", "New", "x" * 200, None)]


def test_a_user_without_email_gets_an_account_with_the_first_and_it_follows(db: Db) -> None:
    db.sign_up(NEWCOMER, None)
    emails = "select email from accounts where id = %s"
    assert db.run(emails, NEWCOMER.account) == []
    for email in ("first@x.example", "second@x.example"):
        db.run("update auth.users set email = %s where id = %s", email, NEWCOMER.account)
        assert db.run(emails, NEWCOMER.account) == [(email,)]


def test_an_email_is_not_null_and_unique_whatever_its_case(db: Db) -> None:
    with db.refused(NotNullViolation):
        db.update("accounts", ANN.account, email=None)
    with db.refused(UniqueViolation, "accounts_email_key"):
        db.update("accounts", BOB.account, email=ANN.email.title())


def test_a_second_user_with_an_email_signs_up_and_the_first_account_keeps_the_email(
    db: Db,
) -> None:
    db.run("alter table auth.users drop constraint if exists users_email_key")  # as SSO may
    emails = "select email from accounts where id = %s"
    db.sign_up(NEWCOMER, ANN.email.upper(), full_name="New")
    duplicate = f"{NEWCOMER.account}@duplicate.invalid"
    found = db.run("select email, full_name from accounts where id = %s", NEWCOMER.account)
    assert found == [(duplicate, "New")]
    actions = [row[0] for row in db.audited(NEWCOMER).values()]
    assert actions == ["account.created"]
    for email, kept in (("own@x.example", "own@x.example"), (ANN.email, duplicate)):
        db.run("update auth.users set email = %s where id = %s", email, NEWCOMER.account)
        assert db.one(emails, NEWCOMER.account) == kept
    assert db.one(emails, ANN.account) == ANN.email


@pytest.mark.parametrize("table", ["accounts", "subscriptions"])
def test_a_stripe_id_is_unique_and_not_empty(db: Db, table: str) -> None:
    column = {"accounts": "stripe_customer_id", "subscriptions": "stripe_subscription_id"}[table]
    ann, bob = (each.account if table == "accounts" else each.subscription for each in (ANN, BOB))
    with db.acting("stripe_handler"):
        db.update(table, ann, **{column: "stripe_1"})
        with db.refused(UniqueViolation):
            db.update(table, bob, **{column: "stripe_1"})
        with db.refused(CheckViolation):
            db.update(table, bob, **{column: ""})
        db.update(table, bob, **{column: "stripe_2"})
