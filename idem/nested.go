package idem

import (
	"context"
	"sync/atomic"
)

type handlerKey struct{}

// frame is in the ctx of a handler, and says which keys are being executed around it.
type frame struct {
	outer    *frame
	key      Key
	identity identity
	over     atomic.Bool // the handler has returned; its ctx may live on
}

// inside is ctx for this call's handler, until the frame is over.
func (c *call[TX]) inside(ctx context.Context) (context.Context, *frame) {
	f := &frame{outer: handlerOf(ctx), key: c.key, identity: c.key.identity(c.store.cfg.Schema)}
	return context.WithValue(ctx, handlerKey{}, f), f
}

// handlerOf is the innermost handler at work that ctx belongs to, or nil.
func handlerOf(ctx context.Context) *frame {
	f, _ := ctx.Value(handlerKey{}).(*frame)
	for f != nil && f.over.Load() {
		f = f.outer
	}
	return f
}

// executes reports whether one of the handlers around ctx executes the key.
func (f *frame) executes(key identity) bool {
	for ; f != nil; f = f.outer {
		if f.identity == key {
			return true
		}
	}
	return false
}
