package main

import (
	"errors"
	"net/http"
	"strings"
	"sync"

	"github.com/pgonce/pgonce/examples/internal/foreign"
	"github.com/pgonce/pgonce/examples/paycallback/callback"
)

// misbehaviour is what goes wrong with one call in five.
var misbehaviour = []foreign.Odds{
	{Mood: foreign.Slow, Of: 4},
	{Mood: foreign.Silent, Of: 4},
	{Mood: foreign.Fails, Of: 4},
	{Mood: foreign.Cuts, Of: 3},
	{Mood: foreign.Twice, Of: 3},
	{Mood: foreign.Down, Of: 3},
}

// others are the mailer, the push service and the dispatcher. They honour a reference: the same reference is the same thing.
type others struct {
	*foreign.Server

	mu   sync.Mutex
	seen map[string]bool          // references
	told map[string]map[int64]int // by what, by order: how often, under another reference each time
	ear  func(what string, t callback.Told)
}

func openOthers(faults bool, seed uint64) (*others, error) {
	o := &others{seen: map[string]bool{}, told: map[string]map[int64]int{}}
	cfg := foreign.Config{Seed: seed, Patience: patience, Slowness: 2 * patience}
	if faults {
		cfg.Odds = misbehaviour
	}
	var err error
	if o.Server, err = foreign.Open(cfg); err != nil {
		return nil, err
	}
	o.Handle("POST /{what}", func(r *http.Request) (func() foreign.Answer, error) {
		t, err := foreign.Decode[callback.Told](r)
		if err != nil || t.Reference == "" {
			return nil, errors.New("want reference and order")
		}
		what := strings.TrimPrefix(r.URL.Path, "/")
		return func() foreign.Answer { return o.hear(what, t) }, nil
	})
	return o, nil
}

func (o *others) hear(what string, t callback.Told) foreign.Answer {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.seen[t.Reference] {
		o.seen[t.Reference] = true
		if o.told[what] == nil {
			o.told[what] = map[int64]int{}
		}
		o.told[what][t.Order]++
		if o.ear != nil {
			o.ear(what, t)
		}
	}
	return foreign.Answer{Status: http.StatusOK, Body: t}
}

// heard is how often each order has been told about, by what.
func (o *others) heard() map[string]map[int64]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := map[string]map[int64]int{}
	for what, orders := range o.told {
		all[what] = map[int64]int{}
		for order, n := range orders {
			all[what][order] = n
		}
	}
	return all
}

// listen has a function told, too.
func (o *others) listen(ear func(what string, t callback.Told)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ear = ear
}
