package main

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/pgonce/pgonce/examples/internal/demo"
)

// fleet is everything that runs.
type fleet struct {
	services, workers []*demo.Process
}

const (
	serviceProcesses = 3
	workerProcesses  = 2
)

// launch starts a fleet.
func launch(g *ground, way, bankURL string, verbose bool) (*fleet, error) {
	f := &fleet{}
	add := func(kind, name string, n int) (all []*demo.Process) {
		for i := range n {
			all = append(all, &demo.Process{
				Name:    fmt.Sprintf("%s %d", name, i+1),
				Command: []string{g.program, kind, "--way", way, "--bank-url", bankURL, fmt.Sprintf("--verbose=%t", verbose)},
				Env:     []string{"DATABASE_URL=" + g.url},
			})
		}
		return all
	}
	f.services, f.workers = add("serve", "service", serviceProcesses), add("work", "worker", workerProcesses)
	return f, demo.StartAll(f.all())
}

func (f *fleet) all() []*demo.Process {
	return append(append([]*demo.Process(nil), f.services...), f.workers...)
}

// address is that of a service that is up; it waits while all are down.
func (f *fleet) address(ctx context.Context, rng *rand.Rand) (string, error) {
	for {
		var up <-chan struct{}
		first := rng.IntN(len(f.services))
		for i := range f.services {
			var url string
			if url, up = f.services[(first+i)%len(f.services)].State(); url != "" {
				return url, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-up:
		}
	}
}
