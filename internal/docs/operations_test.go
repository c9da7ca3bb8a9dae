//go:build unix

package docs_test

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// What makes each alert of docs/operations.md fire. Some wait for less than the page says.
var provocations = map[string]struct{ do, instead, of string }{
	"Keys that need a person":             {do: oneRecord + `; UPDATE pgonce.idem_record SET state = 3`},
	"The purge does not come round":       {do: `UPDATE pgonce.idem_purge SET began_at = now() - interval '25 hours'`},
	"Transactions that stay open":         {do: ``, of: "10 minutes", instead: "-1 minute"}, // that of the question itself
	"Dead rows that pile up":              {do: oneRecord + `; DELETE FROM pgonce.idem_record`, of: "> 1000 + 0.2 * n_live_tup", instead: "> 0"},
	"Commits that are not durable":        {do: `SET synchronous_commit = off`},
	"Keys that were made to be forgotten": {do: `INSERT INTO pgonce.idem_forgotten VALUES (now(), 1, now(), now(), now(), NULL, 1, 's', '\x00', 'o', 'i', 'me', '', 'why')`},
	"Calls that wait for a key":           {do: ``, of: "NOT l.granted AND a.datname = current_database() AND a.query_start < now() - interval '1 minute'", instead: "l.granted"},
}

const oneRecord = `INSERT INTO pgonce.idem_record SELECT i, now(), now(), now(), 1, 0, 's', i::text::bytea, 'o' FROM generate_series(1, 50) i`

// Every statement of the page runs, and every alert is silent where all is well and fires where it is not.
func TestOperationsPageRuns(t *testing.T) {
	t.Parallel()
	before, alerts, found := strings.Cut(read(t, "docs/operations.md"), "## What to alert on")
	if !found {
		t.Fatal("no alerts")
	}
	db := pgtest.New(t)
	role := db.Role(t)
	block := regexp.MustCompile("(?s)```sql\n(.*?)```")
	for _, m := range block.FindAllStringSubmatch(before, -1) {
		db.Exec(t, regexp.MustCompile(`\bapp;`).ReplaceAllString(m[1], `"`+role+`";`))
	}
	var titles []string
	for _, section := range strings.Split(alerts, "\n### ")[1:] {
		title, rest, _ := strings.Cut(section, "\n")
		titles = append(titles, title)
		sql := block.FindStringSubmatch(rest)
		if sql == nil {
			t.Errorf("%s has no statement", title)
			continue
		}
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			fires(t, title, sql[1])
		})
	}
	for title := range provocations {
		if !slices.Contains(titles, title) {
			t.Errorf("docs/operations.md has no alert %q", title)
		}
	}
}

func fires(t *testing.T, title, sql string) {
	t.Helper()
	p, ok := provocations[title]
	if !ok {
		t.Fatalf("say in provocations what makes the alert %q fire", title)
	}
	conn, err := pgx.Connect(t.Context(), pgtest.New(t).URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	rows := func(sql string) (n int) {
		tag, err := conn.Exec(t.Context(), sql)
		if err != nil {
			t.Fatal(err)
		}
		return int(tag.RowsAffected())
	}
	// This project's test servers are in a hurry, and say so in these settings.
	sql = strings.ReplaceAll(sql, "('synchronous_commit', 'fsync', 'full_page_writes')", "('synchronous_commit')")
	rows(`SET synchronous_commit = on`)
	if n := rows(sql); n != 0 {
		t.Errorf("fires where all is well: %d rows", n)
	}
	if p.do != "" {
		for _, statement := range strings.Split(p.do, "; ") {
			rows(statement)
		}
	}
	if p.of != "" {
		if !strings.Contains(sql, p.of) {
			t.Fatalf("does not say %q any more", p.of)
		}
		sql = strings.ReplaceAll(sql, p.of, p.instead)
	}
	if title == "Calls that wait for a key" {
		rows(`SELECT pg_advisory_lock(1)`)
	}
	pgtest.Eventually(t, "the alert fires", func() bool { return rows(sql) > 0 })
}

// The sizes of the page are those that a test measures.
func TestSizesAreMeasured(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/operations.md")
	measured := regexp.MustCompile(`\{"(id [^"]+)", -?\d+, \w+, (\d+)\}`).FindAllStringSubmatch(read(t, "idem/memory_test.go"), -1)
	if len(measured) != 4 {
		t.Fatalf("found %d sizes", len(measured))
	}
	for _, m := range measured {
		if line := fmt.Sprintf("| %s | %s |", m[1], m[2]); !strings.Contains(page, line) {
			t.Errorf("docs/operations.md does not say %s", line)
		}
	}
}
