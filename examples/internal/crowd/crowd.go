// Package crowd is many clients of a service at once, over real sockets. Each of them asks until it is answered.
package crowd

import (
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Crowd is a number of clients. Behind its URLs are instances of one service; each try goes to any of them, as behind a load
// balancer.
type Crowd struct {
	URLs    []string
	Workers int
	Seed    uint64

	Attempts, Busy, Broken atomic.Int64 // tries; those that were told to come again; connections that broke
	Asked                  atomic.Int64 // requests that have their answer

	// Progress is told at each tenth of the way. Defaults to nothing.
	Progress func(asked, of int)

	telling sync.Mutex
}

// Answer is what a request was told in the end. The zero Answer is none.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Ask sends n requests, Workers of them at a time, in the order of their numbers. A request is repeated for as long as the answer has
// a Retry-After, or there is none; told is called once for each number, by many goroutines.
func (c *Crowd) Ask(ctx context.Context, n int, request func(i int, url string) (*http.Request, error), told func(i int, a Answer)) {
	var next, done atomic.Int64
	var wg sync.WaitGroup
	for w := range c.Workers {
		wg.Go(func() {
			client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 2}}
			defer client.CloseIdleConnections()
			rng := rand.New(rand.NewPCG(c.Seed, uint64(w)))
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				told(i, c.insist(ctx, client, rng, func(url string) (*http.Request, error) { return request(i, url) }))
				c.Asked.Add(1)
				c.progress(int(done.Add(1)), n)
			}
		})
	}
	wg.Wait()
}

func (c *Crowd) progress(done, n int) {
	if c.Progress == nil || done*10/n == (done-1)*10/n {
		return
	}
	c.telling.Lock()
	defer c.telling.Unlock()
	c.Progress(done, n)
}

// insist repeats a request until it has a final answer, or ctx ends.
func (c *Crowd) insist(ctx context.Context, client *http.Client, rng *rand.Rand, request func(url string) (*http.Request, error)) Answer {
	for n := 0; ctx.Err() == nil; n++ {
		req, err := request(c.URLs[rng.IntN(len(c.URLs))])
		if err != nil {
			return Answer{}
		}
		if a, final := c.try(client, req.WithContext(ctx)); final {
			return a
		}
		pause := time.Duration(1+rng.IntN(1<<min(n, 7))) * time.Millisecond
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return Answer{}
}

// try sends a request once. final is false if the client is none the wiser, and has to ask again.
func (c *Crowd) try(client *http.Client, req *http.Request) (a Answer, final bool) {
	c.Attempts.Add(1)
	res, err := client.Do(req)
	if err != nil {
		c.Broken.Add(1)
		return a, false
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		c.Broken.Add(1)
		return a, false
	}
	if res.Header.Get("Retry-After") != "" {
		c.Busy.Add(1)
		return a, false
	}
	return Answer{res.StatusCode, res.Header, body}, true
}
