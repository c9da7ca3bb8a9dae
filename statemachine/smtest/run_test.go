//go:build unix

package smtest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
	"github.com/pgonce/pgonce/statemachine/smtest"
)

type order string

const (
	unpaid  order = "unpaid"
	paid    order = "paid"
	void    order = "void"
	settled order = "settled"
)

var (
	pay    = sm.NewEvent[order]("pay")
	cancel = sm.NewEvent[order]("cancel")
	part   = sm.NewEvent[order]("refund part")
	settle = sm.NewEvent[order]("settle")
	expire = sm.NewEvent[order]("expire")

	// A machine with all that there is: a shared target, a self-transition, a cycle, something ignored.
	flow = sm.MustNew("order", sm.Initial(unpaid), sm.Final(void),
		sm.From(unpaid).On(pay).To(paid), sm.From(unpaid).On(cancel).To(void), sm.From(unpaid, settled).On(expire).To(void), sm.From(paid).On(part).To(paid),
		sm.From(paid).On(settle).To(settled), sm.From(settled).On(pay).To(paid), sm.From(void).Ignore(pay))
)

const table = `CREATE TABLE "or'der" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, state text NOT NULL DEFAULT 'unpaid', note text, amount numeric NOT NULL DEFAULT 1.5,
	paid_at timestamptz, twice numeric GENERATED ALWAYS AS (amount * 2) STORED, raw bytea DEFAULT '\x00ff', tags text[] DEFAULT '{a,"b c"}', meta jsonb DEFAULT '{"a": "\\t"}',
	CHECK (state <> 'paid' OR paid_at IS NOT NULL))`

// recorder is a test that is meant to fail.
type recorder struct {
	testing.TB
	ctx  context.Context
	said []string
	logs []string
}

