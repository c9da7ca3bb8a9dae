package smtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	sm "github.com/pgonce/pgonce/statemachine"
)

// walkAll walks paths: first one over every edge, then those that come to no state twice, but perhaps to their last.
func (p *proof[K, S, TX]) walkAll(ctx context.Context) {
	var paths [][]step[S]
	for _, s := range p.m.States() {
		for _, last := range p.steps(s) {
			paths = append(paths, append(p.way(s), last))
		}
	}
	edges, bounded := len(paths), false
	for _, s := range p.m.Initial() {
		bounded = !p.extend(nil, s, []S{s}, &paths) || bounded
	}
	for _, path := range paths {
		p.walk(ctx, path)
	}
	p.t.Logf("smtest: walked %d paths over %d edges; bounded by MaxPaths: %t", len(paths), edges, bounded)
}

// extend adds the paths that go on from where one has come to. It is false when there are too many.
func (p *proof[K, S, TX]) extend(path []step[S], at S, seen []S, paths *[][]step[S]) bool {
	for _, s := range p.steps(at) {
		longer := append(slices.Clone(path), s)
		if len(*paths) >= p.cfg.MaxPaths {
			return false
		}
		if again := slices.Contains(seen, s.to); again || len(p.steps(s.to)) == 0 {
			*paths = append(*paths, longer)
		} else if !p.extend(longer, s.to, append(slices.Clone(seen), s.to), paths) {
			return false
		}
	}
	return true
}

// way is a shortest path from an initial state.
func (p *proof[K, S, TX]) way(to S) []step[S] {
	reached := map[S][]step[S]{}
	queue := p.m.Initial()
	for _, s := range queue {
		reached[s] = []step[S]{}
	}
	for i := 0; i < len(queue); i++ {
		for _, s := range p.steps(queue[i]) {
			if reached[s.to] == nil {
				reached[s.to] = append(slices.Clone(reached[queue[i]]), s)
				queue = append(queue, s.to)
			}
		}
	}
	return slices.Clone(reached[to])
}

// place makes a row and moves it to a state.
func (p *proof[K, S, TX]) place(ctx context.Context, to S) (id K, path []step[S], ok bool) {
	if p.stopped {
		return id, nil, false
	}
	path = p.way(to)
	start := to
	if len(path) > 0 {
		start = path[0].from
	}
	id, err := p.create(ctx, start)
	if err != nil {
		p.stopped = true
		p.t.Errorf("smtest: create a row in %q: %v", text(start), err)
		return id, path, false
	}
	r, err := p.row(ctx, id)
	if err != nil || r.state != text(start) {
		p.stopped = true
		p.t.Errorf("smtest: create made row %v in %q and not in %q: %v", id, r.state, text(start), err)
		return id, path, false
	}
	for _, s := range path {
		if !p.apply(ctx, id, s) {
			return id, path, false
		}
	}
	return id, path, true
}

// apply fires an event that has to be applied.
func (p *proof[K, S, TX]) apply(ctx context.Context, id K, s step[S]) bool {
	res, err := p.b.Fire(ctx, id, s.event, p.options(s)...)
	if err != nil || !res.Applied() || res.From != s.from || res.To != s.to {
		p.t.Errorf("smtest: %q in %q leads to %q; got %s %q to %q: %v", s.event.Name(), text(s.from), text(s.to), outcome(res.Outcome), text(res.From), text(res.To), err)
		return false
	}
	return true
}

func outcome(o sm.Outcome) string {
	if o == 0 {
		return "an error"
	}
	return o.String()
}

// walk makes a row, moves it along a path and compares what is there in the end.
func (p *proof[K, S, TX]) walk(ctx context.Context, path []step[S]) {
	id, _, ok := p.place(ctx, path[0].from)
	for _, s := range path {
		ok = ok && p.apply(ctx, id, s)
	}
	if ok {
		p.compare(ctx, id, path[len(path)-1].to, path)
	}
}

// compare holds a row and its history to the path that it has come.
func (p *proof[K, S, TX]) compare(ctx context.Context, id K, state S, path []step[S]) {
	r, err := p.row(ctx, id)
	if err != nil || r.state != text(state) {
		p.t.Errorf("smtest: row %v is in %q and should be in %q: %v", id, r.state, text(state), err)
		return
	}
	if p.b.Table().NoHistory {
		return
	}
	want := make([]string, len(path))
	for i, s := range path {
		want[i] = s.event.Name() + ": " + text(s.from) + " -> " + text(s.to)
	}
	got, err := p.moves(ctx, r.entity)
	if err != nil || !slices.Equal(got, want) {
		p.t.Errorf("smtest: the history of row %v is [%s] and should be [%s]: %v", id, strings.Join(got, ", "), strings.Join(want, ", "), err)
	}
}

