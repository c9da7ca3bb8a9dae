package migrations_test

import (
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/internal/pg"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/pgonce/pgonce/migrations"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		do   string
		want string // "" is fine
	}{
		"current":                         {`SELECT 1`, ""},
		"newer, and we are still allowed": {`INSERT INTO pgonce.schema_version VALUES (1000, 1)`, ""},
		"newer, and we are not":           {`INSERT INTO pgonce.schema_version VALUES (1000, 1000)`, "upgrade the module"},
		"older":                           {`UPDATE pgonce.schema_version SET version = version - 1000`, "migrations.Up"},
		"empty":                           {`DELETE FROM pgonce.schema_version`, "migrations.Up"},
		"missing":                         {`DROP SCHEMA pgonce CASCADE`, "migrations.Up"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			db.Exec(t, tc.do)
			err := migrations.Validate(t.Context(), db.SQL(t), nil)
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("got %v, want nil", err)
			case tc.want != "" && (!errors.Is(err, migrations.ErrSchema) || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got %v, want ErrSchema that says %q", err, tc.want)
			}
		})
	}
}

func TestValidateWithoutRights(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	role := db.Role(t)
	std, err := sql.Open("pgx", db.As(t, role))
	if err != nil {
		t.Fatal(err)
	}
	db.Adopt(t, std)
	err = migrations.Validate(t.Context(), std, nil)
	if !errors.Is(err, migrations.ErrSchema) || !strings.Contains(err.Error(), "GRANT") {
		t.Errorf("got %v, want ErrSchema that names the GRANT", err)
	}
	db.GrantDML(t, role)
	if err := migrations.Validate(t.Context(), std, nil); err != nil {
		t.Errorf("with DML rights only: %v", err)
	}
	if _, err := migrations.Status(t.Context(), std, nil); err != nil {
		t.Errorf("Status with DML rights only: %v", err)
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	std := db.SQL(t)
	for _, applied := range []bool{false, true} {
		status, err := migrations.Status(t.Context(), std, nil)
		if err != nil || len(status) != pg.SchemaVersion {
			t.Fatalf("%v, %v", status, err)
		}
		for _, m := range status {
			if m.AppliedAt.IsZero() == applied {
				t.Errorf("%s: applied at %v", m.Name, m.AppliedAt)
			}
		}
		if _, err := migrations.Up(t.Context(), std, nil); err != nil {
			t.Fatal(err)
		}
	}
}
