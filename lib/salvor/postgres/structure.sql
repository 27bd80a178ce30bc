-- One query a kind of object: its kind, its name, and its definition as text. Read by structure.py, which expands
--   ACL(column, kind, owner)   an access list as text: without grantors, and the same whether the default is written out or not
--   OWN(catalog, identifier)   true for what a user made and no extension owns

select 'database', 'encoding', pg_encoding_to_char(encoding) from pg_database where datname = current_database();

select 'schema', format('%I', nspname), concat_ws('|', pg_get_userbyid(nspowner), ACL(nspacl, 'n', nspowner))
from pg_namespace n
where nspname !~ '^pg_' and nspname <> 'information_schema' and (n.oid < 16384 or OWN(pg_namespace, n.oid));

select 'extension', format('%I', extname), format('%I (%s)', nspname, extversion)
from pg_extension e join pg_namespace n on n.oid = extnamespace
where e.oid >= 16384;

-- Columns in the order of their names: a dump may change the order of inherited ones.
select case relkind
        when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence'
        when 'f' then 'foreign table' when 'c' then 'type' else 'table' end,
    format('%I.%I', nspname, relname),
    concat_ws('|', relkind, relpersistence, relrowsecurity, relforcerowsecurity, relreplident, pg_get_userbyid(relowner),
        (select amname from pg_am where pg_am.oid = relam),
        (select string_agg(option, ',' order by option) from unnest(reloptions) option),
        ACL(relacl, case relkind when 'S' then 's' else 'r' end::"char", relowner),
        case relkind when 'p' then pg_get_partkeydef(c.oid) end,
        pg_get_expr(relpartbound, c.oid),
        (select string_agg(inhparent::regclass::text, ',' order by inhparent::regclass::text collate "C")
            from pg_inherits where inhrelid = c.oid),
        nullif(reloftype, 0)::regtype,
        case when relkind in ('v', 'm') then pg_get_viewdef(c.oid) end,
        (select concat_ws(',', seqtypid::regtype, seqstart, seqincrement, seqmin, seqmax, seqcache, seqcycle)
            from pg_sequence where seqrelid = c.oid),
        case relkind when 'S' then (
            select concat(refobjid::regclass, '.', attname)
            from pg_depend d join pg_attribute a on attrelid = refobjid and attnum = refobjsubid
            where classid = 'pg_class'::regclass and objid = c.oid and deptype in ('a', 'i')
                and refclassid = 'pg_class'::regclass and refobjsubid > 0) end,
        (select string_agg(concat_ws(' ', quote_ident(attname), format_type(atttypid, atttypmod), attnotnull, attidentity,
                attgenerated, attstorage, nullif(attcompression::text, ''), nullif(coalesce(attstattarget, -1), -1), attoptions,
                attfdwoptions, nullif(attcollation, 100)::regcollation, pg_get_expr(adbin, adrelid),
                case when attacl is not null then ACL(attacl, 'c', relowner) end), ';' order by attname collate "C")
            from pg_attribute a left join pg_attrdef on adrelid = attrelid and adnum = attnum
            where attrelid = c.oid and attnum > 0 and not attisdropped))
from pg_class c join pg_namespace n on n.oid = relnamespace
where relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c') and relpersistence <> 't'
    and nspname !~ '^pg_toast' and nspname <> 'information_schema' and OWN(pg_class, c.oid);

select 'index', format('%I.%I', nspname, c.relname), pg_get_indexdef(indexrelid)
from pg_index i join pg_class c on c.oid = indexrelid join pg_class t on t.oid = indrelid
    join pg_namespace n on n.oid = c.relnamespace
where indisvalid and t.relkind <> 't' and t.relpersistence <> 't' and OWN(pg_class, c.oid);

-- A partition's own copy of its parent's key (conparentid) gets a new name when it is loaded.
select 'constraint',
    concat_ws('.', coalesce(nullif(conrelid, 0)::regclass::text, contypid::regtype::text), quote_ident(conname)),
    concat_ws('|', pg_get_constraintdef(k.oid), connoinherit)
from pg_constraint k left join pg_class c on c.oid = conrelid
where conparentid = 0 and contype not in ('n', 't') and coalesce(relpersistence, 'p') <> 't'
    and OWN(pg_constraint, k.oid) and (c.oid is null or OWN(pg_class, c.oid));

select 'trigger', concat(tgrelid::regclass, '.', quote_ident(tgname)), concat_ws('|', pg_get_triggerdef(t.oid), tgenabled)
from pg_trigger t join pg_class c on c.oid = tgrelid
where not tgisinternal and tgparentid = 0 and relpersistence <> 't' and OWN(pg_class, c.oid);

select 'rule', concat(ev_class::regclass, '.', quote_ident(rulename)), concat_ws('|', pg_get_ruledef(r.oid), ev_enabled)
from pg_rewrite r join pg_class c on c.oid = ev_class
where rulename <> '_RETURN' and relpersistence <> 't' and OWN(pg_class, c.oid);

select 'policy', concat(polrelid::regclass, '.', quote_ident(polname)),
    concat_ws('|', polcmd, polpermissive,
        (select string_agg(case role when 0 then 'public' else pg_get_userbyid(role) end, ','
            order by pg_get_userbyid(role) collate "C") from unnest(polroles) role),
        pg_get_expr(polqual, polrelid), '|', pg_get_expr(polwithcheck, polrelid))