// fireAll fires every event in every state, twice, by Fire and by FireMany.
func (p *proof[K, S, TX]) fireAll(ctx context.Context) {
	n := 0
	for _, state := range p.m.States() {
		for _, ev := range p.m.Events() {
			for verb, fire := range map[string]firing[K, S]{"Fire": p.fireOne, "FireMany": p.fireMany} {
				if id, path, ok := p.place(ctx, state); ok {
					p.fireTwice(ctx, verb, fire, id, state, ev, path)
					n++
				}
			}
		}
	}
	p.t.Logf("smtest: fired %d events in states", n)
}

// firing is a way to fire an event at a row.
type firing[K sm.ID, S sm.StateType] func(context.Context, K, sm.Event[S], []sm.Option) (sm.Outcome, error)

func (p *proof[K, S, TX]) fireOne(ctx context.Context, id K, ev sm.Event[S], opts []sm.Option) (sm.Outcome, error) {
	res, err := p.b.Fire(ctx, id, ev, opts...)
	return res.Outcome, err
}

// fireMany fires at the row twice at once, which is once.
func (p *proof[K, S, TX]) fireMany(ctx context.Context, id K, ev sm.Event[S], opts []sm.Option) (sm.Outcome, error) {
	res, err := p.b.FireMany(ctx, []K{id, id}, ev, opts...)
	switch {
	case err != nil:
		return 0, err
	case len(res) != 1:
		return 0, fmt.Errorf("%d answers for one row", len(res))
	}
	return res[0].Outcome, res[0].Err
}

func (p *proof[K, S, TX]) fireTwice(ctx context.Context, verb string, fire firing[K, S], id K, state S, ev sm.Event[S], path []step[S]) {
	s := step[S]{state, state, ev}
	to, moves := p.m.Next(state, ev)
	want := sm.Applied
	switch {
	case moves:
		s.to = to
		path = append(slices.Clone(path), s)
	case p.m.Ignores(state, ev):
		want = sm.Superseded
	case len(path) > 0 && path[len(path)-1].event == ev:
		want = sm.AlreadyApplied
	default:
		want = 0
	}
	opts := p.options(s)
	for range 2 {
		got, err := fire(ctx, id, ev, opts)
		if got != want || (want == 0) != errors.Is(err, sm.ErrConflict) {
			p.t.Errorf("smtest: %s: %q in %q should be %s; got %s: %v", verb, ev.Name(), text(state), outcome(want), outcome(got), err)
			return
		}
		if want == sm.Applied {
			want = sm.AlreadyApplied
		}
	}
	p.compare(ctx, id, s.to, path)
}

// raceAll races goroutines for every edge.
func (p *proof[K, S, TX]) raceAll(ctx context.Context) {
	n := 0
	for _, state := range p.m.States() {
		for _, s := range p.steps(state) {
			if id, path, ok := p.place(ctx, state); ok {
				p.race(ctx, id, s)
				p.compare(ctx, id, s.to, append(path, s))
				n++
			}
		}
	}
	p.t.Logf("smtest: raced %d goroutines for each of %d edges", p.cfg.Racers, n)
}

func (p *proof[K, S, TX]) race(ctx context.Context, id K, s step[S]) {
	opts := p.options(s)
	told := make([]sm.Outcome, p.cfg.Racers)
	errs := make([]error, p.cfg.Racers)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range told {
		wg.Go(func() {
			<-start
			res, err := p.b.Fire(ctx, id, s.event, opts...)
			told[i], errs[i] = res.Outcome, err
		})
	}
	close(start)
	wg.Wait()
	applied := 0
	for i, o := range told {
		switch {
		case errs[i] != nil:
			p.t.Errorf("smtest: %q raced in %q: %v", s.event.Name(), text(s.from), errs[i])
		case o == sm.Applied:
			applied++
		}
	}
	if applied != 1 {
		p.t.Errorf("smtest: of %d goroutines %d have applied %q in %q, and one should", len(told), applied, s.event.Name(), text(s.from))
	}
}
