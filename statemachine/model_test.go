//go:build unix

package statemachine_test

import (
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
)

// model is a machine as a person would write it down: a list of arrows, and the row with all that it
// has gone through.
type model struct {
	arrows  map[[2]string]string // state, event -> state
	ignored map[[2]string]bool

	state, lastEvent, lastTo string
	ids                      map[string]verdict
}

// verdict is what is expected of one call. An outcome of 0 is an error.
type verdict struct {
	outcome         sm.Outcome
	event, from, to string
	err             error
}

var (
	modelStates = []string{"a", "b", "c", "d"}
	modelEvents = []string{"e", "f", "g"}
)

// randomMachine draws arrows until they make a machine that New accepts.
func randomMachine(r *mrand.Rand, name string) (*sm.Machine[light], *model) {
	for {
		m := &model{arrows: map[[2]string]string{}, ignored: map[[2]string]bool{}, state: "a", ids: map[string]verdict{}}
		rules := []sm.Rule[light]{sm.Initial[light]("a")}
		exits := map[string]bool{}
		for _, s := range modelStates {
			for _, e := range modelEvents {
				switch to := modelStates[r.IntN(4)]; r.IntN(4) {
				case 0, 1:
					m.arrows[[2]string{s, e}] = to
					exits[s] = true
					rules = append(rules, from(light(s)).On(sm.NewEvent[light](e)).To(light(to)))
				case 2:
					m.ignored[[2]string{s, e}] = true
					rules = append(rules, from(light(s)).Ignore(sm.NewEvent[light](e)))
				}
			}
		}
		for _, s := range modelStates {
			if !exits[s] {
				rules = append(rules, sm.Final(light(s)))
			}
		}
		machine, err := sm.New(name, rules...)
		if err == nil && !slices.ContainsFunc(modelEvents, func(e string) bool { return len(m.targets(e)) == 0 }) {
			return machine, m
		}
	}
}

// targets are where an event leads.
func (m *model) targets(event string) (to []string) {
	for arrow, target := range m.arrows {
		if arrow[1] == event {
			to = append(to, target)
		}
	}
	return to
}

// fire is what the documentation says that an event comes to.
func (m *model) fire(event, id string) verdict {
	for _, to := range m.targets(event) {
		if _, again := m.arrows[[2]string{to, event}]; again && id == "" {
			return verdict{err: sm.ErrInvalid}
		}
	}
	if first, ok := m.ids[id]; ok {
		if first.event != event {
			return verdict{err: sm.ErrDedupReused}
		}
		if first.outcome == sm.Applied {
			first.outcome = sm.AlreadyApplied
		}
		return first
	}
	v := verdict{event: event, from: m.state, to: m.state}
	target, allowed := m.arrows[[2]string{m.state, event}]
	switch {
	case allowed:
		v.outcome, v.to = sm.Applied, target
		m.state, m.lastEvent, m.lastTo = target, event, target
	case slices.Contains(m.targets(event), m.state) && m.onlyWay(event):
		v.outcome = sm.AlreadyApplied
	case m.ignored[[2]string{m.state, event}]:
		v.outcome = sm.Superseded
	default:
		return verdict{err: sm.ErrConflict}
	}
	if id != "" {
		m.ids[id] = v
	}
	return v
}

// onlyWay says whether the row is where it is because of the event.
func (m *model) onlyWay(event string) bool {
	if m.lastEvent == event && m.lastTo == m.state {
		return true
	}
	for _, other := range modelEvents {
		if other != event && slices.Contains(m.targets(other), m.state) {
			return false
		}
	}
	return m.state != "a" // where it was created
}

// Random machines and random calls, one after the other: every answer is what the model says.
func TestFireAgreesWithAModel(t *testing.T) {
	t.Parallel()
	const machines, calls = 40, 60
	seed := mrand.Uint64()
	if given := os.Getenv("PGONCE_SEED"); given != "" {
		var err error
		if seed, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("again: PGONCE_SEED=%d", seed)
	r := mrand.New(mrand.NewPCG(seed, 0))
	db := pgtest.New(t)
	db.Exec(t, lamps+fmt.Sprintf(`; INSERT INTO lamp SELECT g FROM generate_series(0, %d) g`, machines))
	driver := pgxdriver.New(db.Pool(t))
	answers := map[string]int{}
	for n := range int64(machines) {
		machine, m := randomMachine(r, fmt.Sprintf("machine %d", n))
		b, err := sm.Bind[int64](machine, driver, sm.Table{Name: "lamp"})
		if err != nil {
			t.Fatal(err)
		}
		for i := range calls {
			event, id := modelEvents[r.IntN(3)], ""
			opts := []sm.Option{}
			if r.IntN(2) == 0 {
				id = fmt.Sprint(r.IntN(30))
				opts = append(opts, sm.Dedup(id))
			}
			if r.IntN(3) == 0 {
				opts = append(opts, sm.Lock())
			}
			want := m.fire(event, id)
			res, err := b.Fire(t.Context(), n, sm.NewEvent[light](event), opts...)
			if res.Outcome != want.outcome || !errors.Is(err, want.err) || want.err == nil && (string(res.From) != want.from || string(res.To) != want.to) {
				t.Fatalf("machine %d %v, ignored %v, call %d, %s with id %q: got %+v, %v; want %+v", n, m.arrows, m.ignored, i, event, id, res, err, want)
			}
			answers[fmt.Sprint(want.outcome, want.err)]++
		}
	}
	t.Log(answers)
	if len(answers) < 6 {
		t.Errorf("only these answers came up: %v", answers)
	}
}