from pg_policy;

select 'function', p.oid::regprocedure::text,
    concat_ws('|', pg_get_userbyid(proowner), ACL(proacl, 'f', proowner), prokind,
        case prokind when 'a' then (
            select concat_ws(',', aggtransfn, aggfinalfn, aggcombinefn, aggtranstype::regtype, agginitval, aggmtransfn,
                aggsortop::regoperator)
            from pg_aggregate a where aggfnoid = p.oid)
        else pg_get_functiondef(p.oid) end)
from pg_proc p join pg_namespace n on n.oid = pronamespace
where nspname <> 'information_schema' and nspname !~ '^pg_temp' and OWN(pg_proc, p.oid);

-- Composite types stand with the relations; arrays and multiranges follow from their element.
select 'type', t.oid::regtype::text,
    concat_ws('|', typtype, pg_get_userbyid(typowner), ACL(typacl, 'T', typowner),
        case typtype when 'd' then concat_ws(',', format_type(typbasetype, typtypmod), typnotnull, typdefault,
            nullif(typcollation, 100)::regcollation) end,
        (select string_agg(quote_literal(enumlabel), ',' order by enumsortorder) from pg_enum where enumtypid = t.oid),
        (select concat_ws(',', rngsubtype::regtype, nullif(rngcollation, 0)::regcollation, rngcanonical, rngsubdiff)
            from pg_range where rngtypid = t.oid))
from pg_type t join pg_namespace n on n.oid = typnamespace
where typtype in ('b', 'd', 'e', 'r') and typcategory <> 'A' and nspname <> 'information_schema' and OWN(pg_type, t.oid);

select 'statistics', format('%I.%I', nspname, stxname), pg_get_statisticsobjdef(s.oid)
from pg_statistic_ext s join pg_namespace n on n.oid = stxnamespace
where OWN(pg_statistic_ext, s.oid);

select 'default privileges',
    concat_ws(' ', pg_get_userbyid(defaclrole), defaclobjtype, nullif(defaclnamespace, 0)::regnamespace),
    (select string_agg(concat(case grantee when 0 then 'public' else pg_get_userbyid(grantee) end, ' ', privilege_type, is_grantable),
        ',' order by pg_get_userbyid(grantee) collate "C", privilege_type) from aclexplode(defaclacl))
from pg_default_acl;

select 'event trigger', quote_ident(evtname), concat_ws('|', evtevent, evtfoid::regprocedure, evtenabled, evttags)
from pg_event_trigger e
where OWN(pg_event_trigger, e.oid);

select 'publication', quote_ident(pubname),
    concat_ws('|', puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot,
        (select string_agg(prrelid::regclass::text, ',' order by prrelid::regclass::text collate "C")
            from pg_publication_rel where prpubid = p.oid))
from pg_publication p;

select 'collation', format('%I.%I', nspname, collname), concat_ws('|', collprovider, collisdeterministic, collcollate)
from pg_collation c join pg_namespace n on n.oid = collnamespace
where nspname <> 'pg_catalog' and OWN(pg_collation, c.oid);

-- The rest by its identity: that it is there.
select o.type, o.identity, ''
from (
    select 'pg_cast'::regclass as catalog, oid from pg_cast union all
    select 'pg_operator'::regclass, oid from pg_operator union all
    select 'pg_opclass'::regclass, oid from pg_opclass union all
    select 'pg_opfamily'::regclass, oid from pg_opfamily union all
    select 'pg_conversion'::regclass, oid from pg_conversion union all
    select 'pg_am'::regclass, oid from pg_am union all
    select 'pg_language'::regclass, oid from pg_language union all
    select 'pg_transform'::regclass, oid from pg_transform union all
    select 'pg_ts_config'::regclass, oid from pg_ts_config union all
    select 'pg_ts_dict'::regclass, oid from pg_ts_dict union all
    select 'pg_ts_parser'::regclass, oid from pg_ts_parser union all
    select 'pg_ts_template'::regclass, oid from pg_ts_template union all
    select 'pg_foreign_data_wrapper'::regclass, oid from pg_foreign_data_wrapper union all
    select 'pg_foreign_server'::regclass, oid from pg_foreign_server union all
    select 'pg_user_mapping'::regclass, oid from pg_user_mapping
) x, pg_identify_object(x.catalog, x.oid, 0) o
where x.oid >= 16384
    and not exists (select from pg_depend m where m.classid = x.catalog and m.objid = x.oid and m.deptype = 'e');

select 'comment', concat_ws(' ', o.type, o.identity), description
from pg_description d, pg_identify_object(classoid, objoid, objsubid) o
where (objoid >= 16384 or (classoid = 'pg_namespace'::regclass and objoid = to_regnamespace('public')))
    and not exists (select from pg_depend m where m.classid = d.classoid and m.objid = d.objoid and m.deptype = 'e')
    and classoid not in ('pg_extension'::regclass, 'pg_largeobject'::regclass);

select 'large objects', 'owners and grants',
    sum(hashtextextended(concat_ws('|', oid, pg_get_userbyid(lomowner), ACL(lomacl, 'L', lomowner)), 0))::text
from pg_largeobject_metadata
having count(*) > 0;
