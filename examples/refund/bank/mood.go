package bank

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// mood is what a call meets.
type mood string

const (
	well   mood = "well"
	slow   mood = "slow (paid after the client had gone)"
	silent mood = "silent after paying"
	fails  mood = "500 after paying"
	cuts   mood = "cut off after paying"
	twice  mood = "answered twice"
	down   mood = "503 without paying"
)

// mood draws what the next call meets.
func (b *Bank) mood() mood {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := well
	if b.cfg.Faults {
		switch n := b.rng.IntN(100); {
		case n < 4:
			m = slow
		case n < 8:
			m = silent
		case n < 12:
			m = fails
		case n < 15:
			m = cuts
		case n < 18:
			m = twice
		case n < 21:
			m = down
		}
	}
	b.met[m]++
	return m
}

// perform does what the mood says. Only in one mood is the payment not made.
func (b *Bank) perform(w http.ResponseWriter, r *http.Request, o Order, m mood) {
	switch m {
	case down:
		http.Error(w, "closed for lunch", http.StatusServiceUnavailable)
		return
	case slow:
		<-time.After(2 * b.cfg.Patience)
	default:
		<-time.After(5 * time.Millisecond) // banks are not fast
	}
	d := b.decide(o)
	switch m {
	case silent:
		select { // the client gives up first
		case <-r.Context().Done():
		case <-time.After(10 * b.cfg.Patience):
		}
	case fails:
		http.Error(w, "internal error", http.StatusInternalServerError)
	case cuts:
		b.raw(w, nil)
	case twice:
		b.raw(w, bytes.Repeat(response(d), 2))
	default:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(d.status)
		_ = json.NewEncoder(w).Encode(d.answer)
	}
}

// raw writes to the connection and closes it.
func (b *Bank) raw(w http.ResponseWriter, data []byte) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return // the client has gone
	}
	_, _ = conn.Write(data)
	_ = conn.Close()
}

// response is an answer as it goes over the wire.
func response(d decision) []byte {
	body, _ := json.Marshal(d.answer) // strings; cannot fail
	var out bytes.Buffer
	fmt.Fprintf(&out, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", d.status, http.StatusText(d.status), len(body))
	_, _ = io.Copy(&out, bytes.NewReader(body))
	return out.Bytes()
}
