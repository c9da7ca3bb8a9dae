// Package foreign is somebody else's system that misbehaves, over a real socket. It is slow beyond every
// patience, does what it was asked and then says nothing, or says 500, or cuts the line, or answers twice.
package foreign

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Mood is what a call meets.
type Mood string

// The moods. Only in the last one is the work not done.
const (
	Well   Mood = "well"
	Slow   Mood = "slow"
	Silent Mood = "silent after doing it"
	Fails  Mood = "500 after doing it"
	Cuts   Mood = "cut off after doing it"
	Twice  Mood = "answered twice"
	Down   Mood = "503 without doing it"
)

// Odds say how many calls in a hundred meet a mood.
type Odds struct {
	Mood Mood
	Of   int
}

// Config says how a server behaves.
type Config struct {
	Seed uint64 // for the choice of what to do wrong
	Odds []Odds // what goes wrong; nothing is a server that behaves

	// Patience is how long clients wait for an answer; a silent server says nothing for longer.
	Patience time.Duration

	// Slowness is how long a slow call takes: longer than the client's patience, or only than somebody's lease.
	Slowness time.Duration
}

// Answer is what a call is answered with: a status and what becomes JSON.
type Answer struct {
	Status int
	Body   any
}

// Server is a running foreign system.
type Server struct {
	cfg    Config
	mux    *http.ServeMux
	server *http.Server
	url    string
	calls  sync.WaitGroup // handlers, those that have lost their client too

	mu  sync.Mutex
	rng *rand.Rand
	met map[Mood]int
}

// Open starts a server on a loopback address.
func Open(cfg Config) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, mux: http.NewServeMux(), url: "http://" + l.Addr().String(),
		rng: rand.New(rand.NewPCG(cfg.Seed, 3)), met: map[Mood]int{},
	}
	s.server = &http.Server{Handler: s.mux, ReadHeaderTimeout: 10 * time.Second}
	s.calls.Go(func() { _ = s.server.Serve(l) })
	return s, nil
}

// URL is where the server is.
func (s *Server) URL() string { return s.url }

// Handle answers a pattern. accept reads a request and returns the work, which is done, or not, as the mood has it; an error is
// 400. Call it before anybody else calls.
func (s *Server) Handle(pattern string, accept func(r *http.Request) (work func() Answer, err error)) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		defer s.calls.Done()
		r.Body = http.MaxBytesReader(w, r.Body, 1<<16)
		work, err := accept(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body) // or the end of the client is not noticed
		s.perform(w, r, work, s.mood())
	})
}

// Close ends the server's day: it waits for calls whose clients have given up, since they do their work
// too. What it says after that does not change any more.
func (s *Server) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_ = s.server.Shutdown(ctx)
	s.calls.Wait()
}

// Misbehaved tells how often each thing went wrong.
func (s *Server) Misbehaved() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var parts []string
	for _, o := range s.cfg.Odds {
		parts = append(parts, fmt.Sprintf("%d %s", s.met[o.Mood], o.Mood))
	}
	return strings.Join(parts, ", ")
}

// Decode reads the JSON of a request into a value of the type that is asked for.
func Decode[T any](r *http.Request) (v T, err error) {
	err = json.NewDecoder(r.Body).Decode(&v)
	return v, err
}
