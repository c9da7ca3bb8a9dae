package main

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisServer is a Redis of our own, which keeps nothing on disk.
type redisServer struct {
	addr, password, version string

	dir  string
	pipe *os.File // closing it stops the server; the kernel does so when we are killed
	done chan struct{}
}

//go:embed redis.sh
var redisGuard string

const redisPatience = 20 * time.Second

// redisProgram is the server's. Debian's redis-tools has it under the name of one of its other parts, and
// it goes by the name it is called.
func redisProgram(dir string) (string, error) {
	if path, err := exec.LookPath("redis-server"); err == nil {
		return path, nil
	}
	path, err := exec.LookPath("redis-check-rdb")
	if err != nil {
		return "", errors.New("no redis-server on this machine: run scripts/setup.sh redis, or leave out what needs it with --no-redis")
	}
	name := filepath.Join(dir, "redis-server")
	return name, os.Symlink(path, name)
}

// startRedis starts it in a folder of its own.
func startRedis(ctx context.Context, dir string) (*redisServer, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	program, err := redisProgram(dir)
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &redisServer{addr: fmt.Sprintf("127.0.0.1:%d", port), password: rand.Text(), dir: dir, done: make(chan struct{})}
	conf := fmt.Sprintf("bind 127.0.0.1\nport %d\nrequirepass %s\nsave \"\"\nappendonly no\ndaemonize no\ndir %s\n", port, s.password, dir)
	if err := os.WriteFile(filepath.Join(dir, "redis.conf"), []byte(conf), 0o600); err != nil {
		return nil, err
	}
	if err := s.launch(program); err != nil {
		return nil, err
	}
	if err := s.awaitReady(ctx); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (s *redisServer) launch(program string) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = read.Close() }()
	cmd := exec.Command("/bin/sh", "-c", redisGuard, "guard", program, s.dir)
	cmd.ExtraFiles = []*os.File{read}                     // file descriptor 3
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us
	if err := cmd.Start(); err != nil {
		_ = write.Close()
		return fmt.Errorf("start redis: %w", err)
	}
	s.pipe = write
	go func() {
		_ = cmd.Wait()
		close(s.done)
	}()
	return nil
}

// client is one with the settings that the README of redislock and that of redsync show.
func (s *redisServer) client() *redis.Client {
	return redis.NewClient(&redis.Options{Network: "tcp", Addr: s.addr, Password: s.password})
}

func (s *redisServer) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, redisPatience)
	defer cancel()
	client := s.client()
	defer func() { _ = client.Close() }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		info, err := client.Info(ctx, "server").Result()
		if err == nil {
			_, rest, _ := strings.Cut(info, "redis_version:")
			s.version, _, _ = strings.Cut(rest, "\r")
			return nil
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			return fmt.Errorf("redis did not answer within %v: %w; it said: %s", redisPatience, err, log)
		case <-tick.C:
		}
	}
}

func (s *redisServer) stop() error {
	_ = s.pipe.Close()
	select {
	case <-s.done:
		return nil
	case <-time.After(redisPatience):
		return errors.New("redis did not stop")
	}
}
