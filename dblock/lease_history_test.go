//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// leaseEvent is one step of a history: a grant, or the end of a tenure.
type leaseEvent struct {
	key   int
	ends  bool
	token dblock.Token
}

// leaseModel is a lock as it must be: one tenure at a time, and each token greater than the one before.
var leaseModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		keys := map[int][]porcupine.Operation{}
		for _, op := range history {
			k := op.Input.(leaseEvent).key
			keys[k] = append(keys[k], op)
		}
		var parts [][]porcupine.Operation
		for _, ops := range keys {
			parts = append(parts, ops)
		}
		return parts
	},
	Init: func() any { return leaseState{} },
	Step: func(state, input, _ any) (bool, any) {
		s, ev := state.(leaseState), input.(leaseEvent)
		if ev.ends {
			return s.held && s.token == ev.token, leaseState{token: s.token}
		}
		return !s.held && ev.token > s.token, leaseState{held: true, token: ev.token}
	},
}

type leaseState struct {
	held  bool
	token dblock.Token
}

// leaseRecorder writes a history down.
type leaseRecorder struct {
	mu    sync.Mutex
	began time.Time
	ops   []porcupine.Operation
}

func (r *leaseRecorder) now() int64 { return int64(time.Since(r.began)) }

func (r *leaseRecorder) add(client int, ev leaseEvent, call, end int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, porcupine.Operation{ClientId: client, Input: ev, Call: call, Return: end})
}

// tenure acquires and releases once, and writes it down. A tenure that the server ended has ended some time
// between its grant, which may be well before the holder heard of it, and when the holder was told of the end.
func (r *leaseRecorder) tenure(ctx context.Context, t *testing.T, c interface {
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
	r.add(client, leaseEvent{key: k, token: l.Token()}, call, r.now())
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
	r.add(client, leaseEvent{key: k, ends: true, token: l.Token()}, releasing, r.now())
}

// A history of leases, of which some die with their holders, frozen or killed, is one that a lock could have: it
// is linearizable, and tokens grow.
func TestLeaseHistoryIsLinearizable(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	b := newBench(t)
	r := &leaseRecorder{began: time.Now()}
	var wg sync.WaitGroup
	const processes, callers, keys, rounds = 3, 5, 3, 60
	for p := range processes {
		c := b.leases(t, &dblock.Config{TTL: time.Second})
		for caller := range callers {
			client := p*callers + caller
			random := rand.New(rand.NewPCG(seed, uint64(client)))
			wg.Go(func() {
				for range rounds {
					r.tenure(within(t), t, c, client, random.IntN(keys), time.Duration(max(0, random.IntN(3)-1))*time.Millisecond)
				}
			})
		}
	}
	for i := range 4 { // these hold key 1 and die: their tenure ends when the row has expired
		call := r.now()
		h := startChild(t, "DBLOCK_LEASEHOLDER="+b.URL)
		ev := leaseEvent{key: 1, token: h.token}
		r.add(1000+i, ev, call, r.now())
		dies := r.now()
		if err := h.Process.Signal([]syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP}[i%2]); err != nil {
			t.Fatal(err)
		}
		pgtest.Eventually(t, "its lease is over", func() bool {
			return b.Int(t, `SELECT count(*) FROM pgonce.lease WHERE id = '1' AND expires_at > now() AND holder LIKE '%/' || $1::text || ' %'`, fmt.Sprint(h.Process.Pid)) == 0
		})
		ev.ends = true
		r.add(1000+i, ev, dies, r.now())
	}
	wg.Wait()
	verdict := porcupine.CheckOperationsTimeout(leaseModel, r.ops, 2*time.Minute)
	t.Logf("operations=%d verdict=%v", len(r.ops), verdict)
	if verdict != porcupine.Ok {
		t.Errorf("the history of %d operations is %v", len(r.ops), verdict)
	}
}
