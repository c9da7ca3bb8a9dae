package dblock

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// leaseRow is one row of the table of leases, as [Client.Inspect] sees it.
type leaseRow struct {
	row
	holder    string
	age, left time.Duration
	fenced    bool // given back, while a fenced transaction of the holder's had it
}

// inspect is [Client.Inspect] for leases.
func (l *leases) inspect(ctx context.Context, named []Key) (Snapshot, error) {
	asked := l.now()
	rows, err := l.readRows(ctx)
	if err != nil {
		return nil, publicError(err)
	}
	v := newSurvey(l.engine) // of the advisory locks, by which LockTx holds a key
	if err := v.read(ctx, l.pool); err != nil {
		return nil, publicError(err)
	}
	keys := map[Key]*KeyStatus{}
	status := func(k Key) *KeyStatus {
		if keys[k] == nil {
			keys[k] = &KeyStatus{Kind: LeaseLock, Key: k, Number: l.number(k)}
		}
		return keys[k]
	}
	for _, k := range named {
		status(k)
	}
	l.mu.Lock()
	for _, r := range rows {
		st := status(Key{r.Space, r.ID})
		st.Holdings = append(st.Holdings, l.holding(r))
	}
	l.table(status, rows, asked)
	l.unlock()
	var s Snapshot
	for _, st := range keys {
		for _, r := range v.rows {
			if r.number == st.Number && r.granted {
				st.Holdings = append(st.Holdings, Holding{By: ByOther, Name: r.app, PID: int(r.pid), Shared: r.shared, Held: max(r.age, 0)})
			} else if r.number == st.Number {
				st.Waits = append(st.Waits, Waiting{Name: r.app, PID: int(r.pid), Shared: r.shared, Waited: max(r.waited, 0), For: r.blockers})
			}
		}
		s = append(s, *st)
	}
	slices.SortFunc(s, func(a, b KeyStatus) int {
		return cmp.Or(cmp.Compare(a.Key.Space, b.Key.Space), cmp.Compare(a.Key.ID, b.Key.ID))
	})
	return s, nil
}

// readRows reads the rows that keep others out.
func (l *leases) readRows(ctx context.Context) (rows []leaseRow, err error) {
	for scan, err := range l.pool.Query(ctx, pg.In(l.cfg.Schema, sqlLeaseInspect)) {
		var r leaseRow
		var age, left int64
		if err == nil {
			err = scan(&r.Space, &r.ID, &r.Nonce, &r.holder, &r.fenced, &age, &left)
		}
		if err != nil {
			return nil, pg.ExplainSchema(l.cfg.Schema, err)
		}
		r.age, r.left = time.Duration(age)*time.Microsecond, time.Duration(left)*time.Microsecond
		rows = append(rows, r)
	}
	return rows, nil
}

// holding is what a row says of who holds its key. The mutex is held.
func (l *leases) holding(r leaseRow) Holding {
	h := Holding{By: ByLease, Name: r.holder, Held: r.age, Left: r.left}
	if r.fenced {
		h.By, h.Left = ByFence, 0
	}
	own := l.held[r.Nonce]
	if own == nil {
		return h
	}
	h.Own, h.Left = true, max(own.left(), 0)
	for _, t := range own.hold.tenures {
		h.Token, h.Held = t.token, l.now()-t.granted
	}
	return h
}

// table takes down what this process knows: who waits in it, and what it holds of which the server knows nothing any more.
// The mutex is held.
func (l *leases) table(status func(Key) *KeyStatus, rows []leaseRow, asked time.Duration) {
	for _, en := range l.entries {
		if len(en.line) == 0 {
			continue
		}
		w := Waiting{Own: true, Name: l.cfg.Holder, Callers: len(en.line)}
		for _, r := range en.line {
			w.Waited = max(w.Waited, l.now()-r.began)
		}
		st := status(en.key)
		st.Waits = append(st.Waits, w)
	}
	for nonce, own := range l.held {
		if slices.ContainsFunc(rows, func(r leaseRow) bool { return r.Nonce == nonce }) {
			continue
		}
		for _, t := range own.hold.tenures {
			if t.granted < asked {
				st := status(t.key)
				st.Holdings = append(st.Holdings, Holding{
					By: ByLease, Own: true, Name: l.cfg.Holder, Token: t.token, Held: l.now() - t.granted, Left: max(own.left(), 0), Gone: true,
				})
			}
		}
	}
}
