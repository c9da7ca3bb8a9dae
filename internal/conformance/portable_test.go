//go:build unix

package conformance_test

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// The subset of SQL that runs unchanged behind a transaction pooler and on a distributed
// Postgres. Each rule finds what must not be in a statement.
var rules = map[string]*regexp.Regexp{
	"a table without its schema, quoted": regexp.MustCompile(`(?is)\b(?:FROM|JOIN|INTO|UPDATE|TABLE)\s+(?:ONLY\s+)?(?:[a-z_][a-z0-9_]*\s*(?:$|[\s,;)])|pgonce\.)`),
	"SET":                                regexp.MustCompile(`(?i)(^|;)\s*(RE)?SET\s`),
	"a setting that outlives the transaction":                        regexp.MustCompile(`(?is)set_config\([^)]*false\s*\)`),
	"LISTEN, NOTIFY or a temporary object":                           regexp.MustCompile(`(?i)\b(LISTEN|NOTIFY|UNLISTEN|TEMP|TEMPORARY|PREPARE|DISCARD)\b`),
	"a function that is not IMMUTABLE in ON CONFLICT ... WHERE":      regexp.MustCompile(`(?is)ON\s+CONFLICT.*WHERE.*\b[a-z_]+\(`),
	"clock_timestamp() or nextval() in an UPDATE":                    regexp.MustCompile(`(?is)UPDATE.*\b(clock_timestamp|nextval)\(`),
	"now() in an UPDATE: after a wait it is the time of long before": regexp.MustCompile(`(?is)UPDATE.*\bnow\(\)`),
	"a session advisory lock":                                        regexp.MustCompile(`(?i)pg_(try_)?advisory_(lock|unlock)`),
}

// onSession is why the statements of session locks may not follow the rules.
const onSession = "runs on sessions of our own, which are refused behind a pooler in transaction mode"

// Statements that may not follow a rule, and why.
var exceptions = map[string]string{
	"migrations.sqlLock":         "migrations need a direct connection, and say so",
	"migrations.sqlUnlock":       "migrations need a direct connection, and say so",
	"migrations.sqlForceDown":    "migrations need a direct connection, and say so",
	"migrations.sqlCreateSchema": "",
	"migrations.sqlSchemaExists": "reads the catalog",
	"migrations.sqlTableExists":  "reads the catalog",
	"idem.sqlPurgeTake":          "SKIP LOCKED names no table",
	"dblock.sqlNewEpoch":         "DO UPDATE names no table",
	"idem.sqlStore":              "DO UPDATE names no table",
	"idem.sqlTakeLock":           "FOR UPDATE SKIP LOCKED names no table",
	"idem.sqlStoreTx":            "DO UPDATE names no table",
	"smtest.sqlUpsert":           "DO UPDATE names no table",
	"smtest.sqlMerge":            "UPDATE names no table in a MERGE",
	"smtest.sqlCopy":             "STDIN is no table",
	"dblock.sqlSettings":         onSession,
	"dblock.sqlServerSettings":   onSession,
	"dblock.sqlReady":            onSession,
	"dblock.sqlJoin":             onSession,
	"dblock.sqlTakeOne":          onSession,
	"dblock.sqlSlice":            onSession,
	"dblock.sqlUnlock":           onSession,
	"dblock.sqlAlive":            onSession,
	"dblock.sqlTake":             onSession,
	"dblock.sqlTakeShared":       onSession,
	"dblock.sqlDrop":             onSession,
	"dblock.sqlDropShared":       onSession,
	"dblock.sqlDropAll":          onSession,
	"dblock.sqlPeek":             onSession,
	"dblock.sqlQueue":            onSession,
	"dblock.sqlQueueShared":      onSession,
	"dblock.sqlOwn":              onSession,
	"dblock.sqlSettle":           onSession,
}

// Statements that not every server can prepare.
var unprepared = map[string]bool{
	"migrations.sqlCreateSchema": true, // DDL
	"smtest.sqlCopy":             true, // it is none
	"smtest.sqlMerge":            true, // Postgres 15
}