func (r *recorder) Helper()                  {}
func (r *recorder) Context() context.Context { return r.ctx }
func (r *recorder) Errorf(format string, args ...any) {
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

func (r *recorder) Logf(format string, args ...any) {
	r.logs = append(r.logs, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

type orders = sm.Binding[int64, order, pgx.Tx]

// trial is a table on which Run is tried.
type trial struct {
	pool   *pgxpool.Pool
	b      *orders
	create func(context.Context, order) (int64, error)
	cfg    smtest.Config[order]
}

func newTrial(t *testing.T, db *pgtest.DB, m *sm.Machine[order]) *trial {
	t.Helper()
	pool := db.Pool(t)
	b, err := sm.Bind[int64](m, pgxdriver.New(pool), sm.Table{Name: "or'der"})
	if err != nil {
		t.Fatal(err)
	}
	return &trial{
		pool: pool, b: b,
		create: func(ctx context.Context, state order) (id int64, err error) {
			err = pool.QueryRow(ctx, `INSERT INTO "or'der" (state, note) VALUES ($1, 'tab	and \ and
line') RETURNING id`, string(state)).Scan(&id)
			return id, err
		},
		cfg: smtest.Config[order]{Racers: 4, Options: func(_ order, ev sm.Event[order]) []sm.Option {
			if ev == pay {
				return []sm.Option{sm.SetExpr("paid_at", "statement_timestamp()"), sm.Where("amount > $1", 0)}
			}
			return nil
		}},
	}
}

func (tr *trial) run(t *testing.T) *recorder {
	t.Helper()
	r := &recorder{ctx: t.Context()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		smtest.Run(r, pgxdriver.New(tr.pool), tr.b, tr.create, &tr.cfg)
	}()
	<-done
	return r
}

// A sound machine on a sound table passes, and everything was tried.
func TestRunPassesWhatIsSound(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, table)
	tr := newTrial(t, db, flow)
	db.Exec(t, tr.b.TriggerSQL(nil))
	r := tr.run(t)
	for _, s := range r.said {
		t.Error(s)
	}
	t.Log(strings.Join(r.logs, "\n"))
	merge := int64(0)
	if db.Int(t, `SELECT current_setting('server_version_num')::int / 10000`) >= 15 {
		merge = 4 * 5
	}
	for _, says := range []string{"walked 12 paths over 7 edges; bounded by MaxPaths: false", "fired 40 events", "raced 4 goroutines for each of 7 edges", fmt.Sprintf("past the machine %d times", 2*4*5+2*4+merge)} {
		if !slices.ContainsFunc(r.logs, func(l string) bool { return strings.Contains(l, says) }) {
			t.Errorf("does not say %q", says)
		}
	}
	if len(r.logs) != 4 {
		t.Errorf("something was not tried: %q", r.logs)
	}
	tr.cfg.MaxPaths = 9
	if r := tr.run(t); len(r.said) > 0 || !strings.Contains(r.logs[0], "walked 9 paths over 7 edges; bounded by MaxPaths: true") {
		t.Errorf("got %q", r)
	}
}

// flag is a number with a name for people, and so are its rows' ids.
type (
	flag   int16
	number int64
)

func (flag) String() string   { return "a flag" }
func (number) String() string { return "a number" }

func TestRunKnowsNumbersWithNames(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE flagged (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, flag smallint NOT NULL)`)
	m := sm.MustNew("flagged", sm.Initial(flag(1)), sm.Final(flag(2)), sm.From(flag(1)).On(sm.NewEvent[flag]("pay")).To(flag(2)))
	pool := db.Pool(t)
	b, err := sm.Bind[number](m, pgxdriver.New(pool), sm.Table{Name: "flagged", State: "flag"})
	if err != nil {
		t.Fatal(err)
	}
	db.Exec(t, b.TriggerSQL(nil))
	smtest.Run(t, pgxdriver.New(pool), b, func(ctx context.Context, state flag) (id number, err error) {
		err = pool.QueryRow(ctx, `INSERT INTO flagged (flag) VALUES ($1) RETURNING id`, int16(state)).Scan(&id)
		return id, err
	}, &smtest.Config[flag]{Racers: 2})
}

// Each thing that is broken makes it fail, with words that name it.
func TestRunFailsWhatIsBroken(t *testing.T) {
	t.Parallel()
	noTrigger := "nothing has refused it"
	for name, tc := range map[string]struct {
		sql   string // after the trigger is there
		spoil func(*trial)
		says  string
	}{
		"no trigger":        {sql: `DROP TRIGGER zzzz_pgonce_move_state ON "or'der"`, says: "UPDATE from paid to unpaid is no edge of the machine, and " + noTrigger},
		"upserts":           {sql: `DROP TRIGGER zzzz_pgonce_move_state ON "or'der"`, says: "INSERT ON CONFLICT from void to unpaid is no edge of the machine, and " + noTrigger},
		"no insert trigger": {sql: `DROP TRIGGER zzzz_pgonce_new_state ON "or'der"`, says: "INSERT from a new row to void is no edge of the machine, and " + noTrigger},
		"COPY":              {sql: `DROP TRIGGER zzzz_pgonce_new_state ON "or'der"`, says: "COPY from a new row to settled is no edge of the machine, and " + noTrigger},
		"disabled":          {sql: `ALTER TABLE "or'der" DISABLE TRIGGER USER`, says: noTrigger},
		"no state":          {sql: `ALTER TABLE "or'der" DISABLE TRIGGER USER, ALTER state DROP NOT NULL, DROP CONSTRAINT pgonce_states_state`, says: "UPDATE from unpaid to NULL is no edge"},
		"unknown state":     {sql: `ALTER TABLE "or'der" DISABLE TRIGGER USER, ALTER state DROP NOT NULL, DROP CONSTRAINT pgonce_states_state`, says: "to a state that is not the machine's is no edge"},
		"luck":              {sql: `ALTER TABLE "or'der" DISABLE TRIGGER USER, ADD CHECK (state <> 'void' OR paid_at IS NULL)`, says: "from paid to void is no edge of the machine, and was refused by something else"},
		"a hole":            {sql: `UPDATE pg_proc SET prosrc = replace(prosrc, '{"settled"}', '{"settled","unpaid"}') WHERE proname LIKE 'pgonce_or%'`, says: "UPDATE from paid to unpaid is no edge of the machine, and " + noTrigger},
		"too tight":         {sql: `UPDATE pg_proc SET prosrc = replace(prosrc, '{"settled"}', '{"gone"}') WHERE proname LIKE 'pgonce_or%'`, says: "UPDATE from paid to settled is an edge of the machine, and the trigger refuses it"},
		"the table refuses": {sql: `ALTER TABLE "or'der" ADD CHECK (state <> 'void')`, says: `"cancel" in "unpaid" leads to "void"; got an error`},
		"diverted":          {sql: `CREATE FUNCTION d() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.state := OLD.state; RETURN NEW; END'; CREATE TRIGGER zzzzz BEFORE UPDATE ON "or'der" FOR EACH ROW EXECUTE FUNCTION d()`, says: "a trigger diverted the move"},
		"put back":          {sql: `CREATE FUNCTION d() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM set_config(''pgonce.adopt'', ''order'', true); UPDATE "or''der" SET state = OLD.state WHERE id = OLD.id AND state = ''settled''; PERFORM set_config(''pgonce.adopt'', '''', true); RETURN NULL; END'; CREATE TRIGGER a AFTER UPDATE ON "or'der" FOR EACH ROW WHEN (NEW.state = 'settled' AND OLD.state = 'paid') EXECUTE FUNCTION d()`, says: "have applied \"settle\" in \"paid\", and one should"},
		"history twice":     {sql: `CREATE FUNCTION d() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO pgonce.transition (machine, entity, event, from_state, to_state) VALUES (NEW.machine, NEW.entity, NEW.event, NEW.from_state, NEW.to_state); RETURN NULL; END'; CREATE TRIGGER a AFTER INSERT ON pgonce.transition FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION d()`, says: "the history of row"},
		"history lost":      {sql: `CREATE FUNCTION d() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN DELETE FROM pgonce.transition WHERE seq = NEW.seq; RETURN NULL; END'; CREATE TRIGGER a AFTER INSERT ON pgonce.transition FOR EACH ROW EXECUTE FUNCTION d()`, says: "the history of row"},
		"made elsewhere": {spoil: func(tr *trial) {
			tr.create = func(ctx context.Context, _ order) (id int64, err error) {
				err = tr.pool.QueryRow(ctx, `INSERT INTO "or'der" (state) VALUES (' unpaid') RETURNING id`).Scan(&id)
				return id, err
			}
		}, says: "create a row"},
		"the same row again": {spoil: func(tr *trial) {
			make := tr.create
			var first int64
			tr.create = func(ctx context.Context, s order) (id int64, err error) {
				if first == 0 {
					first, err = make(ctx, s)
				}
				return first, err
			}
		}, says: `create made row 1 in "paid" and not in "unpaid"`},
		"no such row":  {spoil: func(tr *trial) { tr.create = func(context.Context, order) (int64, error) { return 99, nil } }, says: "create made row 99"},
		"a row before": {sql: `ALTER TABLE "or'der" ADD one int UNIQUE DEFAULT 1`, says: "duplicate key"},
		"cannot create": {spoil: func(tr *trial) {
			tr.create = func(context.Context, order) (int64, error) { return 0, os.ErrDeadlineExceeded }
		}, says: "i/o timeout"},
		"options that fail": {spoil: func(tr *trial) { tr.cfg.Options = nil }, says: `"pay" in "unpaid" leads to "paid"; got an error`},
		"no table":          {sql: `DROP TABLE "or'der"`, says: "is not there"},
		"no key":            {sql: `ALTER TABLE "or'der" DROP CONSTRAINT "or'der_pkey"`, says: "INSERT ON CONFLICT was not tried"},
		"rows that stay":    {sql: `CREATE FUNCTION d() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'; CREATE TRIGGER a BEFORE DELETE ON "or'der" FOR EACH ROW EXECUTE FUNCTION d()`, says: "COPY was not tried, or not from every state: the row cannot be deleted first"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			db.Exec(t, table)
			tr := newTrial(t, db, flow)
			db.Exec(t, tr.b.TriggerSQL(nil))
			db.Exec(t, `SELECT 1; `+tc.sql)
			if tc.spoil != nil {
				tc.spoil(tr)
			}
			r := tr.run(t)
			where := r.said
			if strings.Contains(tc.says, "was not tried") { // no failure, and not kept quiet
				where = r.logs
			}
			if !slices.ContainsFunc(where, func(s string) bool { return strings.Contains(s, tc.says) }) {
				t.Errorf("want %q; said\n%s\nlogged\n%s", tc.says, strings.Join(r.said, "\n"), strings.Join(r.logs, "\n"))
			}
		})
	}
}

