//go:build unix

package demo

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
)

// Process is a part of an example that can be killed and started again: mostly the example's own program with other
// arguments.
type Process struct {
	Name    string
	Command []string // program and arguments
	Env     []string

	mu    sync.Mutex
	cmd   *exec.Cmd
	stdin io.Closer
	said  string        // its first line; "" while it is down
	up    chan struct{} // closed when it is up again
}

// Start runs the process and waits for its first line. It ends when its standard input is closed: by
// Stop, or with us.
func (p *Process) Start() error {
	cmd := exec.Command(p.Command[0], p.Command[1:]...)
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us; we stop it
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
		return fmt.Errorf("%s did not start: %w", p.Name, err)
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

// Kill ends the process with SIGKILL: no handler, no defer, no goodbye to the database.
func (p *Process) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // "signal: killed"
	p.said, p.up, p.cmd = "", make(chan struct{}), nil
}

// Stop ends the process in an orderly way.
func (p *Process) Stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return // it was not started, or did not come back
	}
	_ = p.stdin.Close()
	_ = p.cmd.Wait()
	p.cmd = nil
}

// State is the first line that the process has said, or "" with a channel that is closed when it is up again.
func (p *Process) State() (said string, up <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said, p.up
}

// StartAll starts processes side by side; all are stopped if one of them does not come up.
func StartAll(all []*Process) error {
	started := make(chan error)
	for _, p := range all {
		go func() { started <- p.Start() }()
	}
	var failed error
	for range all {
		failed = errors.Join(failed, <-started)
	}
	if failed != nil {
		StopAll(all)
	}
	return failed
}

// StopAll stops processes side by side.
func StopAll(all []*Process) {
	var wg sync.WaitGroup
	for _, p := range all {
		wg.Go(p.Stop)
	}
	wg.Wait()
}

// Ready says the first line of a [Process], from the inside.
func Ready(line string) { fmt.Println(line) }

// UntilStopped is how a [Process] waits, from the inside, for its end.
func UntilStopped() { _, _ = io.Copy(io.Discard, os.Stdin) }

// Logger is silent unless it was asked for: a storm breaks everything all the time. net/http has words of its own for a
// server that answers twice.
func Logger(verbose bool) *slog.Logger {
	if verbose {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	log.SetOutput(io.Discard)
	return slog.New(slog.DiscardHandler)
}
