package foreign

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// mood draws what the next call meets.
func (s *Server) mood() Mood {
	s.mu.Lock()
	defer s.mu.Unlock()
	mood, n := Well, s.rng.IntN(100)
	for _, o := range s.cfg.Odds {
		if n -= o.Of; n < 0 {
			mood = o.Mood
			break
		}
	}
	s.met[mood]++
	return mood
}

// perform does what the mood says. Only in one mood is the work not done.
func (s *Server) perform(w http.ResponseWriter, r *http.Request, work func() Answer, m Mood) {
	switch m {
	case Down:
		http.Error(w, "closed for lunch", http.StatusServiceUnavailable)
		return
	case Slow:
		<-time.After(s.cfg.Slowness)
	default:
		<-time.After(5 * time.Millisecond) // nobody is fast
	}
	a := work()
	switch m {
	case Silent:
		select { // the client gives up first
		case <-r.Context().Done():
		case <-time.After(10 * s.cfg.Patience):
		}
	case Fails:
		http.Error(w, "internal error", http.StatusInternalServerError)
	case Cuts:
		raw(w, nil)
	case Twice:
		raw(w, bytes.Repeat(response(a), 2))
	default:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(a.Status)
		_ = json.NewEncoder(w).Encode(a.Body)
	}
}

// raw writes to the connection and closes it.
func raw(w http.ResponseWriter, data []byte) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return // the client has gone
	}
	_, _ = conn.Write(data)
	_ = conn.Close()
}

// response is an answer as it goes over the wire.
func response(a Answer) []byte {
	body, _ := json.Marshal(a.Body) // of our own making; cannot fail
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		a.Status, http.StatusText(a.Status), len(body), body)
}
