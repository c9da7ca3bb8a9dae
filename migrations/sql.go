package migrations

// The statements of this package that are not migrations. None is on a hot path.
const (
	// Waits in the queue of one advisory lock, held by the session.
	sqlLock   = `SELECT pg_advisory_lock($1::bigint)`
	sqlUnlock = `SELECT pg_advisory_unlock($1::bigint)`

	// Above READ COMMITTED a transaction does not see what was committed while it waited.
	sqlIsolation = `SELECT current_setting('transaction_isolation')`

	// The same lock, held until the end of the transaction.
	sqlLockTx = `SELECT pg_advisory_xact_lock($1::bigint)`

	// Read by the Down section of a migration. Set for the session, since goose opens
	// the transaction, and set back before the connection is given up.
	sqlForceDown = `SELECT set_config('pgonce.force_down', $1::text, false)`

	// Whether the schema is there, and whether its name can stand unquoted, which
	// goose needs. Index: pg_namespace_nspname_index.
	sqlSchemaExists = `
SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1::text), quote_ident($1::text) = $1::text`

	sqlCreateSchema = `CREATE SCHEMA "pgonce"`

	// Index: pg_class_relname_nsp_index.
	sqlTableExists = `
SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = $1::text AND c.relname = $2::text)`

	// Primary key order, one row a migration.
	sqlApplied = `SELECT version, applied_at FROM "pgonce"."schema_version" ORDER BY version`
)
