package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"time"
)

// insist repeats a request until it has a final answer, or ctx ends. Each try goes to
// whatever service is up, as behind a load balancer.
func (s *storm) insist(ctx context.Context, client *http.Client, rng *rand.Rand, o order) answer {
	for n := 0; ctx.Err() == nil; n++ {
		url, err := s.fleet.address(ctx, rng)
		if err != nil {
			break
		}
		a, final := s.try(ctx, client, url, o)
		if final {
			return a
		}
		pause := time.Duration(1+rng.IntN(1<<min(n, 6))) * time.Millisecond
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return answer{order: o}
}

// try sends a request once. Whatever is neither a success nor a refusal leaves the client
// none the wiser, so it must ask again.
func (s *storm) try(ctx context.Context, client *http.Client, url string, o order) (a answer, final bool) {
	a.order = o
	s.tally.attempts.Add(1)
	ask := s.request(o)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/refunds", bytes.NewReader(ask.Body))
	if err != nil {
		return a, false
	}
	req.Header.Set("X-Merchant", ask.Merchant)
	req.Header.Set("X-Asked-By", ask.AskedBy)
	req.Header.Set("Idempotency-Key", ask.Number)
	res, err := client.Do(req)
	if err != nil {
		s.tally.broken.Add(1)
		return a, false
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		s.tally.broken.Add(1)
		return a, false
	}
	switch res.StatusCode {
	case http.StatusConflict:
		s.tally.inFlight.Add(1)
		return a, false
	case http.StatusServiceUnavailable:
		s.tally.unavailable.Add(1)
		return a, false
	case http.StatusAccepted:
		if json.Unmarshal(data, &a.receipt) != nil {
			return a, false
		}
	}
	a.status, a.replayed = res.StatusCode, res.Header.Get("Idempotent-Replayed") == "true"
	return a, true
}
