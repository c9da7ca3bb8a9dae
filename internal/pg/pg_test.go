package pg_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/internal/pg"
)

func TestJudgeSchema(t *testing.T) {
	t.Parallel()
	plain := errors.New("connection refused")
	const v = pg.SchemaVersion
	for name, tc := range map[string]struct {
		version, minCode int
		err              error
		says             string // "" is usable
	}{
		"same":                  {v, v, nil, ""},
		"newer, allowed":        {v + 3, v, nil, ""},
		"newer, not allowed":    {v + 3, v + 1, nil, "upgrade the module"},
		"older":                 {v - 1, 1, nil, "migrations.Up"},
		"none":                  {0, 0, &pg.Error{Code: pg.CodeUndefinedTable, Err: plain}, "migrations.Up"},
		"no schema":             {0, 0, &pg.Error{Code: pg.CodeNoSuchSchema, Err: plain}, "migrations.Up"},
		"forbidden":             {0, 0, &pg.Error{Code: pg.CodeNoPrivilege, Err: plain}, "GRANT USAGE"},
		"says nothing about it": {0, 0, plain, "connection refused"},
	} {
		err := pg.JudgeSchema("pgonce", tc.version, tc.minCode, tc.err)
		if tc.says == "" {
			if err != nil {
				t.Errorf("%s: got %v", name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %v, want it to say %q", name, err, tc.says)
		}
		if tc.err != nil && !errors.Is(err, plain) {
			t.Errorf("%s: the cause is lost: %v", name, err)
		}
		if errors.Is(err, pg.ErrSchema) == (tc.err == plain) { //nolint:errorlint // identity is meant
			t.Errorf("%s: errors.Is(ErrSchema) is wrong: %v", name, err)
		}
	}
}

func TestSchemaNames(t *testing.T) {
	t.Parallel()
	for name, ok := range map[string]bool{
		"pgonce": true, "_x1": true, strings.Repeat("x", 51): true,
		"": false, "1x": false, "A": false, "a b": false, `a"`: false, "a.b": false, "ß": false, "a\n": false, "pg_x": false, "information_schema": false, strings.Repeat("x", 52): false,
	} {
		if err := pg.CheckSchemaName(name); (err == nil) != ok {
			t.Errorf("%q: got %v", name, err)
		}
	}
}

func TestInReplacesTheSchemaAndNothingElse(t *testing.T) {
	t.Parallel()
	const sql = `SELECT 'pgonce' FROM "pgonce"."idem_record" -- pgonce`
	if got, want := pg.In("other", sql), `SELECT 'pgonce' FROM "other"."idem_record" -- pgonce`; got != want {
		t.Errorf("got %s", got)
	}
	if got := pg.In(pg.DefaultSchema, sql); got != sql {
		t.Errorf("got %s", got)
	}
}

// FATAL is translated by lc_messages, so the codes that only come with it count too.
func TestIsFatal(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		severity, code string
		want           bool
	}{
		{"FATAL", "XX000", true},
		{"PANIC", "XX000", true},
		{"ERROR", "23505", false},
		{"FATAL (übersetzt)", "57P01", true},
		{"FEHLER", "40001", false},
		{"致命错误", "25P03", true},
	} {
		if got := pg.IsFatal(tc.severity, tc.code); got != tc.want {
			t.Errorf("%s %s: got %t", tc.severity, tc.code, got)
		}
	}
}

func TestCommitError(t *testing.T) {
	t.Parallel()
	cause := errors.New("cause")
	refused := &pg.Error{Code: pg.CodeUnique, Err: cause}
	fatal := &pg.Error{Code: pg.CodeAdminShutdown, Fatal: true, Err: cause}
	for name, tc := range map[string]struct {
		err  error
		want error
	}{
		"refused": {refused, refused}, "killed": {fatal, pg.ErrOutcomeUnknown}, "broken": {cause, pg.ErrOutcomeUnknown},
	} {
		err := pg.CommitError(tc.err)
		if !errors.Is(err, tc.want) || !errors.Is(err, cause) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := pg.CommitError(nil); err != nil {
		t.Errorf("got %v", err)
	}
}
