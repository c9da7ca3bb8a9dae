package dblock

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// survey makes a Snapshot of the server's rows and of what this process knows. The rows are read first, and
// what has come to the table since is left out: else a lock that goes from one process to another in between
// would have two holders.
type survey struct {
	engine *engine
	asked  time.Duration // before the rows were read
	rows   []lockRow
	names  map[int64]Key         // by number
	ours   map[int64]sessionName // by pid: sessions of this schema's clients
	alone  map[int64]int64       // by pid: their liveness locks
	mine   map[int64]bool        // by pid: those of this client
	held   map[int64][]Holding   // by number: by this client
	lines  map[int64]Waiting     // by number: who waits in this client
	keys   map[int64]bool        // numbers that are keys', not liveness locks nor companions
}

// lockRow is one lock on the server, held or waited for.
type lockRow struct {
	pid, number       int64
	shared, granted   bool
	app               string
	waited, idle, age time.Duration // the age is the transaction's; below 0 where the server does not say
	blockers          []int
}

// inspectAttempts is how often the server is asked before a doubt is left: see [survey.sort].
const inspectAttempts = 3

func (a advisory) inspect(ctx context.Context, keys []Key) (s Snapshot, err error) {
	e := a.engine
	ctx, cancel := context.WithTimeout(ctx, pg.NetTimeout(ctx))
	defer cancel()
	conn, err := e.db(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	doubt := true
	for attempt := 0; doubt && attempt < inspectAttempts; attempt++ {
		v := newSurvey(e)
		if err := v.read(ctx, conn); err != nil {
			return nil, publicError(err)
		}
		s, doubt = v.snapshot(keys)
	}
	return s, nil
}

func newSurvey(e *engine) *survey {
	return &survey{
		engine: e, asked: e.now(), names: map[int64]Key{}, ours: map[int64]sessionName{}, alone: map[int64]int64{},
		mine: map[int64]bool{}, held: map[int64][]Holding{}, lines: map[int64]Waiting{}, keys: map[int64]bool{},
	}
}

func (v *survey) read(ctx context.Context, q pg.Querier) error {
	for scan, err := range q.Query(ctx, sqlInspect) {
		var r lockRow
		var waited, idle, age int64
		var blockers string
		if err == nil {
			err = scan(&r.pid, &r.number, &r.shared, &r.granted, &r.app, &waited, &idle, &age, &blockers)
		}
		if err != nil {
			return err
		}
		if r.number == v.engine.gate || r.number == v.engine.members {
			continue // sessions have these for themselves
		}
		r.waited, r.idle, r.age = time.Duration(waited)*time.Microsecond, time.Duration(idle)*time.Microsecond, time.Duration(age)*time.Microsecond
		for pid := range strings.SplitSeq(blockers, ",") {
			if n, err := strconv.Atoi(pid); err == nil {
				r.blockers = append(r.blockers, n)
			}
		}
		slices.Sort(r.blockers)
		r.blockers = slices.Compact(r.blockers)
		v.rows = append(v.rows, r)
	}
	return nil
}

// snapshot puts it together; doubt says that another look may tell more.
func (v *survey) snapshot(named []Key) (s Snapshot, doubt bool) {
	for _, r := range v.rows { // sessions of ours hold the liveness lock that their name is made of
		n, ok := parseSessionName(r.app)
		if ok && r.granted && !r.shared && n.tag == sessionTag(v.engine.cfg.Schema, r.number) {
			v.ours[r.pid], v.alone[r.pid] = n, r.number
		}
	}
	v.table()
	asked := map[int64]bool{}
	for _, k := range named {
		n := v.engine.number(k)
		v.names[n], asked[n] = k, true
	}
	doubt = v.sort()
	for n := range v.keys {
		if st := v.status(n); asked[n] || len(st.Holdings)+len(st.Waits) > 0 {
			s = append(s, st)
		}
	}
	slices.SortFunc(s, func(a, b KeyStatus) int {
		return cmp.Or(btoi(a.Key == Key{})-btoi(b.Key == Key{}), cmp.Compare(a.Key.Space, b.Key.Space),
			cmp.Compare(a.Key.ID, b.Key.ID), cmp.Compare(a.Number, b.Number))
	})
	return s, doubt
}

// table takes down what this process knows.
func (v *survey) table() {
	e := v.engine
	e.mu.Lock()
	defer e.unlock()
	for _, s := range e.sessions() {
		v.mine[s.pid] = true
	}
	for n, en := range e.entries {
		v.names[n] = en.key
		if h := en.hold; h != nil && h.ground.alive() {
			v.mine[h.ground.(*session).pid] = true
			v.held[n] = v.tenures(h)
		}
		w := Waiting{Own: true, Name: e.cfg.Holder, Callers: len(en.line)}
		for i, r := range en.line {
			w.Shared = w.Shared || i == 0 && r.cfg.Shared
			w.Waited = max(w.Waited, e.now()-r.began)
		}
		v.lines[n] = w
	}
}

func (v *survey) tenures(h *hold) (all []Holding) {
	e, pid := v.engine, h.ground.(*session).pid
	has := slices.ContainsFunc(v.rows, func(r lockRow) bool {
		return r.granted && r.pid == pid && r.number == h.entry.number
	})
	for _, t := range h.tenures {
		if t.granted >= v.asked {
			continue
		}
		all = append(all, Holding{
			By: BySession, Own: true, Name: e.cfg.Holder, PID: int(pid), Shared: t.shared,
			Token: t.token, Held: e.now() - t.granted, Left: h.ground.left(), Gone: !has,
		})
	}
	return all
}

// sort tells keys from companions among the numbers that sessions of ours have. One that has a companion, or
// waits for it, holds the key. While it looks at the companion of a free key it has both alike, for
// microseconds, and unless one is named nothing tells which is which: that is the doubt.
func (v *survey) sort() (doubt bool) {
	has, holds := map[int64]map[int64]bool{}, map[int64]map[int64]bool{} // pids by number
	for _, r := range v.rows {
		if _, ok := v.ours[r.pid]; !ok || v.alone[r.pid] == r.number {
			continue
		}
		if has[r.number] == nil {
			has[r.number], holds[r.number] = map[int64]bool{}, map[int64]bool{}
		}
		has[r.number][r.pid] = true
		if r.granted {
			holds[r.number][r.pid] = true
		}
	}
	implies := func(n, m int64) bool { // who has n holds m
		for pid := range has[n] {
			if !holds[m][pid] {
				return false
			}
		}
		return has[n] != nil
	}
	for n := range has {
		v.keys[n] = true
		for _, m := range withCompanions(n)[1:] {
			if !implies(n, m) {
				continue
			}
			if _, named := v.names[m]; named || !implies(m, n) {
				delete(v.keys, n)
			} else if _, named := v.names[n]; !named {
				doubt = true
			}
		}
	}
	for n := range v.names {
		v.keys[n] = true
	}
	return doubt
}

// status is what is known of one key.
func (v *survey) status(n int64) KeyStatus {
	st := KeyStatus{Kind: AdvisoryLock, Key: v.names[n], Number: n, Holdings: v.held[n]}
	family := withCompanions(n)
	var rows []lockRow
	// Pids. Who waits for a companion holds the key, and does not have it yet. Who fences for an exclusive tenure has both companions.
	waits, holds, both := map[int64]bool{}, map[int64]bool{}, map[int64]bool{}
	for _, r := range v.rows {
		if slices.Contains(family, r.number) {
			rows = append(rows, r)
			waits[r.pid] = waits[r.pid] || !r.granted
			holds[r.pid] = holds[r.pid] || r.granted && r.number == n
			both[r.pid] = both[r.pid] || r.granted && r.number == n^companionExclusive
		}
	}
	inLine := v.lines[n].Callers > 0
	for _, r := range rows {
		if !r.granted {
			w := v.wait(n, r)
			inLine = inLine && !w.Own
			st.Waits = append(st.Waits, w)
			continue
		}
		listed := slices.ContainsFunc(v.held[n], func(h Holding) bool { return h.PID == int(r.pid) })
		_, ours := v.ours[r.pid]
		if r.number == n^companionAny && both[r.pid] {
			continue
		}
		if companion := r.number != n; !listed && !waits[r.pid] && (!companion || !ours && !holds[r.pid] && r.shared) {
			st.Holdings = append(st.Holdings, v.holding(n, r))
		}
	}
	if inLine {
		st.Waits = append(st.Waits, v.lines[n])
	}
	slices.SortFunc(st.Holdings, func(a, b Holding) int {
		return cmp.Or(cmp.Compare(a.By, b.By), cmp.Compare(a.PID, b.PID), cmp.Compare(a.Token, b.Token))
	})
	slices.SortFunc(st.Waits, func(a, b Waiting) int { return cmp.Or(cmp.Compare(b.Waited, a.Waited), cmp.Compare(a.PID, b.PID)) })
	return st
}

// holding is what a row says of who holds key n.
func (v *survey) holding(n int64, r lockRow) Holding {
	h := Holding{By: ByOther, Name: r.app, PID: int(r.pid), Shared: r.shared, Held: max(r.age, 0)}
	if r.number != n {
		h.By, h.Shared = ByFence, r.number == n^companionAny
	}
	name, ours := v.ours[r.pid]
	if !ours {
		return h
	}
	h.By, h.Own, h.Name, h.Held = BySession, v.mine[r.pid], name.holder, 0
	if r.idle >= 0 {
		h.Left = max(name.ttl-r.idle, time.Millisecond)
	}
	return h
}

// wait is what a row says of who waits for key n.
func (v *survey) wait(n int64, r lockRow) Waiting {
	w := Waiting{Name: r.app, Shared: r.shared, Waited: max(r.waited, 0)}
	if name, ok := v.ours[r.pid]; ok {
		w.Name = name.holder
	}
	if v.mine[r.pid] {
		w = v.lines[n]
		w.Own, w.Name = true, v.engine.cfg.Holder
	}
	w.PID, w.For = int(r.pid), r.blockers
	return w
}
