//go:build unix

package failover_test

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// audit compares what clients were told with what the last primary has.
type audit struct {
	acknowledged int // answers that promise an effect
	lost         int // of them, those whose effect is not there
	doubled      int // things that were done twice
	alone        int // effects without a record, or records without an effect
	tokens       []string
	said         []string // what else there is to say
}

// newAudit reads the database when nobody writes to it any more.
func newAudit(ctx context.Context, db *pgx.Conn, entries []entry, bank string) (*audit, error) {
	a := &audit{tokens: tokenFaults(entries)}
	for _, e := range entries {
		if e.Fault != "" {
			a.note("%s %s: %s", e.Kind, e.Name, e.Fault)
		}
	}
	for _, step := range []func(context.Context, *pgx.Conn, []entry) error{a.refunds, a.remittances, a.moves, a.guarded} {
		if err := step(ctx, db, entries); err != nil {
			return nil, err
		}
	}
	return a, a.payments(bank)
}

func (a *audit) note(format string, args ...any) {
	if len(a.said) < 20 {
		a.said = append(a.said, fmt.Sprintf(format, args...))
	}
}

// refunds: the effect is a row, the record another one.
func (a *audit) refunds(ctx context.Context, db *pgx.Conn, entries []entry) error {
	return a.receipts(ctx, db, entries, opDo, `SELECT name, receipt FROM effect`,
		`SELECT id FROM pgonce.idem_record WHERE op = 'refund.create' AND state = 1`)
}

// remittances: the effect is what the last step has booked. Its record is the step's, until the key's takes its place.
func (a *audit) remittances(ctx context.Context, db *pgx.Conn, entries []entry) error {
	return a.receipts(ctx, db, entries, opSteps, `SELECT name, receipt FROM booked`,
		`SELECT id FROM pgonce.idem_record WHERE op = 'remittance.send' AND state = 1
		 UNION ALL SELECT l.id FROM pgonce.idem_lease l JOIN pgonce.idem_step s USING (scope, digest) WHERE l.op = 'remittance.send' AND s.name = 'book' AND s.state = 2`)
}

func (a *audit) receipts(ctx context.Context, db *pgx.Conn, entries []entry, kind, effects, records string) error {
	type row struct{ Name, Receipt string }
	rows, _ := db.Query(ctx, effects)
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		return err
	}
	rows, _ = db.Query(ctx, records)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	there, times, recorded := map[row]bool{}, map[string]int{}, map[string]int{}
	for _, r := range all {
		there[r] = true
		times[r.Name]++
	}
	for _, name := range names {
		recorded[name]++
	}
	for name, n := range times {
		if n > 1 {
			a.doubled++
			a.note("%s %s: %d effects", kind, name, n)
		}
		if recorded[name] == 0 {
			a.alone++
			a.note("%s %s: an effect without a record", kind, name)
		}
	}
	for name := range recorded {
		if times[name] == 0 {
			a.alone++
			a.note("%s %s: a record without an effect", kind, name)
		}
	}
	for _, e := range entries {
		if e.Kind != kind || e.Fault != "" {
			continue
		}
		a.acknowledged++
		if !there[row{e.Name, e.Receipt}] {
			a.lost++
		}
	}
	return nil
}

// moves: the effect is the row's state, the record its history.
func (a *audit) moves(ctx context.Context, db *pgx.Conn, entries []entry) error {
	type row struct {
		ID           string
		Made, Begun  bool
		Paid         bool
		Moves, Again int64
	}
	rows, _ := db.Query(ctx, `
		SELECT coalesce(o.id::text, h.entity), o.id IS NOT NULL, coalesce(h.begun, 0) > 0, coalesce(o.state = 'paid', false), coalesce(h.moves, 0), greatest(coalesce(h.begun, 0) - 1, 0)
		FROM orders o FULL JOIN (
			SELECT entity, count(*) FILTER (WHERE event = '(create)') AS begun, count(*) FILTER (WHERE event = 'pay' AND outcome = 0) AS moves
			FROM pgonce.transition WHERE machine = 'order' GROUP BY entity) h ON h.entity = o.id::text`)
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		return err
	}
	paid := map[string]bool{}
	for _, r := range all {
		paid[r.ID] = r.Paid
		if r.Moves > 1 || r.Again > 0 {
			a.doubled++
			a.note("order %s was paid %d times", r.ID, r.Moves)
		}
		if r.Made != r.Begun || r.Paid != (r.Moves > 0) {
			a.alone++
			a.note("order %s: there %t, with a beginning %t; paid %t, by %d moves", r.ID, r.Made, r.Begun, r.Paid, r.Moves)
		}
	}
	for _, e := range entries {
		if e.Kind != opFire || e.Fault != "" {
			continue
		}
		a.acknowledged++
		if !paid[e.Name] {
			a.lost++
		}
	}
	return nil
}

// guarded: what was written under a lock is in the order of its tokens, since nobody else writes under it.
func (a *audit) guarded(ctx context.Context, db *pgx.Conn, _ []entry) error {
	var late int
	err := db.QueryRow(ctx, `
		SELECT count(*) FROM (SELECT token <= lag(token) OVER (PARTITION BY name ORDER BY seq) AS late FROM guarded) AS g WHERE late`).Scan(&late)
	if late > 0 {
		a.tokens = append(a.tokens, fmt.Sprintf("%d writes of past holders have landed", late))
	}
	return err
}

// payments: the bank was asked for each remittance under one reference, however often.
func (a *audit) payments(bank string) error {
	text, err := os.ReadFile(bank)
	if err != nil {
		return err
	}
	references := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, reference, _ := strings.Cut(strings.TrimSpace(line), " ")
		if first := references[name]; first != "" && first != reference {
			a.doubled++
			a.note("remittance %s was paid as %s and as %s", name, first, reference)
		}
		references[name] = reference
	}
	return nil
}

// tokenFaults says where tokens do not grow: a grant that was asked for after another one was made must have the greater token.
func tokenFaults(entries []entry) (faults []string) {
	byName := map[string][]entry{}
	for _, e := range entries {
		if e.Kind == opLock && e.Fault == "" {
			byName[e.Name] = append(byName[e.Name], e)
		}
	}
	for name, grants := range byName {
		told := slices.Clone(grants)
		slices.SortFunc(told, func(x, y entry) int { return cmp.Compare(x.Told, y.Told) })
		slices.SortFunc(grants, func(x, y entry) int { return cmp.Compare(x.Asked, y.Asked) })
		var greatest int64
		next := 0
		for _, g := range grants {
			for ; next < len(told) && told[next].Told < g.Asked; next++ {
				greatest = max(greatest, told[next].Token)
			}
			if g.Token <= greatest {
				faults = append(faults, fmt.Sprintf("lock %s: token %d after %d", name, g.Token, greatest))
			}
		}
	}
	return faults
}
