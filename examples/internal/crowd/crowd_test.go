package crowd

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
)

// Every request is answered once, however often it was told to come again or lost its connection.
func TestAskUntilAnswered(t *testing.T) {
	t.Parallel()
	var tries sync.Map
	in, err := Listen("", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := tries.LoadOrStore(r.URL.Path, new(atomic.Int64))
		switch n.(*atomic.Int64).Add(1) {
		case 1:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2:
			panic(http.ErrAbortHandler)
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	const n = 40
	var answers [n]atomic.Int64
	progress := 0
	c := &Crowd{URLs: []string{in.URL}, Workers: 8, Progress: func(int, int) { progress++ }}
	c.Ask(t.Context(), n, func(i int, url string) (*http.Request, error) {
		return http.NewRequest(http.MethodPost, url+"/"+string(rune('A'+i)), nil)
	}, func(i int, a Answer) {
		if a.Status == http.StatusOK {
			answers[i].Add(1)
		}
	})
	for i := range answers {
		if got := answers[i].Load(); got != 1 {
			t.Errorf("request %d was answered %d times", i, got)
		}
	}
	if progress != 10 {
		t.Errorf("progress was told %d times, want 10", progress)
	}
	if busy, broken := c.Busy.Load(), c.Broken.Load(); busy != n || broken != n {
		t.Errorf("%d were busy, %d broken, want %d each", busy, broken, n)
	}
}

// Who is not answered before ctx ends has no answer, which is told too.
func TestAskEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	in, err := Listen("", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		cancel()
		panic(http.ErrAbortHandler)
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	told := 0
	c := &Crowd{URLs: []string{in.URL}, Workers: 1}
	c.Ask(ctx, 2, func(_ int, url string) (*http.Request, error) { return http.NewRequest(http.MethodGet, url, nil) },
		func(_ int, a Answer) {
			told++
			if a.Status != 0 {
				t.Errorf("answered %+v", a)
			}
		})
	if told != 2 {
		t.Errorf("told %d times", told)
	}
}
