package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// contender is one of those that are measured alternately.
type contender struct {
	name string
	run  func(ctx context.Context, d time.Duration) (sample, error)

	elsewhere bool // its work is done by other processes
}

// us is the name of this library among the contenders.
const us = "pgonce"

// sample is what one measurement found.
type sample struct {
	took   time.Duration
	served []int64 // by goroutine
	waits  histogram
}

func (s *sample) total() (n int64) {
	for _, served := range s.served {
		n += served
	}
	return n
}

func (s *sample) rate() float64 { return float64(s.total()) / s.took.Seconds() }

func (s *sample) p99() float64 { return float64(s.waits.quantile(0.99)) }

// evenness is what the least served has of the most served.
func (s *sample) evenness() float64 {
	return float64(slices.Min(s.served)) / float64(max(1, slices.Max(s.served)))
}

// series are the samples of one contender, one a round.
type series []sample

// alternate measures the contenders in turn, in rounds, after a warm-up of each. Every second round goes backwards, so
// that nobody is always the one after the same other.
func (g *ground) alternate(ctx context.Context, row string, contenders []contender) (map[string]series, error) {
	found := map[string]series{}
	for _, c := range contenders {
		if _, err := c.run(ctx, g.opt.time/2); err != nil {
			return nil, fmt.Errorf("%s: %s: warm-up: %w", row, c.name, err)
		}
	}
	order := slices.Clone(contenders)
	for round := range g.opt.rounds {
		fmt.Fprintf(os.Stderr, "bench: %s, round %d of %d\n", row, round+1, g.opt.rounds)
		for _, c := range order {
			s, err := g.measure(ctx, row, c, round)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", row, c.name, err)
			}
			found[c.name] = append(found[c.name], s)
		}
		slices.Reverse(order)
	}
	return found, nil
}

func (g *ground) measure(ctx context.Context, row string, c contender, round int) (sample, error) {
	runtime.GC() // nobody pays for the one before
	if round == g.opt.rounds-1 && !c.elsewhere {
		stop, err := profile(g.profile(c.name, row))
		if err != nil {
			return sample{}, err
		}
		defer stop()
	}
	return c.run(ctx, g.opt.time)
}

// profile is the file for what pgonce uses the CPU for in a row, if that is asked for.
func (g *ground) profile(name, row string) string {
	if g.opt.profile == "" || name != us {
		return ""
	}
	return filepath.Join(g.opt.profile, strings.ReplaceAll(row, " ", "-")+".pprof")
}

// profile writes what this process uses the CPU for to a file, until it is stopped.
func profile(name string) (stop func(), err error) {
	if name == "" {
		return func() {}, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() {
		pprof.StopCPUProfile()
		_ = f.Close()
	}, nil
}

// hammer repeats an operation in some goroutines for a time, and until it was done once. The operation says how long
// it waited.
func hammer(ctx context.Context, workers int, d time.Duration, do func(ctx context.Context, worker int) (time.Duration, error)) (sample, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var over atomic.Bool
	var wg sync.WaitGroup
	var once sync.Once
	done := make(chan struct{})
	s := sample{served: make([]int64, workers)}
	waits := make([]histogram, workers)
	began := time.Now()
	for w := range workers {
		wg.Go(func() {
			for n := int64(0); ; n++ {
				wait, err := do(ctx, w)
				if err != nil {
					cancel(err)
				}
				if over.Load() || ctx.Err() != nil {
					s.served[w] = n // the last one came too late to count
					return
				}
				waits[w].record(wait)
				once.Do(func() { close(done) })
			}
		})
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	s.took = time.Since(began)
	over.Store(true)
	wg.Wait()
	for w := range waits {
		waits[w].pack()
		s.waits.add(&waits[w])
	}
	if err := context.Cause(ctx); err != nil {
		return s, err
	}
	return s, nil
}

// median is the middle one of what f says of each.
func median[T any](all []T, f func(T) float64) float64 {
	values := sorted(all, f)
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2
}

func sorted[T any](all []T, f func(T) float64) []float64 {
	values := make([]float64, len(all))
	for i, v := range all {
		values[i] = f(v)
	}
	slices.SortFunc(values, cmp.Compare)
	return values
}

// of is the median of a figure.
func (s series) of(f func(*sample) float64) float64 {
	return median(s, func(v sample) float64 { return f(&v) })
}

// over is the median, over the rounds, of the ratio of a figure of s to that of o in the same round.
func (s series) over(o series, f func(*sample) float64) float64 {
	rounds := make([]int, len(s))
	for i := range rounds {
		rounds[i] = i
	}
	return median(rounds, func(i int) float64 { return f(&s[i]) / f(&o[i]) })
}