// Every SQL constant of the library is portable, and the server can prepare it against the
// migrated schema, for another schema's name too.
func TestEverySQLConstantIsPortableAndValid(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()

	db.Exec(t, `CREATE TABLE orders (id bigint PRIMARY KEY, state text, since timestamptz)`) // what texts about a user's table are written for
	constants := sqlConstants(t)
	if len(constants) < 10 {
		t.Fatalf("found only %v", slices.Sorted(maps.Keys(constants)))
	}
	for name, sql := range constants {
		if _, ok := exceptions[name]; !ok {
			for _, finding := range findings(sql) {
				t.Errorf("%s has %s", name, finding)
			}
		}
		if unprepared[name] {
			continue
		}
		if _, err := conn.Prepare(t.Context(), name, sql); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The rules have to be able to fail.
func TestPortabilityRulesFindWhatTheyForbid(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]int{
		`SELECT 1 FROM idem_record`: 1, `SELECT 1 FROM pgonce.idem_record`: 1, `SELECT 1 FROM "pgonce"."idem_record"`: 0,
		`SET lock_timeout = 1`: 1, `SELECT set_config('a', 'b', false)`: 1, `SELECT set_config('a', 'b', true)`: 0,
		`INSERT INTO "p"."t" VALUES (1) ON CONFLICT (a) DO UPDATE SET b = 1 WHERE "t".c < now()`: 2,
		`UPDATE "p"."t" SET a = clock_timestamp()`:                                               1, `UPDATE "p"."t" SET a = statement_timestamp()`: 0,
		`WITH pgonce_a AS (SELECT 1 FROM "p"."t"), pgonce_b AS (INSERT INTO "p"."t" SELECT FROM pgonce_a ON CONFLICT DO NOTHING) SELECT length('') FROM pgonce_b WHERE true`: 0,
		`WITH pgonce_a AS (UPDATE "p"."t" SET a = clock_timestamp()) SELECT 1`:                                                                                               1,
		`WITH pgonce_a AS (SELECT 1) SELECT 1 FROM pgonce_b`:                                                                                                                 1,
		`SELECT pg_advisory_lock(1)`: 1, `SELECT pg_advisory_xact_lock(1)`: 0, `NOTIFY x`: 1,
	} {
		got := len(findings(sql))
		if got < want || want == 0 && got > 0 {
			t.Errorf("%d rules object to %s, want %d", got, sql, want)
		}
	}
}

var (
	withQuery  = regexp.MustCompile(`\b(pgonce_[a-z]+) AS (?:MATERIALIZED )?\(`)
	rowLock    = regexp.MustCompile(`\bFOR (NO KEY )?UPDATE\b`)
	endOfQuery = regexp.MustCompile(`\)(?:, pgonce_[a-z]+ AS|\s+SELECT\b)`)
)

// findings holds a statement to the rules, each of its WITH queries by itself. The name of such a query is
// no table's, and a row lock no update.
func findings(sql string) (found []string) {
	sql = rowLock.ReplaceAllString(sql, "FOR LOCK")
	for _, m := range withQuery.FindAllStringSubmatch(sql, -1) {
		sql = regexp.MustCompile(`\b(FROM|JOIN|,)(\s+)`+m[1]+`\b`).ReplaceAllString(sql, `$1$2"`+m[1]+`"`)
	}
	for _, query := range endOfQuery.Split(sql, -1) {
		for what, rule := range rules {
			if text := rule.FindString(query); text != "" {
				found = append(found, fmt.Sprintf("%s: %q", what, text))
			}
		}
	}
	return found
}

// What a binding makes of its texts, with every option and with names that need quotes, is held to the same
// rules and prepared, too.
func TestAssembledStatementsArePortableAndValid(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE SCHEMA "Sales"; CREATE TABLE "Sales"."Or""der" ("Id" uuid PRIMARY KEY, "St" varchar(20) DEFAULT 'a', "V" int DEFAULT 0, amount int DEFAULT 1, note text)`)
	db.Exec(t, `INSERT INTO "Sales"."Or""der" VALUES ('00000000-0000-0000-0000-000000000001')`)
	var seen tracer
	cfg := db.Config(t)
	cfg.ConnConfig.Tracer = &seen
	pool := db.Open(t, cfg)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	type state string
	pay := sm.NewEvent[state]("pay")
	m := sm.MustNew("m", sm.Initial(state("a")), sm.Final(state("b")), sm.From(state("a")).On(pay).To("b"))
	for _, none := range []bool{true, false} {
		orders, err := sm.Bind[string](m, pgxdriver.New(pool), sm.Table{Name: `Sales.Or"der`, ID: "Id", State: "St", Version: "V", NoHistory: none})
		if err != nil {
			t.Fatal(err)
		}
		options := []sm.Option{
			sm.Where("amount > $1", 0), sm.Where("note IS NULL OR $2 = $1", "a", "b"), sm.Match("amount = $1", 1), sm.ExpectVersion(0),
			sm.Set("note", "n"), sm.SetExpr("amount", "amount + $1", 1),
		}
		const id = "00000000-0000-0000-0000-000000000001"
		fire := func(options ...sm.Option) {
			t.Helper()
			if _, err := orders.Fire(t.Context(), id, pay, options...); err != nil {
				t.Errorf("%d options: %v", len(options), err)
			}
		}
		for n := range len(options) + 1 {
			fire(options[:n]...)
		}
		fire(append(options, sm.Lock())...)
		if !none {
			fire(append(options, sm.Dedup("d"), sm.Actor("a"), sm.Meta(1))...)
		}
		err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			_, err := orders.FireTx(t.Context(), tx, id, pay, append(options, sm.LockTimeout(time.Minute))...)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	n := 0
	for i, sql := range seen.texts {
		if !strings.Contains(sql, "pgonce_cur") && !strings.Contains(sql, "pgonce_moved") {
			continue
		}
		n++
		for _, finding := range findings(sql) {
			t.Errorf("%s\nhas %s", sql, finding)
		}
		if strings.Contains(sql, "/*") || strings.Contains(sql, "orders") {
			t.Errorf("something was not filled in:\n%s", sql)
		}
		if _, err := conn.Conn().Prepare(t.Context(), fmt.Sprintf("s%d", i), sql); err != nil {
			t.Errorf("%v\n%s", err, sql)
		}
	}
	if n != 19 {
		t.Errorf("saw %d statements, want 19", n)
	}
}

// tracer keeps the texts of queries.
type tracer struct{ texts []string }

func (r *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	r.texts = append(r.texts, data.SQL)
	return ctx
}

func (*tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// sqlFile is where statements are: sql.go, or sql_lease.go and the like.
var sqlFile = regexp.MustCompile(`^sql(_[a-z]+)?\.go$`)

// sqlConstants reads the string constants of every such file in the module.
func sqlConstants(t *testing.T) map[string]string {
	t.Helper()
	const root = "../.."
	found := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && fileExists(filepath.Join(path, "go.mod")) {
			return filepath.SkipDir // a module of its own
		}
		if !sqlFile.MatchString(filepath.Base(path)) {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok || gen.Tok != token.CONST {
				return fmt.Errorf("%s declares something else than constants", path)
			}
			for _, spec := range gen.Specs {
				value := spec.(*ast.ValueSpec)
				text, err := strconv.Unquote(value.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					return err
				}
				found[file.Name.Name+"."+value.Names[0].Name] = text
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// A statement outside of sql.go would escape the test above.
func TestSQLLivesInSQLFilesOnly(t *testing.T) {
	t.Parallel()
	statement := regexp.MustCompile("(?s)[`\"]\\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER|DROP|LOCK TABLE)\\s")
	for _, dir := range []string{"idem", "dblock", "statemachine", "migrations", "internal/pg", "driver"} {
		err := filepath.WalkDir("../../"+dir, func(path string, _ os.DirEntry, err error) error {
			name := filepath.Base(path)
			if err != nil || filepath.Ext(name) != ".go" || sqlFile.MatchString(name) || strings.HasSuffix(name, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			if found := statement.Find(text); found != nil {
				t.Errorf("%s has a statement: %q", path, found)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}
