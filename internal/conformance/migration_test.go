//go:build unix

package conformance_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
	"github.com/pressly/goose/v3"
)

// The files for goose: applied by goose, refused by Down, never written over.
func TestWriteMigration(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE lamp (id bigint PRIMARY KEY, state text NOT NULL DEFAULT 'a'); INSERT INTO lamp VALUES (1)`)
	type light string
	const end light = "-- +goose StatementEnd"
	on := sm.NewEvent[light]("on")
	m := sm.MustNew("Lights; -- +goose Down", sm.Initial(light("a")), sm.Final(end), sm.From(light("a")).On(on).To(end))
	b, err := sm.Bind[int64](m, pgxdriver.New(db.Pool(t)), sm.Table{Name: "lamp"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	names, err := b.WriteMigration(dir, 7, nil)
	if err != nil || !slices.Equal(names, []string{filepath.Join(dir, "00007_lights______goose_down_trigger.sql"), filepath.Join(dir, "00008_lights______goose_down_validate.sql")}) {
		t.Fatalf("got %v, %v", names, err)
	}
	std := db.SQL(t)
	p, err := goose.NewProvider(goose.DialectPostgres, std, os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	if res, err := p.Up(t.Context()); err != nil || len(res) != 2 {
		t.Fatalf("got %v, %v", res, err)
	}
	if err := b.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := p.Down(t.Context()); err != nil {
		t.Error(err) // of validate
	}
	if _, err := p.Down(t.Context()); err == nil || !strings.Contains(err.Error(), "write a migration from the earlier machine") && !strings.Contains(err.Error(), "lets any program move rows") {
		t.Errorf("got %v", err)
	}
	db.Exec(t, fmt.Sprintf(`ALTER DATABASE %q SET pgonce.force_down = 'on'`, db.Name))
	std2 := db.SQL(t)
	p, err = goose.NewProvider(goose.DialectPostgres, std2, os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Down(t.Context()); err != nil {
		t.Error(err)
	}
	if n := db.Int(t, `SELECT (SELECT count(*) FROM pg_trigger) + (SELECT count(*) FROM pg_proc WHERE proname LIKE 'pgonce%')`); n != 0 {
		t.Errorf("%d things are left", n)
	}
	for version, says := range map[int64]string{0: "has to be positive", 6: "7 is there", 7: "7 is there", 8: "8 is there"} {
		if _, err := b.WriteMigration(dir, version, nil); !errors.Is(err, sm.ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("version %d: got %v", version, err)
		}
	}
	if _, err := b.WriteMigration(filepath.Join(dir, "none"), 9, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: got %v", err)
	}
}
