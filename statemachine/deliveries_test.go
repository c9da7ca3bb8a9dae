//go:build unix

package statemachine_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
	sm "github.com/pgonce/pgonce/statemachine"
	"pgregory.net/rapid"
)

// delivery is an event under an id, as a queue would bring it.
type delivery struct {
	row   int64
	event string
	id    string
}

// drawMachine draws arrows until they make a machine that New accepts.
func drawMachine(t *rapid.T, name string) (*sm.Machine[light], map[[2]string]string) {
	arrows := map[[2]string]string{}
	rules := []sm.Rule[light]{sm.Initial[light]("a")}
	exits := map[string]bool{}
	for _, s := range modelStates {
		for _, e := range modelEvents {
			to := rapid.SampledFrom(append(modelStates, "", "")).Draw(t, s+" "+e)
			if to == "" {
				continue
			}
			arrows[[2]string{s, e}] = to
			exits[s] = true
			rules = append(rules, from(light(s)).On(sm.NewEvent[light](e)).To(light(to)))
		}
	}
	for _, s := range modelStates {
		if !exits[s] {
			rules = append(rules, sm.Final(light(s)))
		}
	}
	m, err := sm.New(name, rules...)
	if err != nil {
		t.Skip(err.Error())
	}
	return m, arrows
}

var runs atomic.Int64

// Deliveries come twice, in another order, and at once. Whatever machine it is: the history, read by SQL, is a
// walk through the machine that ends where the row is; no id has moved a row twice; and what callers were told is what the history
// says.
func TestDeliveriesAgreeWithTheirHistory(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, lamps)
	pool := db.Pool(t)
	driver := pgxdriver.New(pool)
	rapid.Check(t, func(rt *rapid.T) {
		run := runs.Add(1)
		name := fmt.Sprintf("run %d", run)
		m, arrows := drawMachine(rt, name)
		b, err := sm.Bind[int64](m, driver, sm.Table{Name: "lamp"})
		if err != nil {
			rt.Fatal(err)
		}
		sent := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) delivery {
			return delivery{
				row: run*10 + rapid.Int64Range(0, 1).Draw(t, "row"), event: rapid.SampledFrom(modelEvents).Draw(t, "event"), id: fmt.Sprint(rapid.IntRange(0, 9).Draw(t, "id")),
			}
		}), 1, 20).Draw(rt, "deliveries")
		sent = rapid.Permutation(append(sent, sent...)).Draw(rt, "order")
		for row := range int64(2) {
			if _, err := pool.Exec(t.Context(), `INSERT INTO lamp VALUES ($1)`, run*10+row); err != nil {
				rt.Fatal(err)
			}
		}
		applied := storm(rt, b, arrows, sent)
		audit(rt, pool, name, run, arrows, applied)
	})
}

// storm fires the deliveries from several goroutines and counts the moves that callers were told of, by row and id.
func storm(rt *rapid.T, b *sm.Binding[int64, light, pgx.Tx], arrows map[[2]string]string, sent []delivery) map[string]int {
	known := map[string]bool{}
	for arrow := range arrows {
		known[arrow[1]] = true
	}
	applied := map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	work := make(chan delivery)
	for range 4 {
		wg.Go(func() {
			for d := range work {
				res, err := b.Fire(rt.Context(), d.row, sm.NewEvent[light](d.event), sm.Dedup(d.id))
				switch {
				case !known[d.event] && errors.Is(err, sm.ErrInvalid), errors.Is(err, sm.ErrConflict), errors.Is(err, sm.ErrDedupReused):
				case err != nil:
					rt.Errorf("%+v: %v", d, err)
				case res.Applied():
					if to := arrows[[2]string{string(res.From), d.event}]; to != string(res.To) {
						rt.Errorf("%+v: moved from %q to %q", d, res.From, res.To)
					}
					mu.Lock()
					applied[fmt.Sprintf("%d/%s/%s", d.row, d.id, d.event)]++
					mu.Unlock()
				}
			}
		})
	}
	for _, d := range sent {
		work <- d
	}
	close(work)
	wg.Wait()
	return applied
}

// audit walks the history that SQL reads.
func audit(rt *rapid.T, pool *pgxpool.Pool, name string, run int64, arrows map[[2]string]string, applied map[string]int) {
	for row := run * 10; row < run*10+2; row++ {
		var walk, state string
		if err := pool.QueryRow(rt.Context(), `SELECT coalesce(string_agg(concat_ws('/', from_state, event, to_state, dedup), ',' ORDER BY seq), ''), (SELECT state FROM lamp WHERE id = $2)
			FROM pgonce.transition WHERE machine = $1 AND entity = $2::bigint::text AND outcome = 0`, name, row).Scan(&walk, &state); err != nil {
			rt.Fatal(err)
		}
		at := "a"
		for step := range strings.SplitSeq(walk, ",") {
			p := strings.Split(step, "/")
			if len(p) != 4 {
				continue
			}
			if p[0] != at || arrows[[2]string{p[0], p[1]}] != p[2] {
				rt.Errorf("row %d was in %q, its history says %s", row, at, step)
			}
			at = p[2]
			key := fmt.Sprintf("%d/%s/%s", row, p[3], p[1])
			if applied[key] != 1 {
				rt.Errorf("%s was told %d times that it was applied", key, applied[key])
			}
			delete(applied, key)
		}
		if at != state {
			rt.Errorf("row %d is in %q, its history ends in %q", row, state, at)
		}
	}
	if len(applied) > 0 {
		rt.Errorf("callers were told of moves that the history does not have: %v", applied)
	}
}
