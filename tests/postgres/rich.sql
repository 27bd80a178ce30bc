-- A database with one of most kinds of object that pg_dump knows, for round trips.
CREATE EXTENSION citext WITH SCHEMA public;
CREATE EXTENSION pgcrypto WITH SCHEMA public;
COMMENT ON SCHEMA public IS 'it''s; public -- really';
CREATE SCHEMA app AUTHORIZATION rich_owner;
CREATE SCHEMA "odd ""na;me"" -- 名";
SET ROLE rich_owner;
CREATE TYPE app.mood AS ENUM ('sad; or not', 'it''s ok', '\', '名');
CREATE TYPE app.pair AS (a integer, b text);
CREATE TYPE app.period AS RANGE (subtype = timestamptz);
CREATE DOMAIN app.code AS text CONSTRAINT code_check CHECK (VALUE ~ '^[A-Z]\d;?$') NOT NULL;
CREATE COLLATION app.byte (provider = libc, locale = 'C');

CREATE FUNCTION app.plain(i integer) RETURNS integer LANGUAGE sql IMMUTABLE AS $$ SELECT i + 1; $$;
CREATE FUNCTION app.atomic(i integer) RETURNS text LANGUAGE sql STABLE
    BEGIN ATOMIC
        SELECT CASE WHEN i > 0 THEN ';' ELSE (CASE i WHEN 0 THEN 'END' ELSE 'x' END) END;
        SELECT 'last;' || i;
    END;
CREATE FUNCTION app.short(i integer) RETURNS integer LANGUAGE sql IMMUTABLE RETURN i * 2;
CREATE FUNCTION app.trap() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path TO 'app', 'pg_temp' AS $body$
BEGIN
    -- ; $$ ' " /*
    NEW.note := coalesce(NEW.note, $$a;b$$) || E'\'\\;';
    RETURN NEW;
END; $body$;
CREATE PROCEDURE app.nothing(INOUT n integer) LANGUAGE plpgsql AS 'BEGIN n := n; END';
CREATE AGGREGATE app.total(integer) (sfunc = int4pl, stype = integer, initcond = '0');
CREATE FUNCTION app.same(a app.pair, b app.pair) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT a.a = b.a';
CREATE OPERATOR app.=== (leftarg = app.pair, rightarg = app.pair, function = app.same);
CREATE FUNCTION app.to_text(app.pair) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1.b';
CREATE CAST (app.pair AS text) WITH FUNCTION app.to_text(app.pair);
CREATE TEXT SEARCH CONFIGURATION app.words (COPY = simple);

CREATE TABLE app.people (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email public.citext UNIQUE,
    mood app.mood DEFAULT 'it''s ok',
    pair app.pair,
    code app.code DEFAULT 'A1',
    tags text[],
    doc jsonb,
    twice integer GENERATED ALWAYS AS (length(note) * 2) STORED,
    note text COLLATE app.byte,
    boss bigint REFERENCES app.people DEFERRABLE INITIALLY DEFERRED,
    picture bytea,
    amount numeric,
    bits bit varying(8),
    CONSTRAINT positive CHECK (amount >= 0)
) WITH (fillfactor = 80);
INSERT INTO app.people (email, pair, tags, doc, note, boss, picture, amount, bits)
    SELECT 'u' || i || '@example.org', ROW (i, 'b;' || i)::app.pair, ARRAY['a', NULL, '{;}'], jsonb_build_object('k;', i),
           CASE i % 5 WHEN 0 THEN E'tab\there\nnew\\line\r' WHEN 1 THEN '\.' WHEN 2 THEN NULL WHEN 3 THEN '' ELSE '名 ''"; --' END,
           nullif(i % 7, 0), decode(md5(i::text), 'hex'), i / 3.0, (i % 256)::bit(8)::varbit
    FROM generate_series(1, 500) AS i;
COMMENT ON TABLE app.people IS E'line one;\n\\! touch /tmp/never\n\\.\n''quoted''';
COMMENT ON COLUMN app.people.note IS 'semi;colon';
CREATE INDEX people_expression ON app.people (lower(note), ((doc ->> 'k;'))) WHERE amount > 1;
COMMENT ON INDEX app.people_expression IS 'an index';
CREATE INDEX people_gin ON app.people USING gin (doc);
ALTER TABLE app.people CLUSTER ON people_pkey;
ALTER TABLE app.people ALTER COLUMN note SET STATISTICS 500;
CREATE STATISTICS app.related (dependencies) ON amount, boss FROM app.people;
CREATE TRIGGER people_trap BEFORE INSERT OR UPDATE ON app.people FOR EACH ROW WHEN (NEW.note IS NOT NULL) EXECUTE FUNCTION app.trap();
ALTER TABLE app.people DISABLE TRIGGER people_trap;
CREATE VIEW app.happy AS SELECT id, note FROM app.people WHERE mood <> '\'::app.mood AND note <> ';';
CREATE VIEW app.grouped AS SELECT p.*, count(*) AS n FROM app.people p GROUP BY p.id;
CREATE RULE happy_delete AS ON DELETE TO app.happy DO INSTEAD (UPDATE app.people SET note = ';' WHERE id = old.id; DELETE FROM app.people WHERE id = old.id);

CREATE TABLE app.sales (id integer NOT NULL, at date NOT NULL, region text NOT NULL, price money) PARTITION BY RANGE (at);
CREATE TABLE app.sales_2025 PARTITION OF app.sales FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY LIST (region);
CREATE TABLE app.sales_2025_eu PARTITION OF app.sales_2025 FOR VALUES IN ('eu');
CREATE TABLE app.sales_2025_kr PARTITION OF app.sales_2025 FOR VALUES IN ('kr');
CREATE TABLE app.sales_rest PARTITION OF app.sales DEFAULT;
ALTER TABLE app.sales ADD CONSTRAINT sales_key PRIMARY KEY (id, at, region);
CREATE INDEX sales_price ON app.sales (price);
INSERT INTO app.sales SELECT i, DATE '2025-06-01' + i, CASE i % 2 WHEN 0 THEN 'eu' ELSE 'kr' END, i::money FROM generate_series(1, 400) AS i;
CREATE TABLE app.regions (region text PRIMARY KEY);
INSERT INTO app.regions VALUES ('eu'), ('kr');
CREATE TABLE app.refunds (id integer PRIMARY KEY, sale integer, at date, region text, FOREIGN KEY (sale, at, region) REFERENCES app.sales);
INSERT INTO app.refunds SELECT id, id, at, region FROM app.sales WHERE id < 50;
ALTER TABLE app.sales ADD CONSTRAINT sales_currency FOREIGN KEY (region) REFERENCES app.regions;

ALTER TABLE app.refunds ADD CONSTRAINT loose FOREIGN KEY (region) REFERENCES app.regions NOT VALID;
CREATE TABLE app.parent (a integer DEFAULT 1, b text);
CREATE TABLE app.child (c integer) INHERITS (app.parent);
ALTER TABLE app.child ALTER COLUMN a SET DEFAULT 2;
INSERT INTO app.child VALUES (1, 'one', 2);
CREATE TABLE app.rooms (room integer, during tstzrange, EXCLUDE USING gist (during WITH &&));
INSERT INTO app.rooms VALUES (1, '[2025-01-01, 2025-01-02)'), (2, 'empty');
CREATE UNLOGGED TABLE app.scratch (t timestamptz, i interval, n inet, p point, x xml, f double precision);
INSERT INTO app.scratch VALUES ('infinity', '-1 day 02:03:04', '10.0.0.0/8', '(1,2)', '<a>;</a>', 'NaN'), (NULL, NULL, NULL, NULL, NULL, '-Infinity');
CREATE TABLE app.nothing ();
INSERT INTO app.nothing DEFAULT VALUES;
CREATE TABLE app.empty (a integer);
CREATE SEQUENCE app.counter START 10 INCREMENT -5 MINVALUE -1000 MAXVALUE 100 CYCLE;
SELECT nextval('app.counter'), nextval('app.counter');
CREATE TABLE app.left_side (id integer PRIMARY KEY, other integer);
CREATE TABLE app.right_side (id integer PRIMARY KEY, other integer REFERENCES app.left_side);
ALTER TABLE app.left_side ADD FOREIGN KEY (other) REFERENCES app.right_side;
INSERT INTO app.left_side VALUES (1, NULL);
INSERT INTO app.right_side VALUES (1, 1);
UPDATE app.left_side SET other = 1;
CREATE MATERIALIZED VIEW app.summary AS SELECT mood, count(*) AS n, app.atomic(3) AS t FROM app.people GROUP BY mood;
CREATE UNIQUE INDEX summary_mood ON app.summary (mood);
CREATE MATERIALIZED VIEW app.stale AS SELECT 1 AS one WITH NO DATA;
CREATE TABLE app.guarded (id integer PRIMARY KEY, owner name DEFAULT current_user);
INSERT INTO app.guarded VALUES (1, 'rich_reader');
ALTER TABLE app.guarded ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.guarded FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON app.guarded FOR SELECT TO rich_reader, rich_owner USING (owner = current_user);
ALTER TABLE app.left_side REPLICA IDENTITY USING INDEX left_side_pkey;
GRANT USAGE ON SCHEMA app TO rich_reader;
GRANT SELECT, UPDATE (note) ON app.people TO rich_reader WITH GRANT OPTION;
GRANT EXECUTE ON FUNCTION app.short(integer) TO rich_reader;
REVOKE ALL ON FUNCTION app.plain(integer) FROM PUBLIC;
REVOKE DELETE ON app.rooms FROM rich_owner;
ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO rich_reader;
RESET ROLE;
SET ROLE rich_reader;
GRANT SELECT ON app.people TO PUBLIC;
RESET ROLE;
CREATE TABLE "odd ""na;me"" -- 名"."ta;ble
new ""line""" ("co;l'umn" text DEFAULT ';''', "select" integer PRIMARY KEY);
INSERT INTO "odd ""na;me"" -- 名"."ta;ble
new ""line""" VALUES ('a;b''c', 1);
ALTER TABLE "odd ""na;me"" -- 名"."ta;ble
new ""line""" OWNER TO "rich; ""odd""";
GRANT SELECT ON "odd ""na;me"" -- 名"."ta;ble
new ""line""" TO rich_reader, PUBLIC;
ALTER SCHEMA "odd ""na;me"" -- 名" OWNER TO "rich; ""odd""";
SELECT lo_from_bytea(4711, decode(repeat('00ff27', 10000), 'hex'));
ALTER LARGE OBJECT 4711 OWNER TO rich_owner;
COMMENT ON LARGE OBJECT 4711 IS 'large; object';
GRANT SELECT ON LARGE OBJECT 4711 TO rich_reader;
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE PUBLICATION chosen FOR TABLE app.people (id, email), app.rooms WHERE (room > 1);
