-- The SQLite workload: inserts, indexes, joins, aggregates, text, all in memory.
create table item (id integer primary key, kind integer, price integer, name text);
create table sale (id integer primary key, item integer, amount integer, day integer);
begin;
with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)
insert into item select i, i * 7 % 50, i * 7919 % 1000, 'item ' || (i * 31 % 20000) from n;
with recursive n(i) as (select 1 union all select i + 1 from n where i < 60000)
insert into sale select i, i * 7919 % 20000 + 1, i % 9 + 1, i % 365 from n;
create index item_kind on item (kind);
create index sale_item on sale (item);
commit;
select kind, count(*), sum(amount * price) from sale join item on item.id = sale.item group by kind order by 3 desc limit 10;
select day, max(amount), total(price) from sale, item where item.id = sale.item and name like '%7%' group by day limit 20;
update item set price = price + 1 where kind in (select kind from item where id < 20);
delete from sale where day % 7 = 3;
select count(*), sum(price), (select sum(amount) from sale where item in (select id from item where kind < 25)) from item;
