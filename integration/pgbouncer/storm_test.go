//go:build unix

package pgbouncer_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/conformance"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// The pooler is killed again and again in a storm of requests, between statements, in mid-statement and between COMMIT and
// its answer. Each key has one effect, and each answer is the first one.
func TestPoolerRestartedInAStorm(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, p program) {
		t.Helper()
		for _, mode := range conformance.PgxModes {
			if mode == pgx.QueryExecModeCacheStatement && !p.prepares {
				continue
			}
			t.Run(mode.String(), func(t *testing.T) {
				t.Parallel()
				restarts(t, p, mode)
			})
		}
	})
}

func restarts(t *testing.T, p program, mode pgx.QueryExecMode) {
	t.Helper()
	const keys, repeats, callers, kills = 150, 3, 12, 6
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	db := pgtest.New(t)
	db.Exec(t, effects)
	b := start(t, p, db.URL, map[string]string{"default_pool_size": "4"}) // fewer than callers: they change places
	cfg := db.Via(b.url).Config(t)
	cfg.MaxConns = callers
	cfg.ConnConfig.DefaultQueryExecMode = mode
	store := storeOn(t, db.Open(t, cfg))

	s := &storm{store: store, answers: map[string]string{}}
	requests := make(chan string)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for id := range requests {
				s.ask(t, id)
			}
		})
	}
	for n, i := range rand.New(rand.NewPCG(seed, 0)).Perm(keys * repeats) {
		requests <- fmt.Sprint(i % keys)
		if n%(keys*repeats/kills) == keys*repeats/kills/2 {
			b.kill()
			b.run(t)
		}
	}
	close(requests)
	wg.Wait()
	effects := db.Int(t, `SELECT count(*) FROM effect`)
	distinct := db.Int(t, `SELECT count(DISTINCT name) FROM effect`)
	t.Logf("PgBouncer %s, %s: requests=%d effects=%d distinct=%d asked_again=%d wrong_answers=%d", p.version, mode, keys*repeats, effects, distinct, s.again.Load(), s.wrong.Load())
	if effects != keys || distinct != keys || s.wrong.Load() > 0 {
		t.Errorf("%d effects of %d keys, %d wrong answers", effects, keys, s.wrong.Load())
	}
	if s.again.Load() == 0 {
		t.Error("no call met a dead pooler, so this shows nothing")
	}
}

type storm struct {
	store        *idem.Store[pgx.Tx]
	again, wrong atomic.Int64

	mu      sync.Mutex
	answers map[string]string
}

// errHandler is what a handler says that has lost its connection.
var errHandler = errors.New("the handler failed")

// ask asks until there is an answer, as clients do.
func (s *storm) ask(t *testing.T, id string) {
	t.Helper()
	op := idem.Op{Name: "storm", Wait: 10 * time.Second}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		res, err := idem.Do(ctx, s.store, op.Key("m1", id), idem.NoFingerprint(), func(ctx context.Context, tx pgx.Tx) (answer string, err error) {
			err = tx.QueryRow(ctx, `INSERT INTO effect VALUES ($1) RETURNING pg_current_xact_id()::text`, id).Scan(&answer)
			if err != nil {
				err = fmt.Errorf("%w: %w", errHandler, err)
			}
			return answer, err
		})
		if err == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			if first, known := s.answers[id]; known && first != res.Value {
				s.wrong.Add(1)
			}
			s.answers[id] = res.Value
			return
		}
		if !errors.Is(err, errHandler) && !errors.Is(err, idem.ErrUnavailable) && !errors.Is(err, idem.ErrUnknownOutcome) && !errors.Is(err, idem.ErrInFlight) || ctx.Err() != nil {
			t.Errorf("%s: %v", id, err)
			return
		}
		s.again.Add(1)
	}
}
