package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
)

const serviceName = "refund-service"

// process is the service as a process that can be killed and started again.
type process struct {
	command []string // program and arguments
	env     []string

	mu    sync.Mutex
	cmd   *exec.Cmd
	stdin io.Closer
	url   string
	ready chan struct{} // closed when url is set
}

// start runs the service and waits for its address.
func (p *process) start(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, p.command[0], p.command[1:]...)
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
		return fmt.Errorf("the service did not start: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd, p.stdin, p.url = cmd, stdin, strings.TrimSpace(line)
	if p.ready != nil {
		close(p.ready)
		p.ready = nil
	}
	return nil
}

// kill ends the service with SIGKILL: no handler, no defer, no goodbye to the database.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // "signal: killed"
	p.url, p.ready = "", make(chan struct{})
}

// stop ends the service in an orderly way.
func (p *process) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.stdin.Close()
	_ = p.cmd.Wait()
}

// address is where the service is now; it waits while the service is down.
func (p *process) address(ctx context.Context) (string, error) {
	for {
		p.mu.Lock()
		url, ready := p.url, p.ready
		p.mu.Unlock()
		if url != "" {
			return url, nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-ready:
		}
	}
}
