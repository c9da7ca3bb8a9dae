package idem

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

const (
	defaultLease  = 30 * time.Second
	shortestLease = time.Second
	longestLease  = time.Hour
	beatsPerLease = 3
	leaseMargin   = 10 // a tenth of the lease is left between our own deadline and the server's
)

// workers is the part of a store that keeps the leases of its process alive: one row of idem_worker, renewed by
// one goroutine for as long as there is a lease. The last call that leaves waits for that goroutine.
type workers struct {
	db    pg.Querier
	sql   *statements
	lease time.Duration
	turn  chan struct{} // one at a time begins and ends with leases

	current *worker // guarded by turn
}

func newWorkers(db pg.Querier, sql *statements, lease time.Duration) *workers {
	return &workers{db: db, sql: sql, lease: lease, turn: make(chan struct{}, 1)}
}

// worker is one row of idem_worker. Once its time is over, for us or for the server, it and all of its leases are
// lost for good: the next call gets a new one.
//
// Our time is over first. It is counted from before the last heartbeat that was answered had been sent, the
// server's from when it executed that one; and ours is a tenth shorter. The clock is the monotonic one.
type worker struct {
	id int64

	mu    sync.Mutex
	until time.Time // by our own clock
	dead  bool
	runs  map[int64]context.CancelCauseFunc // by nonce
	timer *time.Timer                       // fires at until

	stop, done chan struct{} // of the heartbeat, while there is one
}

// enter puts a lease under the worker's heartbeat. cancel is called when it is lost.
func (ws *workers) enter(ctx context.Context, nonce int64, cancel context.CancelCauseFunc) (*worker, error) {
	select {
	case ws.turn <- struct{}{}:
		defer func() { <-ws.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	w := ws.current
	if w != nil && w.left() < ws.lease/2 {
		_ = ws.beat(ctx, w) // or its time is over, and there is a new one
	}
	if w == nil || w.left() < ws.lease/4 {
		var err error
		if w, err = ws.begin(ctx); err != nil {
			return nil, err
		}
		ws.current = w
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.runs[nonce] = cancel
	if w.stop == nil {
		w.stop, w.done = make(chan struct{}), make(chan struct{})
		w.timer = time.AfterFunc(time.Until(w.until), w.expire)
		go ws.keep(context.WithoutCancel(ctx), w, w.stop, w.done)
	}
	return w, nil
}

// leave takes a lease out of the heartbeat's care. forget is for one that may be ours on the server without our
// knowing it: then the worker gets no new lease, so that its row, and with it that lease, dies with its others.
func (ws *workers) leave(w *worker, nonce int64, forget bool) {
	ws.turn <- struct{}{}
	defer func() { <-ws.turn }()
	if forget && ws.current == w {
		ws.current = nil
	}
	w.mu.Lock()
	delete(w.runs, nonce)
	if len(w.runs) > 0 {
		w.mu.Unlock()
		return
	}
	stop, done := w.stop, w.done
	w.stop, w.done = nil, nil
	w.timer.Stop()
	w.mu.Unlock()
	close(stop)
	<-done
}

// begin makes a new worker. An INSERT whose answer was lost leaves a row that nobody uses.
func (ws *workers) begin(ctx context.Context) (*worker, error) {
	const most = 100 // connections of the pool that a restart of the server has left dead
	for n, start := 1, time.Now(); ; n++ {
		w := &worker{id: newAttempt(), runs: map[int64]context.CancelCauseFunc{}}
		sent := time.Now()
		tctx, cancel := pg.TripContext(ctx)
		err := ws.db.Run(tctx, pg.Stmt{SQL: ws.sql.workerNew, Args: []any{w.id, ws.lease.Seconds()}})
		cancel()
		switch {
		case err == nil:
			w.until = sent.Add(ws.lease - ws.lease/leaseMargin)
			return w, nil
		case pg.Code(err) == pg.CodeReadOnlyTx:
			return nil, fmt.Errorf("%w: %w", ErrReadOnly, err)
		case pg.Rejected(err) && !isStale(err):
			return nil, err
		case n == most || !isStale(err) || ctx.Err() != nil || time.Since(start) >= pg.NetTimeout(ctx):
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
}

// keep renews the worker's row until stop is closed, or the worker is dead.
func (ws *workers) keep(ctx context.Context, w *worker, stop, done chan struct{}) {
	defer close(done)
	every := ws.lease / beatsPerLease
	timer := time.NewTimer(every)
	defer timer.Stop()
	for {
		select {
		case <-stop:
			return
		case <-timer.C:
		}
		if !w.alive() {
			return
		}
		if ws.beat(ctx, w) == nil {
			timer.Reset(every)
		} else {
			timer.Reset(every / beatsPerLease)
		}
	}
}

// beat is one heartbeat. A worker whose row says that its time is over, or is not there, is dead. One that is not answered may
// have been renewed; its own time goes on regardless.
func (ws *workers) beat(ctx context.Context, w *worker) error {
	tctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(pg.NetTimeout(ctx), ws.lease/beatsPerLease))
	defer cancel()
	sent := time.Now()
	var rows int64
	err := ws.db.Run(tctx, pg.Stmt{SQL: ws.sql.workerBeat, Args: []any{w.id, ws.lease.Seconds()}, Rows: &rows})
	switch {
	case err != nil:
		return err
	case rows == 0:
		w.die(errors.New("its row says that its time is over"))
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.dead && time.Now().Before(w.until) {
		w.until = sent.Add(ws.lease - ws.lease/leaseMargin)
		if w.stop != nil {
			w.timer.Reset(time.Until(w.until))
		}
	}
	return nil
}

// expire is what the timer calls.
func (w *worker) expire() {
	if w.left() <= 0 {
		w.die(errors.New("no heartbeat was answered in time"))
	}
}

// die ends all runs of the worker.
func (w *worker) die(why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return
	}
	w.dead = true
	for _, cancel := range w.runs {
		cancel(fmt.Errorf("%w: %w", ErrLeaseLost, why))
	}
}

// left is for how long the worker is certainly alive. It asks the clock, since timers are late after a freeze.
func (w *worker) left() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return 0
	}
	return time.Until(w.until)
}

func (w *worker) alive() bool {
	if w.left() > 0 {
		return true
	}
	w.expire()
	return false
}
