package riversql_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/examples/internal/riversql"
	"github.com/riverqueue/river"
)

type job struct {
	N    int              `json:"n"`
	Opts river.InsertOpts `json:"-"`
}

func (job) Kind() string                   { return "test" }
func (j job) InsertOpts() river.InsertOpts { return j.Opts }

// recorder is a transaction that remembers its statement, and fails.
type recorder struct {
	query string
	args  []any
}

var errRecorded = errors.New("recorded")

func (r *recorder) ExecContext(_ context.Context, query string, args ...any) (sql.Result, error) {
	r.query, r.args = query, args
	return nil, errRecorded
}

// What is inserted is the job as it says, and what it says and cannot be had is refused. (That River takes the row is shown by the
// storms of those who import this.)
func TestInsertTx(t *testing.T) {
	t.Parallel()
	tx := new(recorder)
	err := riversql.InsertTx(t.Context(), tx, `odd"schema`, job{N: 5, Opts: river.InsertOpts{MaxAttempts: 7}})
	if !errors.Is(err, errRecorded) || !strings.Contains(tx.query, `"odd""schema"."river_job"`) {
		t.Errorf("%v: %s", err, tx.query)
	}
	if len(tx.args) != 3 || tx.args[0] != "test" || string(tx.args[1].([]byte)) != `{"n":5}` || tx.args[2] != 7 {
		t.Errorf("%q", tx.args)
	}
	for name, opts := range map[string]river.InsertOpts{
		"nothing":    {},
		"a queue":    {MaxAttempts: 7, Queue: "other"},
		"uniqueness": {MaxAttempts: 7, UniqueOpts: river.UniqueOpts{ByArgs: true}},
		"tags":       {MaxAttempts: 7, Tags: []string{"a"}},
	} {
		tx := new(recorder)
		if err := riversql.InsertTx(t.Context(), tx, "q", job{Opts: opts}); err == nil || tx.query != "" {
			t.Errorf("%s: %v, %s", name, err, tx.query)
		}
	}
}
