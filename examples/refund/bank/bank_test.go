package bank

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

func open(t *testing.T, faults bool) *Bank {
	t.Helper()
	b, err := Open(Config{Faults: faults, Seed: 1, Patience: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func ask(b *Bank, client *http.Client, o Order) int {
	body, _ := json.Marshal(o)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.URL()+"/payments", bytes.NewReader(body))
	if err != nil {
		return 0
	}
	res, err := client.Do(req)
	if err != nil {
		return 0
	}
	_ = res.Body.Close()
	return res.StatusCode
}

// Whatever the bank does to its answers, it pays a reference once.
func TestOneReferenceIsPaidOnce(t *testing.T) {
	t.Parallel()
	b := open(t, true)
	client := &http.Client{Timeout: 30 * time.Millisecond}
	defer client.CloseIdleConnections()
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for n := range 30 {
				ask(b, client, Order{fmt.Sprintf("r%d", (n+w)%30), "a", 100, "p"})
			}
		})
	}
	wg.Wait()
	b.Close()
	seen := map[string]bool{}
	for _, p := range b.Payments() {
		if seen[p.Reference] {
			t.Errorf("%s was paid twice", p.Reference)
		}
		seen[p.Reference] = true
	}
	if len(seen) != 30 {
		t.Errorf("%d references were paid, want 30", len(seen))
	}
	if said := ", " + b.Misbehaved(); strings.Contains(said, ", 0 ") {
		t.Errorf("the bank never misbehaved in some way: %s", said)
	}
}

func TestDecisions(t *testing.T) {
	t.Parallel()
	b := open(t, false)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, tc := range []struct {
		order  Order
		status int
	}{
		{Order{"r1", "a", 100, "p"}, http.StatusOK},
		{Order{"r1", "a", 100, "p"}, http.StatusOK},
		{Order{"r1", "a", 101, "p"}, http.StatusConflict},
		{Order{"r2", ClosedAccount + "a", 100, "p"}, http.StatusUnprocessableEntity},
		{Order{"r2", ClosedAccount + "a", 100, "p"}, http.StatusUnprocessableEntity},
		{Order{"", "a", 100, "p"}, http.StatusBadRequest},
		{Order{"r3", "a", 0, "p"}, http.StatusBadRequest},
	} {
		if got := ask(b, client, tc.order); got != tc.status {
			t.Errorf("%+v: status %d, want %d", tc.order, got, tc.status)
		}
	}
	if n := len(b.Payments()); n != 1 {
		t.Errorf("%d payments, want 1", n)
	}
}
