//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/pgonce/pgonce/dblock"
)

// event is one step of a history: a grant, or the end of a tenure.
type event struct {
	key   int
	ends  bool
	token dblock.Token
}

// lockModel is a lock as it must be: one tenure at a time, and each token greater than the one before.
var lockModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		keys := map[int][]porcupine.Operation{}
		for _, op := range history {
			k := op.Input.(event).key
			keys[k] = append(keys[k], op)
		}
		var parts [][]porcupine.Operation
		for _, ops := range keys {
			parts = append(parts, ops)
		}
		return parts
	},
	Init: func() any { return lockState{} },
	Step: func(state, input, _ any) (bool, any) {
		s, ev := state.(lockState), input.(event)
		if ev.ends {
			return s.held && s.token == ev.token, lockState{token: s.token}
		}
		return !s.held && ev.token > s.token, lockState{held: true, token: ev.token}
	},
}

type lockState struct {
	held  bool
	token dblock.Token
}

// recorder writes a history down.
type recorder struct {
	mu    sync.Mutex
	began time.Time
	ops   []porcupine.Operation
}

func (r *recorder) now() int64 { return int64(time.Since(r.began)) }

func (r *recorder) add(client int, ev event, call, end int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, porcupine.Operation{ClientId: client, Input: ev, Call: call, Return: end})
}

// tenure acquires and releases once, and writes it down. A tenure that the server ended has ended some time
// between its grant, which may be well before the holder heard of it, and when the holder was told of the end.
func (r *recorder) tenure(ctx context.Context, t *testing.T, c interface {
	Acquire(context.Context, dblock.Key, *dblock.LockConfig) (*locked, error)
}, client, k int, hold time.Duration,
) {
	t.Helper()
	call := r.now()
	l, err := c.Acquire(ctx, key(fmt.Sprint(k)), nil)
	if err != nil {
		if !errors.Is(err, dblock.ErrUnavailable) && !errors.Is(err, dblock.ErrNotAcquired) {
			t.Error(err)
		}
		return
	}
	r.add(client, event{key: k, token: l.Token()}, call, r.now())
	if hold > 0 {
		select {
		case <-l.Context().Done():
		case <-time.After(hold):
		}
	}
	releasing := r.now()
	err = l.Release(ctx)
	switch {
	case errors.Is(err, dblock.ErrLost):
		releasing = call
	case err != nil:
		t.Error(err)
	}
	r.add(client, event{key: k, ends: true, token: l.Token()}, releasing, r.now())
}

// record makes a history of three processes on a few keys, while sessions are killed.
func record(t *testing.T, number func(process int) func(dblock.Key) int64, rounds int) []porcupine.Operation {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	b := newBench(t)
	r := &recorder{began: time.Now()}
	stop := make(chan struct{})
	var wg, killer sync.WaitGroup
	const processes, callers, keys = 3, 5, 3
	for p, c := range b.clients(t, processes, nil) {
		if number != nil {
			c.SetNumber(number(p))
		}
		for caller := range callers {
			client := p*callers + caller
			random := rand.New(rand.NewPCG(seed, uint64(client)))
			wg.Go(func() {
				for range rounds {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.IntN(3000))*time.Millisecond)
					r.tenure(ctx, t, c, client, random.IntN(keys), time.Duration(max(0, random.IntN(3)-1))*time.Millisecond)
					cancel()
				}
			})
		}
	}
	killer.Go(func() { b.killSome(t, rand.New(rand.NewPCG(seed, 99)), stop) })
	wg.Wait()
	close(stop)
	killer.Wait()
	return r.ops
}

// A history of many tenures, many of them ended by the death of their session, is one that a lock could have:
// it is linearizable, and tokens grow.
func TestHistoryIsLinearizable(t *testing.T) {
	t.Parallel()
	ops := record(t, nil, 170)
	lost := 0
	granted := grants(ops)
	for _, op := range ops {
		if ev := op.Input.(event); ev.ends && granted[ev.token] == op.Call {
			lost++
		}
	}
	forgive(ops, granted)
	verdict := porcupine.CheckOperationsTimeout(lockModel, ops, 2*time.Minute)
	t.Logf("R2 operations=%d lost=%d verdict=%v", len(ops), lost, verdict)
	if verdict != porcupine.Ok {
		t.Errorf("the history of %d operations is %v", len(ops), verdict)
	}
}

// grants is when each tenure was asked for.
func grants(ops []porcupine.Operation) map[dblock.Token]int64 {
	granted := map[dblock.Token]int64{}
	for _, op := range ops {
		if ev := op.Input.(event); !ev.ends {
			granted[ev.token] = op.Call
		}
	}
	return granted
}

// forgive widens the ends of tenures that were handed over in memory on a session which was found dead later: nobody can say
// which of them outlived it. That is the known limit of a lock without a fence when the server ends a session:
// the next holder may have it before the process hears of that. On a machine with work to do it shows.
func forgive(ops []porcupine.Operation, granted map[dblock.Token]int64) {
	const local = 10 // bits of a token that count hand-overs
	dead := map[dblock.Token]bool{}
	for _, op := range ops {
		if ev := op.Input.(event); ev.ends && granted[ev.token] == op.Call {
			dead[ev.token>>local] = true
		}
	}
	for i, op := range ops {
		if ev := op.Input.(event); ev.ends && dead[ev.token>>local] {
			ops[i].Call = granted[ev.token]
		}
	}
}

// The same without exclusion between the processes is found out.
func TestBrokenHistoryIsFoundOut(t *testing.T) {
	t.Parallel()
	ops := record(t, func(process int) func(dblock.Key) int64 {
		return func(k dblock.Key) int64 { return k.Number() + int64(process) }
	}, 30)
	forgive(ops, grants(ops)) // what is forgiven must not hide this
	if verdict := porcupine.CheckOperationsTimeout(lockModel, ops, 2*time.Minute); verdict != porcupine.Illegal {
		t.Errorf("locks that do not exclude: %v", verdict)
	}
}
