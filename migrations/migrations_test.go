package migrations_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
)

func TestSchemaVersionIsTheNewestFile(t *testing.T) {
	t.Parallel()
	files, err := migrations.FS(nil)
	if err != nil {
		t.Fatal(err)
	}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != pg.SchemaVersion {
		t.Errorf("%d migrations %v, but the code says it knows version %d", len(names), names, pg.SchemaVersion)
	}
	for i, name := range names {
		if want := fmt.Sprintf("%05d_", i+1); !strings.HasPrefix(name, want) {
			t.Errorf("%s should begin with %s", name, want)
		}
	}
}

// TestMain lets the test binary play a process that migrates.
func TestMain(m *testing.M) {
	if url := os.Getenv("MIGRATE_URL"); url != "" {
		std, err := sql.Open("pgx", url)
		if err != nil {
			panic(err)
		}
		std.SetMaxOpenConns(1)
		applied, err := migrations.Up(context.Background(), std, nil)
		if err != nil {
			panic(err)
		}
		fmt.Println(len(applied))
		return
	}
	os.Exit(m.Run())
}

func TestUpFromTwentyProcessesAtOnce(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"read committed", "repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewEmpty(t)
			db.Exec(t, `ALTER DATABASE "`+db.Name+`" SET default_transaction_isolation = '`+level+`'`)
			lock, err := db.Pool(t).Begin(t.Context()) // holds them all until they all are there
			if err != nil {
				t.Fatal(err)
			}
			if _, err := lock.Exec(t.Context(), `SELECT pg_advisory_xact_lock($1)`, migrations.LockID("pgonce")); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			outputs := make([]string, 20)
			for i := range outputs {
				wg.Go(func() {
					child := exec.Command(os.Args[0])
					child.Env = append(os.Environ(), "MIGRATE_URL="+db.URL)
					out, err := child.CombinedOutput()
					if err != nil {
						t.Errorf("process %d: %v\n%s", i, err, out)
					}
					outputs[i] = strings.TrimSpace(string(out))
				})
			}
			pgtest.Eventually(t, "twenty processes wait", func() bool {
				return db.Int(t, `SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
					WHERE d.datname = current_database() AND locktype = 'advisory' AND NOT granted`) == 20
			})
			if err := lock.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			total := 0
			for _, out := range outputs {
				n, err := strconv.Atoi(out)
				if err != nil {
					t.Error(err)
				}
				total += n
			}
			if total != pg.SchemaVersion {
				t.Errorf("%d migrations were applied, want each of %d once: %v", total, pg.SchemaVersion, outputs)
			}
			if err := migrations.Validate(t.Context(), db.SQL(t), nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUpTxRefusesAnOldSnapshot(t *testing.T) {
	t.Parallel()
	std := pgtest.NewEmpty(t).SQL(t)
	tx, err := std.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if err := migrations.UpTx(t.Context(), tx, nil); err == nil || !strings.Contains(err.Error(), "READ COMMITTED") {
		t.Errorf("got %v", err)
	}
}

func TestDownOfNothing(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	if _, err := migrations.Down(t.Context(), db.SQL(t), nil); !errors.Is(err, migrations.ErrSchema) {
		t.Errorf("got %v, want ErrSchema", err)
	}
	if n := db.Int(t, `SELECT count(*) FROM pg_namespace WHERE nspname = 'pgonce'`); n != 0 {
		t.Error("Down has created the schema")
	}
}

func TestFSIsAFileSystem(t *testing.T) {
	t.Parallel()
	for _, schema := range []string{"", "billing_once"} {
		files, err := migrations.FS(&migrations.Config{Schema: schema})
		if err != nil {
			t.Fatal(err)
		}
		if err := fstest.TestFS(files, "00001_idem.sql"); err != nil {
			t.Error(err)
		}
	}
}

func TestUpWaitsForAnotherAndHonoursItsContext(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	std := db.SQL(t)
	if _, err := migrations.Up(t.Context(), std, nil); err != nil {
		t.Fatal(err)
	}
	holder, err := std.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := migrations.UpTx(t.Context(), holder, nil); err != nil { // takes the lock, has nothing to do
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := migrations.Up(ctx, std, nil)
		result <- err
	}()
	pgtest.Eventually(t, "Up waits", func() bool {
		return db.Int(t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted`) == 1
	})
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if err := holder.Rollback(); err != nil {
		t.Fatal(err)
	}
	if _, err := migrations.Up(t.Context(), std, nil); err != nil {
		t.Errorf("Up after the holder is gone: %v", err)
	}
}

func TestUpPoolWithOneConnection(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	cfg := db.Config(t)
	cfg.MaxConns = 1
	pool := db.Open(t, cfg)
	for _, want := range []int{pg.SchemaVersion, 0} {
		applied, err := migrations.UpPool(t.Context(), pool, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(applied) != want {
			t.Errorf("applied %v, want %d of them", applied, want)
		}
	}
	if err := pool.Ping(t.Context()); err != nil {
		t.Errorf("Up closed the caller's pool: %v", err)
	}
}

// Each migration in turn, newest first: what Down would forget keeps it from working.
func TestDownRefusesWhileRecordsExist(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	std := db.SQL(t)
	if _, err := migrations.Up(t.Context(), std, nil); err != nil {
		t.Fatal(err)
	}
	inserts := []struct {
		version    int
		table, sql string
	}{
		{6, "idem_forgotten", `INSERT INTO pgonce.idem_forgotten VALUES (now(), 1, now(), now(), now(), NULL, 1, 's', '\x00', 'o', NULL, 'me', '', 'why')`},
		{5, "idem_lease", `INSERT INTO pgonce.idem_lease (nonce, worker, created_at, not_before, attempts, state, fp_ver, scope, digest, op, request)
			VALUES (1, 0, now(), now(), 0, 1, 0, 's', '\x00', 'o', '')`},
		{4, "lease", `INSERT INTO pgonce.lease VALUES (1, now(), now() + interval '1 hour', '1 hour', 's', 'i', 'h')`},
		{3, "epoch", `INSERT INTO pgonce.epoch VALUES (1, 1, 1, 1, 1, 0)`},
		{2, "transition", `INSERT INTO pgonce.transition (machine, entity, event, from_state, to_state) VALUES ('m', '1', 'e', 'a', 'b')`},
		{1, "idem_record", `INSERT INTO pgonce.idem_record (attempt, created_at, replay_until, remember_until, state, fp_ver, scope, digest, op)
			VALUES (1, now(), now(), now(), 1, 0, 's', '\x00', 'o')`},
	}
	for i, tc := range inserts {
		db.Exec(t, tc.sql)
		if _, err := migrations.Down(t.Context(), std, nil); !errors.Is(err, migrations.ErrHasRecords) {
			t.Fatalf("%s: got %v, want ErrHasRecords", tc.table, err)
		}
		if n := db.Int(t, `SELECT count(*) FROM pgonce.`+tc.table); n != 1 {
			t.Fatalf("%s: %d records after a refused Down", tc.table, n)
		}
		version, err := migrations.Down(t.Context(), std, &migrations.Config{Force: true})
		if err != nil || version != tc.version {
			t.Fatalf("%s: forced: got %d, %v", tc.table, version, err)
		}
		if n := db.Int(t, `SELECT count(*) FROM pg_tables WHERE schemaname = 'pgonce' AND tablename = $1`, tc.table); n != 0 {
			t.Errorf("%s is still there", tc.table)
		}
		if applied, err := migrations.Up(t.Context(), std, nil); err != nil || len(applied) != i+1 {
			t.Errorf("%s: Up after Down: %v, %v", tc.table, applied, err)
		}
		db.Exec(t, tc.sql)
		if i == 0 {
			if _, err := migrations.Down(t.Context(), std, nil); !errors.Is(err, migrations.ErrHasRecords) {
				t.Errorf("the force of an earlier Down stayed on a pooled connection: %v", err)
			}
		}
		if i == len(inserts)-1 {
			return
		}
		db.Exec(t, `DELETE FROM pgonce.`+tc.table)
		for range i + 1 {
			if _, err := migrations.Down(t.Context(), std, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A process of an earlier release goes on working while a deploy has migrated already: nothing that it uses has
// changed.
func TestEarlierReleasesAreAdmitted(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	if n := db.Int(t, `SELECT min_code FROM pgonce.schema_version ORDER BY version DESC LIMIT 1`); n != 1 {
		t.Errorf("the newest migration admits code of version %d, want 1", n)
	}
}

func TestTwoSchemasInOneProcess(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	std := db.SQL(t)
	for _, schema := range []string{"pgonce", "billing_once", "_x"} {
		for range 2 {
			if _, err := migrations.Up(t.Context(), std, &migrations.Config{Schema: schema}); err != nil {
				t.Fatalf("%s: %v", schema, err)
			}
		}
		if n := db.Int(t, `SELECT count(*) FROM pg_tables WHERE schemaname = $1`, schema); n != 12 {
			t.Errorf("%s has %d tables, want idem_record, idem_purge, idem_forgotten, idem_worker, idem_lease, idem_step, idem_resolution, transition, epoch, lease, schema_version, goose_db_version", schema, n)
		}
	}
	if _, err := migrations.Down(t.Context(), std, &migrations.Config{Schema: "_x"}); err != nil {
		t.Fatal(err)
	}
	if err := migrations.Validate(t.Context(), std, nil); err != nil {
		t.Errorf("Down of one schema hurt another: %v", err)
	}
}

func TestBadSchemaNames(t *testing.T) {
	t.Parallel()
	std := pgtest.NewEmpty(t).SQL(t)
	for _, name := range []string{"Upper", "1st", "a-b", `a"b`, "a.b", "ü", strings.Repeat("x", 52), "user", "select"} {
		_, err := migrations.Up(t.Context(), std, &migrations.Config{Schema: name})
		if !errors.Is(err, migrations.ErrSchema) {
			t.Errorf("%q: got %v, want ErrSchema", name, err)
		}
	}
}

func TestNilDatabase(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, errUp := migrations.Up(ctx, nil, nil)
	_, errPool := migrations.UpPool(ctx, nil, nil)
	_, errDown := migrations.Down(ctx, nil, nil)
	_, errStatus := migrations.Status(ctx, nil, nil)
	for _, err := range []error{errUp, errPool, errDown, errStatus, migrations.UpTx(ctx, nil, nil), migrations.Validate(ctx, nil, nil)} {
		if err == nil || !strings.Contains(err.Error(), "nil") {
			t.Errorf("got %v, want an error about nil", err)
		}
	}
}
