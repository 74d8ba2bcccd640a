"""docs/reference.md is the live catalog of a platform, on every version of PostgreSQL."""

from components import ROOT
from docs.generate import reference
from tests.support.customers import Db


def lines(db: Db) -> list[str]:
    return "\n".join(reference.lines(db.connection)).splitlines()


def test_the_document_is_the_platforms_catalog(db: Db) -> None:
    assert lines(db) == (ROOT / "docs" / "reference.md").read_text().splitlines()


def test_whatever_is_in_the_catalog_is_in_the_document(db: Db) -> None:
    before = lines(db)
    db.run(
        """create table public.made (
             id uuid primary key,
             account_id uuid unique references public.accounts,
             a_b numeric(5, 2) generated always as (1) stored
           );
           comment on table public.made is 'A table.';
           comment on column public.made.a_b is 'A column.';
           create unique index made_twice on public.made (a_b) where id is null;
           create policy "a policy" on public.made for delete to anon using (a_b > 1);
           create trigger a_trigger before update on public.made
             for each row when (old.id = new.id) execute function private.set_updated_at();
           create function public.made(a int default 1) returns table (b int, c text)
             stable language sql security definer return (1, 'a');
           comment on function public.made is 'A function.';
           grant execute on function public.made to anon"""
    )
    assert [line for line in lines(db) if line not in before] == [
        '  "public.accounts" |o--o| "public.made" : "account_id"',
        '  "public.made" {',
        "    uuid account_id UK, FK",
        "### public.made",
        "A table.",
        "| `id` | `uuid` |  |  |  |",
        "| `account_id` | `uuid` | yes |  |  |",
        "| `a_b` | `numeric(5,2)` | yes | `generated: 1` | A column. |",
        "- `made_pkey`: `PRIMARY KEY (id)`",
        "- `made_account_id_key`: `UNIQUE (account_id)`",
        "- `made_account_id_fkey`: `FOREIGN KEY (account_id) REFERENCES public.accounts(id)`",
        "- `made_twice`: `UNIQUE (a_b) WHERE id IS NULL`",
        "| `a_trigger` | `BEFORE UPDATE WHEN (old.id = new.id)` | `private.set_updated_at()` |",
        "| a policy | `anon` | `DELETE` | `a_b > 1::numeric` |  |",
        "### made",
        "A function.",
        "made(a integer DEFAULT 1) returns TABLE (",
        "  b integer,",
        "  c text)",
        "Stable, with the owner's rights, for `anon`",
    ]
