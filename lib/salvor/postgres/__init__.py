"""PostgreSQL: one file a subject; the System that ties them together is salvor.systems.postgres."""