// What was asked for is left out, and nothing else.
func TestRunWithoutTrigger(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, table)
	tr := newTrial(t, db, flow)
	tr.cfg.NoTrigger = true
	if r := tr.run(t); len(r.said) > 0 || len(r.logs) != 3 {
		t.Errorf("got %q, %q", r.said, r.logs)
	}
}

func TestGolden(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "testdata", "order.mmd")
	golden := func(text string) []string {
		r := &recorder{ctx: t.Context()}
		smtest.Golden(r, file, text)
		return r.said
	}
	want := func(said []string, says string) {
		t.Helper()
		if (says == "") != (len(said) == 0) || len(said) > 0 && (len(said) != 1 || !strings.Contains(said[0], says)) {
			t.Errorf("said %q, want %q", said, says)
		}
	}
	want(golden("x"), "is not there; run the test with PGONCE_UPDATE=1")
	t.Setenv("PGONCE_UPDATE", "1")
	want(golden(flow.Mermaid()), "")
	t.Setenv("PGONCE_UPDATE", "")
	want(golden(flow.Mermaid()), "")
	want(golden(flow.Mermaid()+"more\n\n"), "and should be\n\tmore")
	want(golden(strings.Replace(flow.Mermaid(), "pay", "paid", 1)), "order.mmd, line")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(text), "\n", "\r\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	want(golden(flow.Mermaid()), "")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want(golden(flow.Mermaid()), "line 1 is")
	file = dir
	want(golden("x"), "is a directory")
}
