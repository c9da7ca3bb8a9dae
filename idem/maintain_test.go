//go:build unix

package idem_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// Of several processes one has the turn. It is taken over when it was given up, or when its holder has not come for half a
// minute, by the database's clock; not before.
func TestMaintainTakesTurns(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	keys := newStore(t, db.Pool(t), &idem.Config{PurgeEvery: time.Hour})
	set := func(worker int, dueIn string) {
		db.Exec(t, fmt.Sprintf(`UPDATE pgonce.idem_purge SET worker = %d, next_at = now() + interval '%s', pass = 0`, worker, dueIn))
	}
	for _, tc := range []struct {
		worker int
		dueIn  string
		works  bool
		least  time.Duration // until the next look
		most   time.Duration
	}{
		{0, "-1 s", true, time.Minute, time.Minute},
		{0, "20 s", false, 10 * time.Second, 20 * time.Second},
		{77, "-1 s", false, 20 * time.Second, 36 * time.Second},
		{77, "-20 s", false, time.Second, 16 * time.Second},
		{77, "-60 s", true, time.Minute, time.Minute},
		{77, "1 h", false, time.Minute, time.Minute},
		{5, "-1 s", true, time.Minute, time.Minute}, // its own
		{5, "20 s", false, 10 * time.Second, 20 * time.Second},
	} {
		set(tc.worker, tc.dueIn)
		wait, err := idem.MaintainTurn(t.Context(), keys, 5)
		if err != nil {
			t.Fatal(err)
		}
		worked := db.Int(t, `SELECT pass FROM pgonce.idem_purge`) == 1
		if worked != tc.works || wait < tc.least || wait > tc.most {
			t.Errorf("worker %d, due in %s: worked %v, looks again in %v", tc.worker, tc.dueIn, worked, wait)
		}
		if worked {
			if n := db.Int(t, `SELECT worker FROM pgonce.idem_purge WHERE next_at BETWEEN now() + interval '59 min' AND now() + interval '1 h'`); n != 5 {
				t.Errorf("worker %d after a pass", n)
			}
		}
	}
	set(5, "0 s")
	db.Exec(t, `UPDATE pgonce.idem_purge SET block = 7`)
	if _, err := idem.MaintainTurn(t.Context(), keys, 6); err != nil {
		t.Fatal(err)
	}
	if n := db.Int(t, `SELECT block FROM pgonce.idem_purge`); n != 7 {
		t.Error("somebody worked whose turn it was not")
	}
}

// What Maintain meets on its way does not end it.
func TestMaintainGoesOn(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var log logged
	keys := newStore(t, db.Pool(t), &idem.Config{Logger: slog.New(slog.NewTextHandler(&log, nil)), PurgePause: time.Millisecond})
	if err := keys.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, `ALTER TABLE pgonce.idem_purge RENAME TO elsewhere`)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- keys.Maintain(ctx) }()
	pgtest.Eventually(t, "it complains", func() bool { return strings.Contains(log.String(), "will be tried again") })
	db.Exec(t, `ALTER TABLE pgonce.elsewhere RENAME TO idem_purge`)
	pgtest.Eventually(t, "it has recovered", func() bool { return db.Int(t, `SELECT pass FROM pgonce.idem_purge`) > 0 })
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Maintain ended with %v", err)
	}
	none := newStore(t, pgtest.NewEmpty(t).Pool(t), nil)
	if err := none.Maintain(t.Context()); !errors.Is(err, idem.ErrSchema) {
		t.Errorf("without tables: got %v", err)
	}
}

// logged is a log that can be read while it is written to.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
