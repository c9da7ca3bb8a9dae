package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
)

// process is a service or a worker that can be killed and started again.
type process struct {
	name    string
	command []string // program and arguments
	env     []string

	mu    sync.Mutex
	cmd   *exec.Cmd
	stdin io.Closer
	said  string        // its first line; "" while it is down
	up    chan struct{} // closed when it is up again
}

// start runs the process and waits for its first line. It ends when its standard input is closed: by
// stop, or with us.
func (p *process) start() error {
	cmd := exec.Command(p.command[0], p.command[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return fmt.Errorf("%s did not start: %w", p.name, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd, p.stdin, p.said = cmd, stdin, strings.TrimSpace(line)
	if p.up != nil {
		close(p.up)
		p.up = nil
	}
	return nil
}

// kill ends the process with SIGKILL: no handler, no defer, no goodbye to the database.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // "signal: killed"
	p.said, p.up, p.cmd = "", make(chan struct{}), nil
}

// stop ends the process in an orderly way.
func (p *process) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return // it was not started, or did not come back
	}
	_ = p.stdin.Close()
	_ = p.cmd.Wait()
	p.cmd = nil
}

func (p *process) state() (said string, up chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said, p.up
}

// fleet is everything that runs.
type fleet struct {
	services, workers []*process
}

const (
	serviceProcesses = 3
	workerProcesses  = 2
)

// launch starts a fleet.
func launch(g *ground, way, bankURL string) (*fleet, error) {
	f := &fleet{}
	add := func(kind string, n int) (all []*process) {
		for i := range n {
			all = append(all, &process{
				name:    fmt.Sprintf("%s %d", map[string]string{"serve": "service", "work": "worker"}[kind], i+1),
				command: []string{g.program, kind, "--way", way, "--bank-url", bankURL, fmt.Sprintf("--verbose=%t", g.verbose)},
				env:     []string{"DATABASE_URL=" + g.url},
			})
		}
		return all
	}
	f.services, f.workers = add("serve", serviceProcesses), add("work", workerProcesses)
	started := make(chan error)
	for _, p := range f.all() {
		go func() { started <- p.start() }()
	}
	var failed error
	for range f.all() {
		failed = errors.Join(failed, <-started)
	}
	if failed != nil {
		f.stop()
		return nil, failed
	}
	return f, nil
}

func (f *fleet) all() []*process { return append(append([]*process(nil), f.services...), f.workers...) }

func (f *fleet) stop() {
	var wg sync.WaitGroup
	for _, p := range f.all() {
		wg.Go(p.stop)
	}
	wg.Wait()
}

// address is that of a service that is up; it waits while all are down.
func (f *fleet) address(ctx context.Context, rng *rand.Rand) (string, error) {
	for {
		var up chan struct{}
		first := rng.IntN(len(f.services))
		for i := range f.services {
			var url string
			if url, up = f.services[(first+i)%len(f.services)].state(); url != "" {
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
