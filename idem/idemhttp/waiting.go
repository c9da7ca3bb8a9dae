package idemhttp

import (
	"context"
	"errors"
	"math"
	"net/http"
	"time"
)

// errWaited ends a request that found no place to run in.
var errWaited = errors.New("waited too long for a connection of the pool")

// waiting is the ctx of a request that outlives its client. It ends when it has been waited for too
// long, for a connection or for another request with the same key, but only while the function
// is not running: what bounds the function is its own time, of which waiting takes nothing.
type waiting struct {
	ctx   context.Context
	most  time.Duration
	timer *time.Timer
}

func newWaiting(r *http.Request, forConn, forKey time.Duration) (w *waiting, cancel func()) {
	most := forConn + min(forKey, math.MaxInt64-forConn) // forKey may be idem.Forever
	ctx, end := context.WithCancelCause(context.WithoutCancel(r.Context()))
	w = &waiting{ctx: ctx, most: most, timer: time.AfterFunc(most, func() { end(errWaited) })}
	return w, func() {
		w.timer.Stop()
		end(nil)
	}
}

// over says that the function begins. If the time was up in that very moment, it does not.
func (w *waiting) over() error {
	if !w.timer.Stop() { // it has fired, and ends the ctx now if it has not yet
		return errWaited
	}
	return context.Cause(w.ctx)
}

// again says that the function has returned. What comes then is the commit, which does not heed this
// ctx, or another attempt, which has to wait for a connection once more.
func (w *waiting) again() { w.timer.Reset(w.most) }
