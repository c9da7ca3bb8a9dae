package foreign

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Each mood looks to the client as it should, and the work is done in all but one of them.
func TestMoods(t *testing.T) {
	t.Parallel()
	for mood, want := range map[Mood]struct {
		status int // 0 for no answer at all
		done   int
	}{
		Well: {http.StatusCreated, 1}, Slow: {http.StatusCreated, 1}, Silent: {0, 1}, Fails: {http.StatusInternalServerError, 1},
		Cuts: {0, 1}, Twice: {http.StatusCreated, 1}, Down: {http.StatusServiceUnavailable, 0},
	} {
		t.Run(string(mood), func(t *testing.T) {
			t.Parallel()
			s, err := Open(Config{Odds: []Odds{{mood, 100}}, Patience: 50 * time.Millisecond, Slowness: time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			done := 0
			s.Handle("POST /work", func(*http.Request) (func() Answer, error) {
				return func() Answer { done++; return Answer{http.StatusCreated, "done"} }, nil
			})
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			if mood == Silent {
				client.Timeout = 2 * time.Second // within it, the work is done on any machine
				s.cfg.Patience = time.Minute
			}
			status := 0
			if res, err := client.Post(s.URL()+"/work", "application/json", strings.NewReader(`{}`)); err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
				status = res.StatusCode
			}
			s.Close()
			if status != want.status || done != want.done {
				t.Errorf("status %d and done %d times, want %d and %d", status, done, want.status, want.done)
			}
			if !strings.HasPrefix(s.Misbehaved(), "1 ") {
				t.Errorf("misbehaved: %s", s.Misbehaved())
			}
		})
	}
}
