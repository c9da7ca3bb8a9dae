package idem

import (
	"context"
	"fmt"
	"reflect"
	"sync/atomic"

	"github.com/pgonce/pgonce/internal/pg"
)

type handlerKey struct{}

// frame is in the ctx of a handler, and says which keys are being executed around it. It is that ctx itself.
type frame struct {
	context.Context
	outer    *frame
	key      Key
	store    any // two stores may have one key in two databases
	identity identity
	outside  bool        // it is a function of RunSteps, which has no transaction
	over     atomic.Bool // the handler has returned; its ctx may live on
}

// inside is ctx for this call's handler, until the frame is over.
func (c *call[TX]) inside(ctx context.Context) *frame {
	return &frame{Context: ctx, outer: handlerOf(ctx), key: c.key, store: c.store, identity: c.key.identity(c.store.cfg.Schema)}
}

// Value implements context.Context.
func (f *frame) Value(key any) any {
	if key == (handlerKey{}) {
		return f
	}
	return f.Context.Value(key)
}

// handlerOf is the innermost handler at work that ctx belongs to, or nil.
func handlerOf(ctx context.Context) *frame {
	f, _ := ctx.Value(handlerKey{}).(*frame)
	for f != nil && f.over.Load() {
		f = f.outer
	}
	return f
}

// within reports whether f is o, or around it.
func (f *frame) within(o *frame) bool {
	for ; f != nil; f = f.outer {
		if f == o {
			return true
		}
	}
	return false
}

// reentrant reports whether a handler around this one executes the same key.
func (f *frame) reentrant() bool {
	for o := f.outer; o != nil; o = o.outer {
		if o.store == f.store && o.identity == f.identity {
			return true
		}
	}
	return false
}

// refuseNested refuses what must not be called around here: anything that waits, in a transaction; the same key
// anywhere.
func (c *call[TX]) refuseNested(ctx context.Context) error {
	outer := handlerOf(ctx)
	if outer == nil {
		return nil
	}
	if !outer.outside {
		return fmt.Errorf("%w (of %s)", ErrNested, pg.Printable(outer.key.op.Name))
	}
	inner := &frame{outer: outer, store: c.store, identity: c.key.identity(c.store.cfg.Schema)}
	if inner.reentrant() {
		return ErrReentrant
	}
	return nil
}

// enterTx lets one call at a time into a transaction, and those that its handler makes. Two that
// ran side by side would share a savepoint, and undo each other's effects. leave must be
// called at the end.
func (c *call[TX]) enterTx(f *frame, tx TX) (leave func(), err error) {
	if f.reentrant() {
		return nil, ErrReentrant
	}
	if !reflect.TypeOf(tx).Comparable() {
		return func() { f.over.Store(true) }, nil // somebody's own type, which cannot be told from others
	}
	s := c.store
	s.txMu.Lock()
	defer s.txMu.Unlock()
	current := s.inTx[any(tx)]
	if current != nil && !f.outer.within(current) {
		return nil, fmt.Errorf("%w: another call executes in it; one at a time, and pass on the handler's ctx", ErrTxUnusable)
	}
	if s.inTx == nil {
		s.inTx = map[any]*frame{}
	}
	s.inTx[any(tx)] = f
	return func() {
		f.over.Store(true)
		s.txMu.Lock()
		defer s.txMu.Unlock()
		if current == nil {
			delete(s.inTx, any(tx))
		} else {
			s.inTx[any(tx)] = current
		}
	}, nil
}
